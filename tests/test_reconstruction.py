"""Partial noising and back, with denoisers that are exact: every figure has a closed form.

For data N(0, s^2), a pixel v noised to x = alpha v + sigma eps comes back by the ODE as x s / V^(1/2), and by ancestral
sampling as a draw of N(alpha s^2 x / V, s^2 sigma^2 / V), with V = alpha^2 s^2 + sigma^2.
"""

import functools
from math import erf, exp, pi, sqrt

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.core import grids, paths
from jaxdiff.core.levels import from_times
from jaxdiff.evaluation import anomaly
from jaxdiff.reconstruction import from_encoding, from_noise, levels_from
from jaxdiff.sampling.ddim import DDIM
from jaxdiff.sampling.exact import Mixture, normal
from jaxdiff.sampling.exact import of_mixture as denoiser
from jaxdiff.sampling.sample import image_keys

S = 0.5
STEPS = 200
SCORES = jax.jit(anomaly.scores)


@functools.partial(jax.jit, static_argnums=0)
def there_and_back(eta, x0, levels):
    return from_noise(image_keys(0, jnp.arange(len(x0))), x0, levels, denoiser(normal(0.0, S)), DDIM(eta))


@jax.jit
def encoded(x0, levels, mean, std):
    """Up along the ODE of N(0, S^2), down along that of N(mean, std^2)."""
    down = denoiser(Mixture(mean[None], std, jnp.ones(1)))
    return from_encoding(image_keys(0, jnp.arange(1)), x0, levels, denoiser(normal(0.0, S)), down)


def levels_at(path, ratio):
    return levels_from(grids.UniformT()(path, STEPS), path, ratio)


def folded(mean, std):
    """E|d| of d ~ N(mean, std^2)."""
    return std * sqrt(2 / pi) * exp(-((mean / std) ** 2) / 2) + mean * erf(mean / (std * sqrt(2)))


def level_at(path, ratio):
    return tuple(float(v) for v in path(path.invert(jnp.float32(ratio))))


@pytest.mark.parametrize("value", [0.0, 0.4, 3.0])
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("path", [paths.Linear(), paths.LinearVP(), paths.Sigma()], ids=lambda p: type(p).__name__)
def test_the_score_of_a_known_value(path, eta, value):
    ratio = 0.8
    alpha, sigma = level_at(path, ratio)
    v = alpha**2 * S**2 + sigma**2
    keep = S / sqrt(v) if eta == 0 else alpha * S**2 / v
    spread = keep**2 * sigma**2 + (0 if eta == 0 else S**2 * sigma**2 / v)
    x0 = jnp.full((32, 16, 16, 1), value)
    found = SCORES(x0, there_and_back(eta, x0, levels_at(path, ratio)))
    gap, std = value * (1 - alpha * keep), sqrt(spread)
    # 8,192 pixels: the mean is within some 0.01 of its law's.
    assert float(jnp.mean(found["mae"])) == pytest.approx(folded(gap, std), abs=0.02)
    assert float(jnp.mean(found["mse"])) == pytest.approx(gap**2 + spread, abs=0.03)
    assert float(jnp.mean(found["brighter"] - found["darker"])) == pytest.approx(gap, abs=0.02)


def test_without_noise_an_image_comes_back():
    x0 = jax.random.normal(jax.random.key(0), (32, 16, 16, 1))
    np.testing.assert_allclose(there_and_back(0.0, x0, levels_at(paths.Linear(), 1e-4)), x0, atol=1e-3)


def test_encoding_invents_nothing():
    x0 = jnp.linspace(-2, 2, 64).reshape(1, 8, 8, 1)
    found = encoded(x0, levels_at(paths.Linear(), 2.0), jnp.float32(0), jnp.float32(S))
    np.testing.assert_allclose(found, x0, atol=0.03)


def test_encoding_by_one_and_decoding_by_another():
    """N(0, s^2) up and N(m, q^2) down: m + (x sqrt(a^2 s^2 + b^2) / s - a m) q / sqrt(a^2 q^2 + b^2), (a, b) on top."""
    mean, q = 0.3, 0.2
    alpha, sigma = level_at(paths.Linear(), 1.5)
    x0 = jnp.linspace(-1, 1, 64).reshape(1, 8, 8, 1)
    middle = x0 * sqrt(alpha**2 * S**2 + sigma**2) / S
    wanted = mean + (middle - alpha * mean) * q / sqrt(alpha**2 * q**2 + sigma**2)
    found = encoded(x0, levels_at(paths.Linear(), 1.5), jnp.float32(mean), jnp.float32(q))
    np.testing.assert_allclose(found, wanted, atol=0.03)


@pytest.mark.parametrize("path", [paths.Linear(), paths.LinearVP(), paths.Sigma()], ids=lambda p: type(p).__name__)
def test_levels_begin_where_they_are_told_and_keep_their_shape(path):
    grid = grids.Polynomial(start=0.9)(path, 7)
    laid = levels_from(grid, path, 0.5)
    assert laid.alpha.shape == grid.alpha.shape
    assert float(laid.sigma[0] / laid.alpha[0]) == pytest.approx(0.5, rel=1e-5)
    assert laid.sigma[-1] == 0 and np.all(np.diff(laid.sigma / laid.alpha) < 0)
    times = (1 - np.arange(7) / 7) ** 2 * float(path.invert(jnp.float32(0.5)))
    np.testing.assert_allclose(
        laid.sigma, from_times(path, jnp.asarray(times, jnp.float32)).sigma, rtol=1e-3, atol=1e-6
    )


def test_levels_that_are_not_there_are_refused():
    path = paths.GeometricVE(sigma_max=10.0)
    grid = grids.UniformT()(path, 4)
    for ratio in (0.0, -1.0, np.inf, 20.0):
        with pytest.raises(ValueError, match="--noise"):
            levels_from(grid, path, ratio)
    with pytest.raises(ValueError, match="--grid"):
        levels_from(jax.tree.map(lambda a: a[::-1], grid), path, 1.0)
