"""The scan: per-image noise, one compilation, calls counted, trajectories."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxdiff.core import grids, paths, predictions
from jaxdiff.core.types import Level
from jaxdiff.sampling.ancestral import Ancestral
from jaxdiff.sampling.ddim import DDIM
from jaxdiff.sampling.dpm_solver import DPMSolverPP
from jaxdiff.sampling.dpm_solver_single import DPMSolver, DPMSolverPPS
from jaxdiff.sampling.euler_maruyama import EulerMaruyama
from jaxdiff.sampling.guidance import cfg, guided, pair
from jaxdiff.sampling.heun import Heun
from jaxdiff.sampling.predictor_corrector import PredictorCorrector
from jaxdiff.sampling.renoise import Renoise
from jaxdiff.sampling.restart import Restart
from jaxdiff.sampling.sample import denoiser, image_keys, initial, normal, on_path, sample, trajectory
from jaxdiff.sampling.solver import vp

# With their calls of the network in 5 steps, of which the last goes to sigma = 0.
CALLS = {
    DDIM(): 5,
    DDIM(0.5): 5,
    Heun(): 9,
    Heun(5.0): 9,
    EulerMaruyama(): 5,
    Ancestral(1.0): 5,
    DPMSolverPP(): 5,
    DPMSolverPP(3, eta=1.0): 5,
    DPMSolver(3): 13,
    DPMSolverPPS(2, eta=1.0): 9,
    PredictorCorrector(corrections=2): 13,
    Renoise(): 5,
    Restart(Heun()): 9,
}
SOLVERS = list(CALLS)
SHAPE = (2, 2, 1)


@pytest.fixture(scope="module")
def denoise(closed_form):
    data = closed_form.Mixture(jnp.array([-0.6, 0.5]), jnp.float32(0.3), jnp.ones(2) / 2)
    return jax.jit(closed_form.denoiser(data))


def levels_of(num_steps):
    return grids.UniformT(start=0.9)(paths.Linear(), num_steps)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def images(indices, denoise, solver, num_steps=4, seed=3):
    keys, levels = image_keys(seed, jnp.asarray(indices)), levels_of(num_steps)
    return sample(keys, initial(keys, SHAPE, Level(levels.alpha[0], levels.sigma[0])), levels, denoise, solver)


@pytest.mark.parametrize("solver", [DDIM(0.5), Heun(5.0), DPMSolverPPS(eta=1.0), PredictorCorrector()])
def test_an_image_is_the_same_in_any_batch(solver, denoise):
    def of(*indices):
        return np.asarray(images(jnp.array(indices), denoise, solver))

    four = of(0, 1, 2, 3)
    assert np.unique(four[:, 0, 0, 0]).size == 4
    np.testing.assert_allclose(of(2, 0, 1), four[[2, 0, 1]], atol=1e-6)
    np.testing.assert_allclose(of(2), four[[2]], atol=1e-6)


def test_an_image_is_the_same_on_any_number_of_devices(denoise):
    mesh = Mesh(np.array(jax.devices()), ("data",))
    keys, levels = image_keys(3, jnp.arange(16)), levels_of(4)

    def run(keys):
        start = Level(levels.alpha[0], levels.sigma[0])
        return sample(keys, initial(keys, SHAPE, start), levels, denoise, DDIM(1.0))

    sharded = jax.jit(run)(jax.device_put(keys, NamedSharding(mesh, PartitionSpec("data"))))
    assert len(sharded.sharding.device_set) == 8
    assert jnp.allclose(jax.jit(run)(keys), np.asarray(sharded), atol=1e-6)


def test_seeds_make_different_images(denoise):
    one, two = (images(jnp.array([0]), denoise, DDIM(), seed=seed) for seed in (1, 2))
    assert not jnp.allclose(one, two)


def test_noise_is_standard_and_never_used_twice():
    keys = image_keys(0, jnp.arange(64))
    one = Level(jnp.ones(()), jnp.float32(1.0))

    class Recorder:
        """A solver whose x is its step's own noise."""

        def init(self, x, levels):
            return None

        def step(self, keys, x, state, cur, nxt, denoise):
            return normal(keys, x.shape[1:]), None

        def nfe(self, levels):
            return 0

    start = initial(keys, (8, 8, 1), one)
    steps = trajectory(keys, start, levels_of(3), lambda x, cur, nxt: None, Recorder())
    draws = jnp.stack([start.ravel(), *(s.ravel() for s in steps)])
    assert abs(draws.mean()) < 0.04 and abs(draws.std() - 1) < 0.04
    correlations = jnp.corrcoef(draws) - jnp.eye(4)
    assert jnp.abs(correlations).max() < 5 / 64  # five standard errors of 4096 draws
    # Neighbouring images' noise too.
    assert jnp.abs(jnp.corrcoef(start[:8].reshape(8, -1)) - jnp.eye(8)).max() < 5 / 8
    assert jnp.allclose(initial(keys, (8, 8, 1), Level(one.alpha, jnp.float32(80.0))), 80 * start)


