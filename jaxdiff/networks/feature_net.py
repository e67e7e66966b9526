"""A feature network with its weights: what the evaluation of generated images looks through."""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from jaxdiff.core.types import Params
from jaxdiff.networks.resize import Resize

Features = dict[str, Float[Array, "b _"]]
"""Float32 [b, d] by name: "features" always; "spatial", "logits" and others where the network has them."""


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureNet:
    """A network that turns pictures into features, and all that a record must say of it."""

    name: str
    """For records, with the release of the weights: "inception-2015-12-05"."""
    weights_sha256: str
    """Of the file of weights."""
    resize: str
    """How pictures are brought to `size`, by the name of a `jaxdiff.networks.resize.Resize`."""
    size: int
    """Pixels a side that the network looks at."""
    dims: int
    """Length of the vector "features"."""
    params: Params
    """Float32 parameters."""
    forward: Callable[[Params, UInt8[Array, "b h w c"]], Features]
    """(params, images) -> features by name. Pure, and compiled for each shape; `params` are an argument, so that they
    are placed once and are no constant of the program."""

    def apply(self, images: UInt8[Array, "b h w c"] | UInt8[np.ndarray, "b h w c"]) -> Features:
        """Features by name of pictures with 1 or 3 channels, each picture's from that picture alone."""
        return self.forward(self.params, jnp.asarray(images))


def resized(images: UInt8[Array, "b h w c"], resize: Resize, size: int) -> Float[Array, "b size size 3"]:
    """Float pixels on the scale of 0 to 255, of three channels, `size` x `size`."""
    pixels = resize.apply(images.astype(jnp.float32), size)
    return jnp.broadcast_to(pixels, (*pixels.shape[:3], 3))
