"""Restart: fresh noise upwards, another solver downwards."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.core import grids, paths
from jaxdiff.core.grids import Karras, RestartInterval, Restarts
from jaxdiff.core.types import Level
from jaxdiff.sampling.ddim import DDIM
from jaxdiff.sampling.dpm_solver import DPMSolverPP
from jaxdiff.sampling.dpm_solver_single import DPMSolver
from jaxdiff.sampling.heun import Heun
from jaxdiff.sampling.restart import Restart
from jaxdiff.sampling.sample import image_keys, normal, sample

run = jax.jit(sample, static_argnums=(3, 4))
KEYS = image_keys(0, jnp.arange(64))
Z = normal(image_keys(1, jnp.arange(64)), (8, 8, 1))


@pytest.fixture(scope="module")
def data(closed_form):
    return closed_form.Mixture(jnp.array([-0.6, 0.5]), jnp.float32(0.3), jnp.array([0.4, 0.6]))


@pytest.fixture(scope="module")
def denoise(closed_form, data):
    return closed_form.denoiser(data)


def part(levels, first, last):
    return Level(levels.alpha[first:last], levels.sigma[first:last])


@pytest.mark.parametrize("path", [paths.Linear(), paths.LinearVP(), paths.Sigma(10.0)])
def test_a_rise_is_the_forward_process(path, closed_form):
    normal_data = closed_form.normal(0.3, 0.5)
    for low, high in ((0.1, 2.0), (2.0, 2.5), (0.0, 1.5)):  # from clean as well
        levels = path(path.invert(jnp.array([low, high])))
        if low == 0:
            levels = Level(levels.alpha.at[0].set(1.0), levels.sigma.at[0].set(0.0))
        x = closed_form.marginal(normal_data, closed_form.first(levels), Z)
        up = sample(KEYS, x, levels, closed_form.denoiser(normal_data), Restart(DDIM()))
        want = closed_form.marginal(normal_data, Level(levels.alpha[1], levels.sigma[1]), Z)
        assert abs(up.mean() - want.mean()) < 0.06 * want.std() and abs(up.std() / want.std() - 1) < 0.04
        # What was there is kept: the correlation is that of the forward process.
        scale = levels.alpha[1] / levels.alpha[0]
        assert abs(jnp.corrcoef(up.ravel(), x.ravel())[0, 1] - scale * x.std() / up.std()) < 0.05


def test_without_rises_it_is_the_solver(denoise):
    levels = Karras(0.02, 10.0)(paths.Linear(), 8)
    for solver in (Heun(), DPMSolverPP(3)):
        a, b = (run(KEYS, levels.sigma[0] * Z, levels, denoise, s) for s in (solver, Restart(solver)))
        assert jnp.allclose(a, b, atol=1e-6)


def test_the_solver_begins_anew_after_a_rise(denoise):
    levels = Restarts(Karras(0.02, 10.0), (RestartInterval(0.3, 2.0, 1, 3),))(paths.Linear(), 8)
    (at,) = np.flatnonzero(np.diff(np.asarray(levels.sigma)) > 0)
    x = levels.sigma[0] * Z
    up = run(KEYS, x, part(levels, 0, at + 2), denoise, Restart(DPMSolverPP()))
    whole = run(KEYS, x, levels, denoise, Restart(DPMSolverPP()))
    assert jnp.allclose(whole, run(KEYS, up, part(levels, at + 1, None), denoise, DPMSolverPP()), atol=1e-5)


@pytest.mark.parametrize(("solver", "calls"), [(DDIM(), (6, 3)), (Heun(), (11, 6)), (DPMSolver(3), (16, 9))])
def test_rises_cost_nothing(solver, calls, denoise):
    seen = []

    def counted(x, cur, nxt):
        jax.debug.callback(lambda sigma: seen.append(float(sigma)), cur.sigma)
        return denoise(x, cur, nxt)

    levels = grids.pad(Restarts(Karras(0.02, 10.0), (RestartInterval(0.3, 2.0, 2, 3),))(paths.Linear(), 6), 20)
    jax.block_until_ready(run(KEYS[:2], Z[:2], levels, counted, Restart(solver)))
    jax.effects_barrier()
    assert len(seen) == Restart(solver).nfe(levels) == calls[0] + 2 * calls[1]


def test_restarts_mend_a_wrong_start(denoise, data, closed_form):
    # Too little noise at the start leaves a wrong law, which restarts contract (the paper's Theorem 1).
    path, clean = paths.Sigma(10.0), Level(jnp.ones(()), jnp.zeros(()))
    x = 0.3 * 10.0 * Z

    def distance(levels, solver):
        u = jnp.sort(closed_form.cdf(data, clean, run(KEYS, x, levels, denoise, solver)).ravel())
        return float(jnp.abs(u - jnp.linspace(0, 1, u.size)).max())

    grid = Karras(0.02, 10.0)
    plain = distance(grid(path, 12), Heun())
    mended = distance(Restarts(grid, (RestartInterval(0.1, 5.0, 3, 12),))(path, 12), Restart(Heun()))
    assert plain > 0.15 and mended < 0.05


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match=r"noise = 0.0 .*--solver\.noise"):
        Restart(noise=0.0)
