"""Four times the steps: the error of an order-p solver falls by 4**p."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.core import grids, paths
from jaxdiff.core.types import Level
from jaxdiff.sampling.ancestral import Ancestral
from jaxdiff.sampling.ddim import DDIM
from jaxdiff.sampling.dpm_solver import DPMSolverPP, weight
from jaxdiff.sampling.dpm_solver_single import DPMSolver, DPMSolverPPS
from jaxdiff.sampling.euler_maruyama import EulerMaruyama
from jaxdiff.sampling.heun import Heun
from jaxdiff.sampling.sample import image_keys, normal, sample

RUNS = {
    "linear": (paths.Linear(), grids.Polynomial(2.0)),  # from alpha = 0
    "cosine": (paths.Cosine(), grids.UniformLogSNR(start=0.98)),
    "linear_vp": (paths.LinearVP(), grids.Polynomial(2.0)),
    "sigma": (paths.Sigma(4.0), grids.Polynomial(2.0)),
}
# Order 3 shows where the steps at the ends, which are of order 1, are short enough.
FINE = ("cosine", "sigma")
CASES = [
    *((solver, 2, 16, run) for solver in (Heun(), DPMSolverPP(), DPMSolver(2), DPMSolverPPS(2)) for run in RUNS),
    *((DDIM(), 1, 16, run) for run in RUNS),
    *((solver, 3, 16, run) for solver in (DPMSolver(3), DPMSolverPPS(3)) for run in FINE),
    *((DPMSolverPP(3), 3, 32, run) for run in FINE),
]


@pytest.fixture(scope="module")
def error(closed_form):
    """(solver, x, levels) -> mean error in cumulative probability; one compilation for a solver."""
    data = closed_form.Mixture(jnp.array([-0.6, 0.5]), jnp.float32(0.3), jnp.array([0.4, 0.6]))
    clean = Level(jnp.ones(()), jnp.zeros(()))

    @functools.partial(jax.jit, static_argnums=0)
    def error(solver, x, levels):
        end = sample(image_keys(0, jnp.arange(64)), x, levels, closed_form.denoiser(data), solver)
        off = closed_form.cdf(data, clean, end) - closed_form.cdf(data, closed_form.first(levels), x)
        return jnp.abs(off).mean()

    return error


@pytest.mark.parametrize(("solver", "order", "num_steps", "run"), CASES)
def test_order_on_a_mixture(solver, order, num_steps, run, error):
    path, grid = RUNS[run]
    errors = []
    for n in (num_steps, 4 * num_steps):
        levels = grids.pad(grid(path, n), 128)
        spread = jnp.hypot(0.6 * levels.alpha[0], levels.sigma[0])
        errors.append(float(error(solver, spread * jnp.linspace(-2, 2, 64).reshape(-1, 1, 1, 1), levels)))
    # 4, 16 and 64: less where fewer steps err less than they should, more where float32 and higher terms help.
    low, high = {1: (3.6, 5.0), 2: (11.0, 35.0), 3: (30.0, 250.0)}[order]
    assert low < errors[0] / errors[1] < high


@pytest.mark.parametrize("big_h", [-3.0, -1.001, -0.999, -1e-3, 0.0, 1e-4, 0.5, 0.999, 1.001, 8.0])
@pytest.mark.parametrize("k", [0, 1, 2])
def test_weights_are_the_integrals(k, big_h):
    nodes, weights = np.polynomial.legendre.leggauss(40)
    s = 0.5 * (nodes + 1)
    want = 0.5 * np.sum(weights * big_h * np.exp(-big_h * (1 - s)) * s**k)
    np.testing.assert_allclose(weight(k, jnp.float32(big_h)), want, rtol=5e-6)


@pytest.fixture(scope="module")
def excess(closed_form):
    """(solver, path, num_steps) -> the variance's relative error. 2**17 draws: its standard error is 0.4 %."""
    data = closed_form.normal(0.0, 0.5)
    keys = image_keys(0, jnp.arange(128))
    z = normal(image_keys(1, jnp.arange(128)), (32, 32, 1))

    @functools.partial(jax.jit, static_argnums=0)
    def variance(solver, levels):
        x = closed_form.marginal(data, closed_form.first(levels), z)
        return jnp.var(sample(keys, x, levels, closed_form.denoiser(data), solver))

    def excess(solver, path, num_steps):
        return float(variance(solver, grids.pad(grids.Polynomial(2.0)(path, num_steps), 40)) / 0.25 - 1)

    return excess


# Twice the steps: half the error for weak order 1, a quarter for weak order 2.
@pytest.mark.parametrize(
    ("solver", "num_steps", "first", "ratio"),
    [
        (EulerMaruyama(), 12, (0.1, 0.5), (1.8, 2.4)),
        (Ancestral(1.0), 12, (0.2, 0.6), (1.8, 2.6)),
        (DPMSolverPP(1, eta=1.0), 20, (-0.4, -0.2), (1.6, 2.0)),
        (DPMSolverPP(2, eta=1.0), 20, (0.1, 0.3), (3.0, 6.0)),
        (DPMSolverPPS(2, eta=1.0), 12, (-0.2, -0.08), (2.6, 4.5)),
    ],
)
def test_weak_order(solver, num_steps, first, ratio, excess):
    once, twice = (excess(solver, paths.Sigma(3.0), n) for n in (num_steps, 2 * num_steps))
    assert first[0] < once < first[1]
    assert ratio[0] < once / twice < ratio[1]
