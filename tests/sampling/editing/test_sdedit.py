"""SDEdit: where it starts, and the law of what it makes of normal data."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.core import grids, paths
from jaxdiff.core.types import Level
from jaxdiff.sampling.ddim import DDIM
from jaxdiff.sampling.editing.sdedit import SDEdit
from jaxdiff.sampling.editing.task import Task, last_steps, tail
from jaxdiff.sampling.sample import image_keys, initial, sample

KEYS = image_keys(3, jnp.arange(64))


@pytest.mark.parametrize(("strength", "steps"), [(1.0, 50), (0.6, 30), (0.58, 29), (0.031, 1), (0.001, 1)])
def test_strength_is_a_share_of_the_steps(strength, steps):
    levels = grids.UniformT()(paths.Linear(), 50)
    kept, filled = last_steps(levels, strength), tail(levels, strength)
    assert kept.alpha.shape == (steps + 1,) and filled.alpha.shape == (51,)
    for a, b, c in zip(levels, kept, filled, strict=True):
        np.testing.assert_array_equal(a[-steps - 1 :], b)
        np.testing.assert_array_equal(c[: steps + 1], b)
    assert jnp.all(filled.sigma[steps:] == 0) and jnp.all(filled.alpha[steps:] == 1)
    # What is filled up already counts for nothing.
    np.testing.assert_array_equal(last_steps(grids.pad(levels, 70), strength).sigma, kept.sigma)


@pytest.mark.parametrize("strength", [0.0, -0.1, 1.01, float("nan")])
def test_other_strengths_are_refused(strength):
    with pytest.raises(ValueError, match=r"strength = .*\(--strength\)"):
        tail(grids.UniformT()(paths.Linear(), 5), strength)


@pytest.fixture(scope="module")
def of_normal_data(closed_form):
    """(solver, levels, image) -> what is made of it where data are N(0, 0.5**2)."""
    denoise = closed_form.denoiser(closed_form.normal(0.0, 0.5))

    @functools.partial(jax.jit, static_argnums=0)
    def run(solver, levels, image):
        return SDEdit()(Task(KEYS, image, levels, denoise, denoise, solver))

    return run


@pytest.mark.parametrize("path", [paths.Linear(), paths.LinearVP(), paths.Sigma(10.0)])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_law_for_normal_data(path, eta, of_normal_data):
    s, y, n = 0.5, 0.8, 300
    levels = path(jnp.linspace(float(path.invert(jnp.float32(1.5))), 0.0, n + 1))
    levels = Level(levels.alpha.at[-1].set(1.0), levels.sigma.at[-1].set(0.0))
    made = of_normal_data(DDIM(eta), levels, jnp.full((64, 16, 16, 1), y))
    alpha, sigma = (float(a[0]) for a in levels)
    total = alpha**2 * s**2 + sigma**2
    if eta == 0:  # x / std(x) stays along the flow
        mean, std = alpha * y * s / total**0.5, sigma * s / total**0.5
    else:  # a draw of what x may have been
        gain = alpha * s**2 / total
        mean, std = gain * alpha * y, (s**2 * sigma**2 / total + (gain * sigma) ** 2) ** 0.5
    assert abs(float(made.mean()) - mean) < 0.01 and abs(float(made.std()) / std - 1) < 0.02


def test_all_of_the_steps_forget_the_picture(of_normal_data, closed_form):
    levels, image = grids.UniformT()(paths.Linear(), 10), jnp.full((64, 2, 2, 1), 0.7)
    made, some = (of_normal_data(DDIM(), SDEdit().lay(levels, strength), image) for strength in (1.0, 0.4))
    x = initial(KEYS, (2, 2, 1), Level(levels.alpha[0], levels.sigma[0]))
    plain = sample(KEYS, x, levels, closed_form.denoiser(closed_form.normal(0.0, 0.5)), DDIM())
    np.testing.assert_allclose(made, plain, atol=1e-6)
    assert abs(float(some.mean()) - 0.7) < abs(float(made.mean()) - 0.7)


def test_one_compilation_serves_all_strengths(of_normal_data):
    method, levels, image = SDEdit(), grids.UniformT()(paths.Linear(), 10), jnp.full((64, 3, 3, 1), 0.5)
    before = of_normal_data._cache_size()
    made = [of_normal_data(DDIM(), method.lay(levels, s), image) for s in (0.2, 0.5, 1.0)]
    assert of_normal_data._cache_size() == before + 1 and method.nfe(DDIM(), method.lay(levels, 0.5)) == 5
    np.testing.assert_allclose(made[1], of_normal_data(DDIM(), last_steps(levels, 0.5), image), atol=1e-6)