@pytest.mark.parametrize("solver", SOLVERS)
def test_network_calls_are_counted_and_never_at_sigma_0(solver, denoise):
    seen = []

    def counted(x, cur, nxt):
        jax.debug.callback(lambda sigma: seen.append(float(sigma)), cur.sigma)
        return denoise(x, cur, nxt)

    for num_steps in (1, 5):
        seen.clear()
        jax.block_until_ready(images(jnp.arange(2), counted, solver, num_steps))
        jax.effects_barrier()
        assert len(seen) == solver.nfe(levels_of(num_steps))
        assert min(seen) > 0
    assert solver.nfe(levels_of(5)) == CALLS[solver]


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_padded_grid_gives_the_same_images_and_costs_nothing(solver, denoise):
    keys = image_keys(3, jnp.arange(2))
    x = initial(keys, SHAPE, Level(jnp.float32(0.1), jnp.float32(0.9)))
    seen = []

    def counted(x, cur, nxt):
        jax.debug.callback(lambda sigma: seen.append(float(sigma)), cur.sigma)
        return denoise(x, cur, nxt)

    run = jax.jit(lambda levels: sample(keys, x, levels, counted, solver))
    for num_steps in (2, 5):
        want = sample(keys, x, levels_of(num_steps), denoise, solver)
        seen.clear()
        padded = grids.pad(levels_of(num_steps), 6)
        np.testing.assert_allclose(run(padded), want, atol=1e-5)
        jax.effects_barrier()
        assert len(seen) == solver.nfe(padded) == solver.nfe(levels_of(num_steps))
    assert run._cache_size() == 1


@pytest.mark.parametrize("solver", [DDIM(0.5), Heun(5.0), DPMSolverPP(3, eta=1.0), DPMSolverPPS(2, eta=1.0)])
def test_jit_changes_nothing(solver, denoise):
    jitted = images(jnp.arange(2), denoise, solver, 2)
    with jax.disable_jit():
        plain = images(jnp.arange(2), denoise, solver, 2)
    assert jnp.allclose(jitted, plain, atol=1e-5)


def test_a_sweep_compiles_once(closed_form):
    prediction, path = predictions.V(), paths.Linear()

    def apply(params, x, cur, nxt, cond, key=None):
        data = closed_form.normal(0.0, 0.5)
        data = data._replace(means=params["means"][cond["label"]][:, None, None, None, None])
        return closed_form.network(prediction, data)(params, x, cur, nxt, cond)

    @jax.jit
    def run(params, seed, indices, levels, label, scale, x_scale):
        keys = image_keys(seed, indices)
        x = x_scale * initial(keys, SHAPE, Level(levels.alpha[0], levels.sigma[0]))
        both = pair(apply, params, prediction, {"label": label})
        return sample(keys, x, levels, guided(both, cfg(scale)), Heun())

    params = {"means": jnp.array([0.5, -0.5, 0.0])}
    ends = []
    for seed, first, start, label, scale in [(0, 0, 1.0, 0, 1.0), (1, 4, 0.9, 1, 3.0), (2, 8, 0.8, -1, 0.0)]:
        levels = grids.UniformT(start=start)(path, 6)
        label = jnp.full(4, label, jnp.int32)
        ends.append(run(params, seed, first + jnp.arange(4), levels, label, scale, 1.0))
        params = {"means": params["means"] + 0.1}
    assert run._cache_size() == 1
    assert jnp.isfinite(jnp.stack(ends)).all() and not jnp.allclose(ends[0], ends[1])


