"""Exact denoisers, and where their exact probability-flow ODEs lead: what samplers are held against.

Pixels are independent draws of a mixture of normals of one standard deviation; one mean makes a normal.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtr

from jaxdiff.core import gaussian
from jaxdiff.core.types import Estimate, Level


class Mixture(NamedTuple):
    means: jax.Array  # [k]
    std: jax.Array
    weights: jax.Array  # [k]


def normal(mean, std):
    return Mixture(jnp.array([mean]), jnp.float32(std), jnp.ones(1))


def denoiser(data):
    """x0 = E[x0 | x] at any level."""

    def denoise(x, cur, nxt):
        alpha, sigma = (gaussian.expand(v, x)[..., None] for v in cur)
        variance = jnp.square(alpha * data.std) + jnp.square(sigma)
        gap = x[..., None] - alpha * data.means
        p = jax.nn.softmax(jnp.log(data.weights) - 0.5 * jnp.square(gap) / variance, axis=-1)
        x0 = data.means + alpha * jnp.square(data.std) / variance * gap
        return Estimate(jnp.sum(p * x0, -1), jnp.sum(p * gap * sigma / variance, -1))

    return denoise


def network(prediction, data):
    """An ApplyFn whose output, read as `prediction`, is the exact denoiser's belief."""

    def apply(params, x, cur, nxt, cond, key=None):
        assert cur.alpha.shape == nxt.sigma.shape == x.shape[:1] and key is None
        return gaussian.target(prediction, cur, *denoiser(data)(x, cur, nxt)[:2])

    return apply


def marginal(data, level, z):
    """Draws of x at a level from standard normals z; `data` is one normal."""
    return level.alpha * data.means[0] + jnp.hypot(level.alpha * data.std, level.sigma) * z


def cdf(data, level, x):
    """P(x_level <= x) of a pixel: in one dimension the probability-flow ODE leaves it as it is."""
    std = jnp.hypot(level.alpha * data.std, level.sigma)
    return jnp.sum(data.weights * ndtr((x[..., None] - level.alpha * data.means) / std), -1)


def first(levels):
    return Level(levels.alpha[0], levels.sigma[0])
