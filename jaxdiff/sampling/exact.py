"""Exact denoisers of known data: what solvers, guidance and likelihoods are measured against without a network.

A mixture of normals of means m_k and one standard deviation s, pixel by pixel:

    E[x0 | x] = sum_k p_k(x) (m_k + alpha s^2 (x - alpha m_k) / (alpha^2 s^2 + sigma^2))

A finite set of images x_i:

    E[x0 | x] = sum_i softmax_i(-|x - alpha x_i|^2 / (2 sigma^2)) x_i
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiff.core import gaussian
from jaxdiff.core.types import ApplyFn, Cond, Denoise, Estimate, Level, Params, Prediction

Image = Float[Array, "b h w c"]


class Mixture(NamedTuple):
    """Every pixel is an independent draw of a mixture of normals of one standard deviation."""

    means: Float[Array, "*b k"]
    std: Float[Array, ""]
    weights: Float[Array, "k"]


def normal(mean: float, std: float) -> Mixture:
    """The mixture of one normal."""
    return Mixture(jnp.array([mean]), jnp.float32(std), jnp.ones(1))


def of_mixture(data: Mixture) -> Denoise:
    """The exact denoiser of a mixture, at any level."""

    def denoise(x: Image, cur: Level, nxt: Level) -> Estimate:
        alpha, sigma = (gaussian.expand(v, x)[..., None] for v in cur)
        variance = jnp.square(alpha * data.std) + jnp.square(sigma)
        gap = x[..., None] - alpha * data.means
        p = jax.nn.softmax(jnp.log(data.weights) - 0.5 * jnp.square(gap) / variance, axis=-1)
        x0 = data.means + alpha * jnp.square(data.std) / variance * gap
        return Estimate(jnp.sum(p * x0, -1), jnp.sum(p * gap * sigma / variance, -1))

    return denoise


def of_images(images: Float[Array, "n h w c"]) -> Denoise:
    """The exact denoiser of a finite set of images, each as likely as the others: it draws from the set itself."""
    flat = images.reshape(images.shape[0], -1)

    def denoise(x: Image, cur: Level, nxt: Level) -> Estimate:
        alpha, sigma = (jnp.broadcast_to(v, x.shape[:1])[:, None] for v in cur)
        rows = x.reshape(x.shape[0], -1)
        # |x - alpha x_i|^2 less |x|^2, which all share.
        square = jnp.square(alpha) * jnp.sum(jnp.square(flat), axis=-1) - 2 * alpha * rows @ flat.T
        p = jax.nn.softmax(-0.5 * square / jnp.square(sigma), axis=-1)
        return gaussian.from_x0(cur, x, (p @ flat).reshape(x.shape))

    return denoise


def network(prediction: Prediction, denoise: Denoise) -> ApplyFn:
    """A network whose output, read as `prediction`, is this belief."""

    def apply(params: Params, x: Image, cur: Level, nxt: Level, cond: Cond, key=None) -> Image:
        believed = denoise(x, cur, nxt)
        return gaussian.target(prediction, cur, believed.x0, believed.eps)

    return apply
