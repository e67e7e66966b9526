"""A weight of the loss that is learned: u(noise), the logarithm of the error that is to be expected at a noise level.

    E[ e^-u L(noise) + u ],      least where u = ln L(noise): then every noise level has the same share of the gradient

    u(noise) = fourier(noise) w / sqrt(n),      w of root mean square one

Its one layer lies beside the network's parameters, and only training reads it. Source: arXiv:2312.02696, Eq. 21.
"""

import math

import jax
from jaxtyping import Array, Float, Key

from jaxdiff.core.magnitudes import fourier, sphere
from jaxdiff.core.types import Params


def init_params(key: Key[Array, ""], features: int) -> Params:
    """The weights of so many Fourier features, on their sphere."""
    return {"kernel": sphere(jax.random.normal(key, (features, 1)))}


def log_uncertainty(params: Params, noise: Float[Array, "b"]) -> Float[Array, "b"]:
    """u at these noise inputs (``c_noise`` of a prediction)."""
    kernel = params["kernel"]
    return (fourier(noise, len(kernel)) @ sphere(kernel))[:, 0] / math.sqrt(len(kernel))
