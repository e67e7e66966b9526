"""Replacement and ILVR: what is kept of the picture, and that nothing else changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.core import grids, paths
from jaxdiff.core.types import Level
from jaxdiff.sampling.ddim import DDIM
from jaxdiff.sampling.dpm_solver import DPMSolverPP
from jaxdiff.sampling.editing.keep import ILVR, Keep, Replace, outside
from jaxdiff.sampling.editing.task import Task
from jaxdiff.sampling.heun import Heun
from jaxdiff.sampling.sample import image_keys, normal, sample, trajectory

KEYS = image_keys(0, jnp.arange(8))
IMAGE = jnp.clip(0.5 * normal(image_keys(1, jnp.arange(8)), (8, 8, 2)), -1, 1)
MASK = jnp.zeros((8, 8, 8, 1)).at[:, 2:7, 3:].set(1.0)
LEVELS = grids.UniformT()(paths.Linear(), 6)


def task(denoise, solver, mask=None):
    return Task(KEYS, IMAGE, LEVELS, denoise, denoise, solver, mask)


@pytest.mark.parametrize("solver", [DDIM(), DDIM(1.0), Heun(churn=5.0), DPMSolverPP(2)])
def test_the_outside_is_the_picture_exactly(solver, wild):
    made = jax.jit(lambda: Replace()(task(wild(0.3), solver, MASK)))()
    np.testing.assert_array_equal(jnp.where(MASK > 0.5, 0.0, made), jnp.where(MASK > 0.5, 0.0, IMAGE))
    assert jnp.abs(jnp.where(MASK > 0.5, made - IMAGE, 0.0)).max() > 0.1


@pytest.mark.parametrize("solver", [DDIM(1.0), DPMSolverPP(2)])
def test_where_all_is_made_anew_it_is_the_solver(solver, wild):
    x = normal(image_keys(2, jnp.arange(8)), (8, 8, 2))
    run = jax.jit(lambda mask, until: sample(KEYS, x, LEVELS, wild(0.3), Keep(solver, IMAGE, outside(mask), until)))
    plain = jax.jit(lambda: sample(KEYS, x, LEVELS, wild(0.3), solver))()
    np.testing.assert_allclose(run(jnp.ones_like(MASK), 0.0), plain, atol=1e-6)
    np.testing.assert_allclose(run(jnp.zeros_like(MASK), 1e9), plain, atol=1e-6)
    assert Keep(solver, IMAGE, outside(MASK)).nfe(LEVELS) == solver.nfe(LEVELS)


def test_the_outside_is_as_noisy_as_the_level_with_fresh_noise_in_every_step(wild):
    keys, image = image_keys(5, jnp.arange(256)), jnp.full((256, 4, 4, 1), 0.7)
    keeps = Keep(DDIM(), image, outside(jnp.zeros((256, 4, 4, 1))))
    states = trajectory(keys, image, LEVELS, wild(0.3), keeps)
    noise = [
        (x - alpha * image) / sigma
        for x, alpha, sigma in zip(states[:-1], LEVELS.alpha[1:-1], LEVELS.sigma[1:-1], strict=True)
    ]
    for z in noise:
        assert abs(float(z.mean())) < 0.06 and abs(float(z.std()) - 1) < 0.04
    assert abs(float(jnp.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1])) < 0.06


def test_nothing_is_put_in_where_levels_rise(wild):
    from jaxdiff.sampling.restart import Restart

    up = Level(LEVELS.alpha[jnp.array([3, 1])], LEVELS.sigma[jnp.array([3, 1])])
    keeps = Keep(Restart(DDIM()), IMAGE, outside(MASK))
    plain = sample(KEYS, IMAGE, up, wild(0.0), Restart(DDIM()))
    np.testing.assert_allclose(sample(KEYS, IMAGE, up, wild(0.0), keeps), plain, atol=1e-6)


@pytest.mark.parametrize("factor", [2, 8])
def test_ilvr_keeps_the_low_frequencies(factor, wild):
    made = jax.jit(lambda: ILVR(factor)(task(wild(0.3), DDIM(1.0))))()

    def means(x):
        return x.reshape(8, 8 // factor, factor, 8 // factor, factor, 2).mean((2, 4))

    np.testing.assert_allclose(means(made), means(IMAGE), atol=1e-5)
    free = jax.jit(lambda: ILVR(factor, until=1e6)(task(wild(0.3), DDIM(1.0))))()
    assert jnp.abs(means(free) - means(IMAGE)).max() > 0.1
    assert jnp.abs(made - IMAGE).max() > 0.1


def test_what_cannot_be_is_refused(wild):
    with pytest.raises(ValueError, match=r"factor = 3 .*8 x 8"):
        ILVR(3)(task(wild(0.0), DDIM()))
    with pytest.raises(ValueError, match="--method"):
        ILVR(0)
    with pytest.raises(ValueError, match="--mask"):
        Replace()(task(wild(0.0), DDIM()))
