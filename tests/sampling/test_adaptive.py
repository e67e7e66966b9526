"""Adaptive integration: the ODE's solution within the tolerance, image by image, with calls counted."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.core import grids, paths
from jaxdiff.core.types import Level
from jaxdiff.sampling.adaptive import HALF_PI, angle, at_angle, solve_each
from jaxdiff.sampling.rk45 import RK45
from jaxdiff.sampling.sample import image_keys, sample
from jaxdiff.sampling.solver import Solver, vp

diffrax = pytest.importorskip("diffrax", reason="needs diffrax")

CLEAN = Level(jnp.ones(()), jnp.zeros(()))


@pytest.fixture(scope="module")
def mixture(closed_form):
    return closed_form.Mixture(jnp.array([-0.6, 0.5]), jnp.float32(0.3), jnp.array([0.4, 0.6]))


def start(b=8):
    # Image i has its pixels at multiples of i: the outer images are harder.
    return jnp.linspace(-2, 2, b).reshape(b, 1, 1, 1) * jnp.array([1.0, 0.4]).reshape(1, 2, 1, 1)


def test_angles():
    level = at_angle(jnp.array([0.0, 0.7, HALF_PI]))
    np.testing.assert_allclose(angle(level), [0.0, 0.7, HALF_PI], atol=1e-6)
    assert level.sigma[0] == 0 and level.alpha[2] == 0
    np.testing.assert_allclose(jnp.hypot(*level), 1.0, atol=1e-6)


def test_each_image_is_solved_within_the_tolerance_and_says_if_it_arrived():
    # dz/dphi = rate z with a rate for each image, which the field closes over; ends of each image's own; a tree.
    rates, ends = jnp.array([0.5, -2.0, 6.0, 1e4, 1.0]), jnp.array([0.3, 1.0, 1.5, 1.5, 0.5])
    names = jnp.arange(5, dtype=jnp.int32)

    @jax.jit
    def solve(rates, names, start):
        def field(phi, state):
            z, _ = state
            assert phi.shape == (5,) and z.shape == (5, 2) and names.dtype == jnp.int32
            return rates[:, None] * z + 0 * names[:, None], jnp.cos(phi)

        return solve_each(field, (jnp.ones((5, 2)), jnp.zeros(5)), start, ends, 1e-6, 1e-6, max_steps=100)

    (z, total), nfe, there = solve(rates, names, jnp.float32(0.5))
    assert there.tolist() == [True, True, True, False, True]
    done = np.asarray(there)
    np.testing.assert_allclose(z[done, 0], jnp.exp(rates * (ends - 0.5))[done], rtol=2e-5)
    np.testing.assert_allclose(total[done], (jnp.sin(ends) - jnp.sin(0.5))[done], atol=2e-5)
    assert nfe[4] == 1 < nfe[0] < nfe[2] < nfe[3]


@pytest.fixture(scope="module")
def seen():
    return []


@pytest.fixture(scope="module")
def denoise(closed_form, mixture, seen):
    exact = closed_form.denoiser(mixture)

    def counted(x, cur, nxt):
        jax.debug.callback(lambda sigma: seen.append(np.min(sigma)), cur.sigma)
        return exact(x, cur, nxt)

    return counted


@pytest.fixture(scope="module")
def one_step(denoise):
    """(solver, x) -> where one step from pure noise to clean leads, and each image's count."""

    @functools.partial(jax.jit, static_argnums=0)
    def one_step(solver, x):
        levels = Level(jnp.array([0.0, 1.0]), jnp.array([1.0, 0.0]))
        cur, nxt = (Level(levels.alpha[i], levels.sigma[i]) for i in (0, 1))
        keys = image_keys(0, jnp.arange(x.shape[0]))
        x, state = solver.step(keys, x, solver.init(x, levels), cur, nxt, denoise)
        return x, state.nfe

    return one_step


@pytest.fixture(scope="module")
def run(denoise):
    solver = RK45(1e-5, 1e-5)
    return jax.jit(lambda x, levels: sample(image_keys(0, jnp.arange(x.shape[0])), x, levels, denoise, solver))


def test_rk45_follows_the_ode_from_alpha_0(one_step, seen, closed_form, mixture):
    want = closed_form.cdf(mixture, Level(jnp.zeros(()), jnp.ones(())), start())
    calls = []
    for tol, error in ((1e-5, 1e-4), (1e-3, 1e-2)):
        seen.clear()
        end, nfe = one_step(RK45(tol, tol), start())
        jax.effects_barrier()
        assert jnp.abs(closed_form.cdf(mixture, CLEAN, end) - want).max() < error
        # Every call is for the whole batch: as many as the slowest image needs, and none at sigma = 0.
        assert len(seen) == nfe.max() and min(seen) > 0
        calls.append(int(nfe.sum()))
    assert calls[0] > 1.5 * calls[1]


def test_an_image_takes_the_same_steps_in_any_batch(one_step):
    together, nfe = one_step(RK45(1e-5, 1e-5), start())
    assert jnp.unique(nfe).size > 1
    for i in (0, 3):
        alone, calls = one_step(RK45(1e-5, 1e-5), start()[i : i + 1])
        np.testing.assert_allclose(alone[0], together[i], atol=1e-5)
        assert calls[0] == nfe[i]


def test_levels_on_the_way_padding_and_scale_change_nothing(run, closed_form, mixture):
    for path in (paths.Linear(), paths.Sigma(), paths.LinearVP()):
        grid = grids.Karras(0.02, 20.0)(path, 2)
        first = closed_form.first(grid)
        x = jnp.hypot(0.6 * first.alpha, first.sigma) * start()
        end = run(x, grids.pad(grid, 4))
        np.testing.assert_allclose(closed_form.cdf(mixture, CLEAN, end), closed_form.cdf(mixture, first, x), atol=1e-4)


def test_a_repeated_level_is_no_step_and_a_rising_one_returns(run):
    low, high = vp(jnp.float32(0.1)), vp(jnp.float32(3.0))
    levels = Level(*(jnp.stack([a, b, b, a, a]) for a, b in zip(low, high, strict=True)))
    np.testing.assert_allclose(run(0.4 * start(), levels), 0.4 * start(), atol=5e-3)


def test_rk45_is_a_solver_that_does_not_know_its_calls():
    assert isinstance(RK45(), Solver) and RK45().nfe(Level(jnp.ones(2), jnp.ones(2))) is None


@pytest.mark.parametrize("make", [lambda: RK45(rtol=0.0), lambda: RK45(atol=-1.0), lambda: RK45(end=0.0)])
def test_bad_settings_are_refused(make):
    with pytest.raises(ValueError, match=r"(rtol|end) = "):
        make()
