"""What keeps magnitudes in EDM2's networks and in the learned uncertainty of their loss (arXiv:2312.02696).

sphere(w)     w / (|w| / sqrt(n) + 1e-4)     of the n weights of each output: a root mean square of one
fourier(t)    sqrt(2) cos(2 pi (f t + p))    of unit variance
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdiff.core.types import Params

EPS = 1e-4
"""Added to magnitudes that are divided by."""


def sphere(kernel: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
    """The weights of each output scaled to a root mean square of one. Source: arXiv:2312.02696, Eq. 47 and 66."""
    axes = tuple(range(kernel.ndim - 1))
    return kernel / (EPS + jnp.sqrt(jnp.square(kernel).mean(axes, keepdims=True)))


def on_sphere(params: Params) -> Params:
    """The parameters with all kernels as `sphere` gives them: the same network, but for rounding."""

    def normalised(path: tuple[Any, ...], leaf: Array) -> Array:
        return sphere(leaf) if path[-1].key == "kernel" else leaf

    return jax.tree_util.tree_map_with_path(normalised, params)


def fourier(
    noise: Float[Array, "b"], features: int, frequencies: tuple[float, ...] = (), phases: tuple[float, ...] = ()
) -> Float[Array, "b features"]:
    """``sqrt(2) cos(2 pi (f noise + p))``; f and p are constants, drawn where not given. Source: ibid., Eq. 75."""
    if len(frequencies) not in (0, features) or len(phases) != len(frequencies):
        raise ValueError(
            f"{len(frequencies)} frequencies and {len(phases)} phases for {features} features: as many, or none "
            "(--network.noise-features)"
        )
    random = np.random.RandomState(0)
    f = np.asarray(frequencies or random.standard_normal(features), np.float32)
    p = np.asarray(phases or random.uniform(size=features), np.float32)
    return math.sqrt(2) * jnp.cos(2 * jnp.pi * (noise.astype(jnp.float32)[:, None] * f + p))
