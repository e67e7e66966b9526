"""Codecs: between pictures and the space in which diffusion runs.

An encoder may give a normal distribution over latents in place of one latent (`Posterior`). Large pictures are
encoded and decoded in overlapping tiles (`tiled`), whose weights in the sum are one wherever only one tile lies and::

    w(p) = clip((p - overlap / 4) / (overlap / 2), 0, 1)            p from a tile's inner edge to the pixel's middle

where two overlap, divided by their sum. The outer quarter of an overlap counts for nothing, since there a tile's
convolutions saw zeros in place of the neighbour.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Images = Float[Array, "b h w c"]
Latents = Float[Array, "b h2 w2 c2"]


class Codec(NamedTuple):
    """``encode`` takes pictures in [-1, 1] to latents, ``decode`` latents to pictures; each picture by itself."""

    encode: Callable[[Images], Latents]
    decode: Callable[[Latents], Images]


class Opened(NamedTuple):
    """A codec, and what a record must say of it."""

    codec: Codec
    """A half whose file was not named raises ValueError when it is asked."""
    name: str
    sha256: tuple[str, ...]
    """Of the files, in the order in which they were named."""
    factor: int
    """Pixels a side for each latent pixel."""
    channels: int
    """Channels of a latent pixel."""


class Posterior(NamedTuple):
    """A normal distribution over latents whose entries are independent."""

    mean: Latents
    logvar: Latents
    """Natural logarithm of the variance."""

    def at(self, noise: Latents) -> Latents:
        """``mean + std * noise``."""
        return self.mean + jnp.exp(0.5 * self.logvar) * noise

    def kl(self) -> Float[Array, "b"]:
        """KL(N(mean, var) || N(0, 1)) = sum (mean^2 + var - 1 - log var) / 2 for each picture, in nats, from 0 on."""
        return 0.5 * jnp.sum(jnp.square(self.mean) + jnp.expm1(self.logvar) - self.logvar, axis=(1, 2, 3))


IDENTITY = Codec(lambda x: x, lambda z: z)
"""Diffusion in pixels."""


def normalised(codec: Codec, mean: Sequence[float], std: Sequence[float]) -> Codec:
    """The codec between pictures and ``(z - mean) / std``, channel by channel, z being the latents of `codec`."""

    def encode(x: Images) -> Latents:
        return (codec.encode(x) - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)

    def decode(z: Latents) -> Images:
        return codec.decode(z * jnp.asarray(std, jnp.float32) + jnp.asarray(mean, jnp.float32))

    return Codec(encode, decode)


def sliced(codec: Codec) -> Codec:
    """The same codec, one picture at a time: the memory of one serves any batch."""

    def one_by_one(half: Callable[[Array], Array]) -> Callable[[Array], Array]:
        return lambda x: jnp.concatenate([half(x[i : i + 1]) for i in range(x.shape[0])])

    return Codec(one_by_one(codec.encode), one_by_one(codec.decode))


def tiled(codec: Codec, tile: int, overlap: int, factor: int) -> Codec:
    """The codec in square tiles of `tile` latent pixels, at least `overlap` of which are shared by neighbours.

    A latent pixel stands for `factor` pixels a side. What fits into one tile is left to `codec`. Where no output of
    `codec` depends on inputs farther away than a quarter of the overlap, nothing changes; statistics and attention over
    whole pictures do. All tiles are of one size, so one compilation serves them; diffusers' are ragged at the right and
    below, and count with their outermost pixels too, whose neighbours they have not seen.

    Raises ValueError for an overlap outside 0 ... tile - 1.
    """
    if not 0 <= overlap < tile:
        raise ValueError(f"an overlap of {overlap} is not allowed for tiles of {tile} latent pixels: 0 to {tile - 1}")

    def encode(x: Images) -> Latents:
        return _in_tiles(codec.encode, x, (x.shape[1] // factor, x.shape[2] // factor), factor, 1)

    def decode(z: Latents) -> Images:
        return _in_tiles(codec.decode, z, z.shape[1:3], 1, factor)

    def _in_tiles(half: Callable, x: Array, sides: tuple[int, ...], inner: int, outer: int) -> Array:
        """`inner`, `outer`: pixels of what is read and of what is written for each latent pixel."""
        if max(sides) <= tile:
            return half(x)
        rows, columns = (tile_starts(side, tile, overlap) for side in sides)
        high, wide = (min(side, tile) for side in sides)
        down, across = (tile_weights(side, tile, overlap, outer) for side in sides)
        out = None
        for i, top in enumerate(rows):
            for j, left in enumerate(columns):
                part = half(x[:, top * inner : (top + high) * inner, left * inner : (left + wide) * inner])
                weight = np.outer(down[i], across[j])[None, :, :, None]
                if out is None:
                    out = jnp.zeros((part.shape[0], sides[0] * outer, sides[1] * outer, part.shape[3]), part.dtype)
                there = slice(top * outer, (top + high) * outer), slice(left * outer, (left + wide) * outer)
                out = out.at[:, there[0], there[1]].add(weight * part)
        assert out is not None
        return out

    return Codec(encode, decode)


def tile_starts(size: int, tile: int, overlap: int) -> tuple[int, ...]:
    """Where tiles of `tile` pixels begin that cover `size` of them: as few as share at least `overlap`, evenly."""
    if size <= tile:
        return (0,)
    count = 1 - (size - tile) // (overlap - tile)  # rounded up
    return tuple(i * (size - tile) // (count - 1) for i in range(count))


def tile_weights(size: int, tile: int, overlap: int, scale: int = 1) -> Float[np.ndarray, "tiles n"]:
    """The weights of each tile's pixels along an axis, `scale` of them for each of those of `tile_starts`.

    At every place the weights of the tiles that cover it add up to one.
    """
    starts, length = tile_starts(size, tile, overlap), min(size, tile) * scale
    middles, ramp = np.arange(length) + 0.5, max(overlap * scale / 2, 1e-6)
    rise = np.clip((middles - ramp / 2) / ramp, 0, 1)
    found = np.ones((len(starts), length))
    found[1:] *= rise  # the picture's own edges are no seams
    found[:-1] *= rise[::-1]
    total = np.zeros(size * scale)
    for start, weight in zip(starts, found, strict=True):
        total[start * scale : start * scale + length] += weight
    parts = [weight / total[s * scale : s * scale + length] for s, weight in zip(starts, found, strict=True)]
    return np.stack(parts).astype(np.float32)
