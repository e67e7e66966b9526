"""Bits per dimension of 8-bit images: values u8 / 127.5 - 1 in [-1, 1], each in the middle of a bin of width 2/255.

A density p on such images gives the value x the mass P(x) = integral of p over its bin, and costs
-log2 P(x) / (h w c) bits per dimension.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Image = Float[Array, "b h w c"]

BIN = 2 / 255
"""Distance between neighbouring values, and so the width of a bin."""


def per_dim(nats: Float[Array, "*n"], x: Image) -> Float[Array, "*n"]:
    """Bits per dimension of this many nats per image of the shape of x."""
    return nats / (math.prod(x.shape[1:]) * math.log(2))


def value_nll(x0: Image, eps: Image, ratio: Float[Array, "*b"]) -> Image:
    """-log p(x0 | y) of y = x0 + ratio eps over the 256 values, elementwise, in nats.

    p(x0 | y) is proportional to N(y; x0, ratio**2). Source: arXiv:2107.00630, Eq. 12.
    """
    # log p = -eps**2 / 2 - logsumexp_k(-(eps + (x0 - x_k) / ratio)**2 / 2).
    r = ratio.reshape(ratio.shape + (1,) * (5 - ratio.ndim)) if ratio.ndim else ratio
    values = jnp.arange(256) / 127.5 - 1
    logits = -0.5 * jnp.square(eps[..., None] + (x0[..., None] - values) / r)
    return 0.5 * jnp.square(eps) + jax.nn.logsumexp(logits, axis=-1)
