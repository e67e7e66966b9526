"""Codecs: between pictures and the space in which diffusion runs."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

Images = Float[Array, "b h w c"]
Latents = Float[Array, "b h2 w2 c2"]


class Codec(NamedTuple):
    """``encode`` takes pictures in [-1, 1] to latents, ``decode`` latents to pictures; each picture by itself."""

    encode: Callable[[Images], Latents]
    decode: Callable[[Latents], Images]


IDENTITY = Codec(lambda x: x, lambda z: z)
"""Diffusion in pixels."""


def normalised(codec: Codec, mean: Sequence[float], std: Sequence[float]) -> Codec:
    """The codec between pictures and ``(z - mean) / std``, channel by channel, z being the latents of `codec`."""

    def encode(x: Images) -> Latents:
        return (codec.encode(x) - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)

    def decode(z: Latents) -> Images:
        return codec.decode(z * jnp.asarray(std, jnp.float32) + jnp.asarray(mean, jnp.float32))

    return Codec(encode, decode)
