"""Exact denoisers, and where their exact probability-flow ODEs lead: what samplers are held against.

Pixels are independent draws of a mixture of normals of one standard deviation; one mean makes a normal.
"""

import jax.numpy as jnp
from jax.scipy.special import ndtr

from jaxdiff.core.types import Level
from jaxdiff.sampling import exact
from jaxdiff.sampling.exact import Mixture, normal
from jaxdiff.sampling.exact import of_mixture as denoiser

__all__ = ["Mixture", "cdf", "denoiser", "first", "marginal", "network", "normal"]


def network(prediction, data):
    """An ApplyFn whose output, read as `prediction`, is the exact denoiser's belief."""
    believed = exact.network(prediction, denoiser(data))

    def apply(params, x, cur, nxt, cond, key=None):
        assert cur.alpha.shape == nxt.sigma.shape == x.shape[:1] and key is None
        return believed(params, x, cur, nxt, cond)

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
