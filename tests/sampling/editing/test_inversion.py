"""DDIM inversion: round trips, their order, and interpolation along great circles."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.core import grids, paths
from jaxdiff.sampling.ddim import DDIM
from jaxdiff.sampling.editing.inversion import DDIMInversion, Interpolate, Inverse, imposed, risen, slerp
from jaxdiff.sampling.editing.task import Task
from jaxdiff.sampling.sample import image_keys, normal, sample

KEYS = image_keys(0, jnp.arange(8))
IMAGE = jnp.clip(0.5 * normal(image_keys(1, jnp.arange(8)), (8, 8, 2)), -1, 1)
OTHER = jnp.clip(0.5 * normal(image_keys(2, jnp.arange(8)), (8, 8, 2)), -1, 1)
PATHS = [paths.Linear(), paths.LinearVP(), paths.Sigma(20.0)]


@pytest.fixture(scope="module")
def denoise(closed_form):
    return closed_form.denoiser(closed_form.Mixture(jnp.array([-0.6, 0.5]), jnp.float32(0.4), jnp.array([0.4, 0.6])))


def grid(path, steps):
    return grids.Karras(0.02, 20.0, 3.0)(path, steps)


@pytest.fixture(scope="module")
def there_and_back(denoise):
    """(levels, iterations) -> the picture again; one program for each number of iterations."""

    @functools.partial(jax.jit, static_argnums=1)
    def run(levels, iterations):
        return DDIMInversion(iterations)(Task(KEYS, IMAGE, levels, denoise, denoise, DDIM()))

    return lambda levels, iterations: run(grids.pad(levels, 80), iterations)


@pytest.mark.parametrize("path", PATHS)
def test_the_round_trip_is_of_order_one(path, there_and_back):
    errors = [float(jnp.abs(there_and_back(grid(path, n), 0) - IMAGE).mean()) for n in (20, 40, 80)]
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert errors[0] > 0.01 and np.all(orders > 0.75) and np.all(orders < 1.6)


@pytest.mark.parametrize("path", PATHS)
def test_iterations_make_it_exact_for_any_number_of_steps(path, there_and_back):
    for steps in (4, 10):
        levels = grid(path, steps)
        errors = [float(jnp.abs(there_and_back(levels, n) - IMAGE).max()) for n in (0, 4, 60)]
        assert errors[0] > 0.05 and errors[1] < 0.5 * errors[0] and errors[2] < 1e-3


def test_from_alpha_zero_the_first_step_is_undone_too(there_and_back):
    # The top of this grid is pure noise, where x says nothing of the picture.
    levels = grids.UniformT()(paths.Linear(), 10)
    assert levels.alpha[0] == 0
    assert float(jnp.abs(there_and_back(levels, 60) - IMAGE).max()) < 1e-3


def test_the_noise_is_that_of_the_flow(closed_form):
    s, path = 0.5, paths.Linear()
    levels = grid(path, 400)
    denoise = closed_form.denoiser(closed_form.normal(0.0, s))
    found = sample(KEYS, IMAGE, risen(levels), denoise, Inverse())
    want = IMAGE / s * jnp.hypot(levels.alpha[0] * s, levels.sigma[0])
    np.testing.assert_allclose(found, want, rtol=0.03, atol=1e-3)


@pytest.mark.parametrize("iterations", [0, 3])
def test_calls(iterations, denoise):
    seen = []

    def counted(x, cur, nxt):
        jax.debug.callback(lambda sigma: seen.append(float(sigma)), cur.sigma)
        return denoise(x, cur, nxt)

    levels = DDIMInversion(iterations).lay(grid(paths.Linear(), 6), 0.5)
    task = Task(KEYS, IMAGE, levels, counted, counted, DDIM())
    jax.block_until_ready(jax.jit(lambda: DDIMInversion(iterations)(task))())
    jax.effects_barrier()
    assert len(seen) == DDIMInversion(iterations).nfe(DDIM(), levels) == 3 * (2 + iterations)
    assert min(seen) > 0  # no network is asked at the clean level


def test_other_words_change_the_picture_and_the_mask_keeps_its_outside(denoise, wild):
    levels, mask = grid(paths.Linear(), 10), jnp.zeros((8, 8, 8, 1)).at[:, :4].set(1.0)
    task = Task(KEYS, IMAGE, levels, wild(1.0), denoise, DDIM(), mask)
    made = jax.jit(lambda: DDIMInversion(1)(task))()
    np.testing.assert_array_equal(made[:, 4:], IMAGE[:, 4:])
    assert jnp.abs(made[:, :4] - IMAGE[:, :4]).max() > 0.1


def test_an_imposed_picture_keeps_the_noise_it_has(denoise):
    mask, level = jnp.zeros((8, 8, 8, 1)), jax.tree.map(lambda a: a[3], grid(paths.Linear(), 8))
    x = level.alpha * IMAGE + level.sigma * OTHER
    x0, eps, _ = imposed(IMAGE, mask)(denoise)(x, level, level)
    np.testing.assert_array_equal(x0, IMAGE)
    np.testing.assert_allclose(eps, OTHER, atol=1e-5)


def test_slerp_keeps_the_norm_and_has_its_ends():
    def norm(x):
        return jnp.sqrt(jnp.sum(x * x, (1, 2, 3)))

    a, b = (normal(image_keys(i, jnp.arange(8)), (8, 8, 2)) for i in (3, 4))
    a, b = (x / norm(x)[:, None, None, None] * 7 for x in (a, b))
    np.testing.assert_allclose(slerp(a, b, jnp.zeros(8)), a, atol=1e-5)
    np.testing.assert_allclose(slerp(a, b, jnp.ones(8)), b, atol=1e-5)
    between = slerp(a, b, jnp.linspace(0, 1, 8))
    np.testing.assert_allclose(norm(between), 7, rtol=1e-4)
    half = slerp(a, b, jnp.full(8, 0.5))
    np.testing.assert_allclose(jnp.sum(half * a, (1, 2, 3)), jnp.sum(half * b, (1, 2, 3)), rtol=1e-4)
    assert jnp.all(jnp.isfinite(slerp(a, -a, jnp.full(8, 0.3))))
    np.testing.assert_allclose(slerp(a, a, jnp.full(8, 0.3)), a, atol=1e-5)


def test_interpolation_ends_at_both_pictures(denoise):
    place = jnp.array([0.0, 1.0, 0.5, 0.5, 0.0, 1.0, 0.25, 0.75])
    task = Task(KEYS, IMAGE, grid(paths.Linear(), 8), denoise, denoise, DDIM(), other=OTHER, place=place)
    made = jax.jit(lambda: Interpolate(60)(task))()
    for i, end in ((0, IMAGE), (4, IMAGE), (1, OTHER), (5, OTHER)):
        np.testing.assert_allclose(made[i], end[i], atol=2e-3)
    for i in (2, 6):
        assert jnp.abs(made[i] - IMAGE[i]).mean() > 0.05 and jnp.abs(made[i] - OTHER[i]).mean() > 0.05
    with pytest.raises(ValueError, match="--image2"):
        Interpolate()(task._replace(other=None))
    with pytest.raises(ValueError, match="iterations = -1"):
        Interpolate(-1)
