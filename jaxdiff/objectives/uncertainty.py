"""A weight of the loss that is learned: the logarithm u of the error that is to be expected at a noise level.

    E[ e^-u L(level) + u ],      least where u = ln L(level): then every noise level has the same share of the gradient

    u(level) = fourier(ln(sigma/alpha) / 4) w / sqrt(n),      w of root mean square one

Its one layer lies beside the network's parameters, and only training reads it. Source: arXiv:2312.02696, Eq. 21.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxdiff.core.gaussian import logsnr
from jaxdiff.core.magnitudes import fourier, sphere
from jaxdiff.core.types import Level, Params

ENDS = 5.0
"""What ln(sigma/alpha) / 4 is kept within, which is infinite at the ends of a path."""


def init_params(key: Key[Array, ""], features: int) -> Params:
    """The weights of so many Fourier features, on their sphere."""
    return {"kernel": sphere(jax.random.normal(key, (features, 1)))}


def log_uncertainty(params: Params, level: Level) -> Float[Array, "b"]:
    """u at these levels."""
    kernel = params["kernel"]
    noise = jnp.clip(-logsnr(level) / 8, -ENDS, ENDS)
    return (fourier(noise, len(kernel)) @ sphere(kernel))[:, 0] / math.sqrt(len(kernel))
