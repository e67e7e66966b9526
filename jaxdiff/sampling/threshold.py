"""Thresholding: the believed x0 is brought into the images' range; eps follows from x = alpha x0 + sigma eps.

Source: arXiv:2205.11487, Sec. 2.3.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiff.core import gaussian
from jaxdiff.core.types import Denoise, Estimate, Level, Transform

Image = Float[Array, "b h w c"]


def static(low: float = -1.0, high: float = 1.0) -> Transform:
    """x0 clipped to [low, high]."""

    def transform(denoise: Denoise) -> Denoise:
        def clipped(x: Image, cur: Level, nxt: Level) -> Estimate:
            x0, _, v = denoise(x, cur, nxt)
            return gaussian.from_x0(cur, x, jnp.clip(x0, low, high), v)

        return clipped

    return transform


def dynamic(quantile: float = 0.995) -> Transform:
    """x0 clipped to [-s, s] and divided by s, with s = max(1, that quantile of |x0|) image by image.

    Raises: ValueError if `quantile` is outside (0, 1].
    """
    if not 0 < quantile <= 1:
        raise ValueError(f"quantile = {quantile} is not allowed: above 0, at most 1")

    def transform(denoise: Denoise) -> Denoise:
        def clipped(x: Image, cur: Level, nxt: Level) -> Estimate:
            x0, _, v = denoise(x, cur, nxt)
            s = jnp.maximum(jnp.quantile(jnp.abs(x0), quantile, axis=(1, 2, 3), keepdims=True), 1.0)
            return gaussian.from_x0(cur, x, jnp.clip(x0, -s, s) / s, v)

        return clipped

    return transform
