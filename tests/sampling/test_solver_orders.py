"""Halving the steps: the error of an order-p solver falls by 2**p."""

import jax
import jax.numpy as jnp
import pytest

from jaxdiff.core import grids, paths
from jaxdiff.core.types import Level
from jaxdiff.sampling.ddim import DDIM
from jaxdiff.sampling.dpm_solver import DPMSolverPP2M
from jaxdiff.sampling.euler_maruyama import EulerMaruyama
from jaxdiff.sampling.heun import Heun
from jaxdiff.sampling.sample import image_keys, normal, sample

RUNS = {
    "linear": (paths.Linear(), grids.Polynomial(2.0)),  # from alpha = 0
    "cosine": (paths.Cosine(), grids.UniformLogSNR(start=0.98)),
    "linear_vp": (paths.LinearVP(), grids.Polynomial(2.0)),
    "sigma": (paths.Sigma(4.0), grids.Polynomial(2.0)),
}


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize(("solver", "order"), [(DDIM(), 1), (Heun(), 2), (DPMSolverPP2M(), 2)])
def test_order_on_a_mixture(solver, order, run, closed_form):
    path, grid = RUNS[run]
    data = closed_form.Mixture(jnp.array([-0.6, 0.5]), jnp.float32(0.3), jnp.array([0.4, 0.6]))
    keys = image_keys(0, jnp.arange(64))
    errors = []
    for num_steps in (16, 64):
        levels = grid(path, num_steps)
        start = closed_form.first(levels)
        x = jnp.hypot(0.6 * start.alpha, start.sigma) * jnp.linspace(-2, 2, 64).reshape(-1, 1, 1, 1)

        @jax.jit
        def error(x, levels, start):
            end = sample(keys, x, levels, closed_form.denoiser(data), solver)
            clean = Level(jnp.ones(()), jnp.zeros(()))
            return jnp.abs(closed_form.cdf(data, clean, end) - closed_form.cdf(data, start, x)).mean()

        errors.append(float(error(x, levels, start)))
    # Four times the steps: 4 for order 1 and 16 for order 2 (more where float32 and higher terms help).
    low, high = {1: (3.6, 5.0), 2: (11.0, 35.0)}[order]
    assert low < errors[0] / errors[1] < high


def test_euler_maruyama_has_weak_order_1(closed_form):
    # 2**18 draws from N(0, 0.5**2): the standard error of their variance is 0.3 %.
    data = closed_form.normal(0.0, 0.5)
    keys = image_keys(0, jnp.arange(256))
    z = normal(image_keys(1, jnp.arange(256)), (32, 32, 1))
    excess = []
    for num_steps in (12, 24):
        levels = grids.Polynomial(2.0)(paths.Sigma(3.0), num_steps)
        x = closed_form.marginal(data, closed_form.first(levels), z)
        x = jax.jit(sample, static_argnums=(3, 4))(keys, x, levels, closed_form.denoiser(data), EulerMaruyama())
        excess.append(float(jnp.var(x) / 0.25 - 1))
    assert 0.1 < excess[0] < 0.5
    assert 1.8 < excess[0] / excess[1] < 2.4
