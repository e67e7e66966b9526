"""Edit-friendly DDPM inversion: exact reconstruction, and what its maps are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.core import grids, paths
from jaxdiff.sampling.ddim import DDIM
from jaxdiff.sampling.editing.noise_maps import DDPMInversion, mean, noise_maps
from jaxdiff.sampling.editing.task import Task
from jaxdiff.sampling.sample import image_keys, normal, normal_like

KEYS = image_keys(0, jnp.arange(16))
IMAGE = jnp.clip(0.5 * normal(image_keys(1, jnp.arange(16)), (8, 8, 2)), -1, 1)
MASK = jnp.ones((16, 8, 8, 1))


@pytest.fixture(scope="module")
def edited(wild):
    """(shift of the target's denoiser, levels, mask, keys) -> the pictures, edited; the source's shift is 0.4."""

    @jax.jit
    def run(shift, levels, mask, keys):
        return DDPMInversion()(Task(keys, IMAGE, levels, wild(shift), wild(0.4), DDIM(1.0), mask))

    return lambda shift, levels, mask=MASK, keys=KEYS: run(shift, grids.pad(levels, 20), mask, keys)


@pytest.mark.parametrize("path", [paths.Linear(), paths.LinearVP(), paths.Sigma(20.0)])
@pytest.mark.parametrize("steps", [1, 3, 12])
def test_the_picture_comes_back_for_any_denoiser_and_number_of_steps(path, steps, edited):
    levels = grids.Karras(0.02, 10.0)(path, steps)
    np.testing.assert_allclose(edited(0.4, levels), IMAGE, atol=2e-6)
    np.testing.assert_allclose(edited(0.4, DDPMInversion().lay(levels, 0.5)), IMAGE, atol=2e-6)


def test_other_words_change_it_and_other_keys_change_it_otherwise(edited):
    levels = grids.UniformT()(paths.Linear(), 10)
    made = edited(1.4, levels)
    again = edited(1.4, levels, keys=image_keys(9, jnp.arange(16)))
    assert jnp.abs(made - IMAGE).mean() > 0.02 and jnp.abs(made - again).mean() > 0.005
    part = edited(1.4, levels, MASK.at[:, :, 4:].set(0.0))
    np.testing.assert_allclose(part[:, :, 4:], IMAGE[:, :, 4:], atol=2e-6)
    assert jnp.abs(part[:, :, :4] - IMAGE[:, :, :4]).mean() > 0.02


def test_maps_of_neighbouring_steps_are_anticorrelated_and_wider_than_the_samplers_own(closed_form):
    # As the paper says (Sec. 3.2): x is drawn level by level, and each draw is made up for in the next step.
    keys, data = image_keys(0, jnp.arange(512)), closed_form.normal(0.0, 0.5)
    image = 0.5 * normal(image_keys(1, jnp.arange(512)), (4, 4, 1))
    levels = grids.UniformT(0.9)(paths.Cosine(), 12)
    _, maps = noise_maps(keys, image, levels, closed_form.denoiser(data))
    flat = maps.reshape(12, -1)
    assert all(float(jnp.corrcoef(flat[i], flat[i + 1])[0, 1]) < -0.1 for i in range(1, 10))
    ratio = levels.sigma / levels.alpha
    own = levels.sigma[1:-1] * jnp.sqrt(1 - (ratio[1:-1] / ratio[:-2]) ** 2)
    assert jnp.all(flat[:-1].std(1) > 1.05 * own)


def test_the_mean_is_that_of_the_ancestral_step(wild):
    path = paths.Linear()
    cur, nxt = path(jnp.float32(0.7)), path(jnp.float32(0.4))
    moved, _ = DDIM(1.0).step(KEYS, IMAGE, None, cur, nxt, wild(0.4))
    ratio = nxt.sigma * cur.alpha / (nxt.alpha * cur.sigma)
    noise = nxt.sigma * jnp.sqrt(1 - ratio**2) * normal_like(KEYS, IMAGE)
    np.testing.assert_allclose(moved - noise, mean(IMAGE, cur, nxt, wild(0.4)), atol=1e-5)