def test_trajectory_is_where_sampling_passes(denoise):
    keys, levels = image_keys(0, jnp.arange(2)), levels_of(5)
    x = initial(keys, SHAPE, Level(levels.alpha[0], levels.sigma[0]))
    xs = trajectory(keys, x, levels, denoise, DDIM(0.5))
    assert xs.shape == (5, 2, *SHAPE)
    for i in (1, 3, 5):
        part = Level(levels.alpha[: i + 1], levels.sigma[: i + 1])
        assert jnp.allclose(xs[i - 1], sample(keys, x, part, denoise, DDIM(0.5)), atol=1e-6)


def test_sample_keeps_no_trajectory(denoise):
    keys, levels = image_keys(0, jnp.arange(2)), levels_of(5)
    x = jnp.zeros((2, *SHAPE))

    def scanned(function):
        jaxpr = jax.make_jaxpr(lambda keys: function(keys, x, levels, denoise, DPMSolverPP()))(keys)
        (scan,) = (e for e in jaxpr.eqns if e.primitive.name == "scan")
        return {v.aval.shape for v in scan.outvars}

    assert (5, 2, *SHAPE) in scanned(trajectory)
    assert (5, 2, *SHAPE) not in scanned(sample)


def test_denoiser_gives_networks_levels_per_image_and_keeps_the_variance_apart(closed_form):
    exact = closed_form.network(predictions.Flow(), closed_form.normal(0.3, 0.5))

    def apply(params, x, cur, nxt, cond, key=None):
        out = exact(params, x, cur, nxt, cond, key)  # checks that levels are per image
        assert nxt.alpha.shape == (3,) and cond["label"].shape == (3,)
        return jnp.concatenate([out, jnp.full_like(out, 0.25)], axis=-1)

    x = jnp.linspace(-1, 1, 24).reshape(3, 2, 2, 2)
    cond = {"label": jnp.zeros(3, jnp.int32)}
    cur, nxt = Level(jnp.float32(0.6), jnp.float32(0.8)), Level(jnp.ones(()), jnp.zeros(()))
    got = denoiser(apply, {}, predictions.Flow(), cond)(x, cur, nxt)
    want = closed_form.denoiser(closed_form.normal(0.3, 0.5))(x, cur, nxt)
    assert jnp.allclose(got.x0, want.x0, atol=1e-5) and jnp.allclose(got.eps, want.eps, atol=1e-5)
    assert jnp.array_equal(got.v, jnp.full_like(x, 0.25)) and want.v is None


@pytest.mark.parametrize("path", [paths.Linear(), paths.LinearVP(), paths.Sigma(), paths.DiscreteVP(100)])
def test_on_path_asks_the_network_at_its_own_levels(path, closed_form):
    exact = closed_form.denoiser(closed_form.normal(0.3, 0.5))
    asked = []

    def network(x, cur, nxt):
        asked.extend([cur, nxt])
        return exact(x, cur, nxt)

    x = jnp.linspace(-1, 1, 12).reshape(3, 2, 2, 1)
    cur, clean = vp(jnp.array([0.1, 1.0, 5.0])), Level(jnp.ones(3), jnp.zeros(3))
    got, want = on_path(path)(network)(x, cur, clean), exact(x, cur, clean)
    on = path(path.invert(cur.sigma / cur.alpha))
    assert jnp.array_equal(asked[0].alpha, on.alpha) and jnp.array_equal(asked[0].sigma, on.sigma)
    assert jnp.array_equal(asked[1].sigma, clean.sigma)
    assert jnp.allclose(got.x0, want.x0, atol=2e-5) and jnp.allclose(got.eps, want.eps, atol=2e-4)
    # Pure noise stays pure noise.
    noise = Level(jnp.zeros(()), jnp.ones(()))
    if isinstance(path, paths.Linear):
        assert jnp.allclose(on_path(path)(network)(x, noise, cur).eps, x, atol=1e-6)
