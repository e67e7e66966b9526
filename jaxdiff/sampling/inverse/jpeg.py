"""JPEG: a picture as its file of a given quality decodes it.

    YCbCr of 0 ... 255; chroma halved by means of 2 x 2 pixels; in blocks of 8 x 8 the orthonormal cosine transform D,
    z = round(D b D^T / q) q,  b' = D^T z D;  chroma doubled by repetition; back to RGB, clipped

q are the standard's tables, scaled by quality as the Independent JPEG Group does. Rounding has the gradient 1
(straight through), so that methods which differentiate the measurement can be used. As a measurement the decoded
picture is its own pseudo-inverse: what it is made of is already what compression keeps.

Source: ITU-T T.81, Annex A.3.3, K.1 and K.2 (transform, tables); arXiv:2209.11888 (as an inverse problem).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdiff.sampling.inverse.operator import Arrays, Image, NonLinear, Shape

BLOCK = 8

LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMINANCE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
)
TO_YCC = (
    (0.299, 0.587, 0.114),
    (-0.168735892, -0.331264108, 0.5),
    (0.5, -0.418687589, -0.081312411),
)
"""From RGB, chroma around 0. Source: ITU-T T.871."""


@dataclasses.dataclass(frozen=True)
class JPEG:
    """Compression, of colour pictures or of grey ones."""

    quality: int = 10
    """1 to 100, as files are saved with."""
    subsample: bool = True
    """Whether chroma has half the resolution (4:2:0, which most files have)."""

    def __post_init__(self) -> None:
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality = {self.quality} is not allowed: 1 to 100 (--operator jpeg)")

    def on(self, shape: Shape, arrays: Arrays) -> NonLinear:
        c = shape[-1]
        if c not in (1, 3):
            raise ValueError(f"operator jpeg is not allowed for pictures of {c} channels: 1 or 3 (--operator)")
        luma, chroma = (table(base, self.quality) for base in (LUMINANCE, CHROMINANCE))
        into = jnp.asarray(TO_YCC, jnp.float32)
        back = jnp.asarray(np.linalg.inv(TO_YCC), jnp.float32)

        def forward(x: Image) -> Image:
            v = 127.5 * (x + 1)
            if c == 1:
                return _unit(_coded(v - 128, luma) + 128)
            ycc = _colours(into, v)
            y = _coded(ycc[..., :1] - 128, luma) + 128
            colours = _halved(ycc[..., 1:], chroma) if self.subsample else _coded(ycc[..., 1:], chroma)
            return _unit(_colours(back, jnp.concatenate([y, colours], axis=-1)))

        return NonLinear(shape, shape, forward, jnp.ones(()), pinv=lambda y: y)


def table(base: tuple[tuple[int, ...], ...], quality: int) -> Float[np.ndarray, "8 8"]:
    """The table of a quality: floor((base s + 50) / 100) in 1 ... 255, s = 5000 / quality below 50, else 200 - 2
    quality."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    return np.clip((np.array(base) * scale + 50) // 100, 1, 255).astype(np.float32)


def cosines() -> Float[np.ndarray, "8 8"]:
    """The orthonormal cosine transform of 8 samples."""
    k, i = np.meshgrid(np.arange(BLOCK), np.arange(BLOCK), indexing="ij")
    rows = np.sqrt(2 / BLOCK) * np.cos(np.pi * (2 * i + 1) * k / (2 * BLOCK))
    rows[0] /= np.sqrt(2)
    return rows.astype(np.float32)


def _colours(matrix: Float[Array, "3 3"], x: Image) -> Image:
    return jnp.einsum("ij,bhwj->bhwi", matrix, x, precision=jax.lax.Precision.HIGHEST)


def _unit(v: Image) -> Image:
    return jnp.clip(v, 0, 255) / 127.5 - 1


def _halved(x: Image, q: Float[np.ndarray, "8 8"]) -> Image:
    h, w = x.shape[1:3]
    x = _padded(x, 2)
    b, high, wide, c = x.shape
    small = jnp.mean(x.reshape(b, high // 2, 2, wide // 2, 2, c), axis=(2, 4))
    return jnp.repeat(jnp.repeat(_coded(small, q), 2, axis=1), 2, axis=2)[:, :h, :w]


def _coded(x: Image, q: Float[np.ndarray, "8 8"]) -> Image:
    h, w = x.shape[1:3]
    x = _padded(x, BLOCK)
    b, high, wide, c = x.shape
    blocks = x.reshape(b, high // BLOCK, BLOCK, wide // BLOCK, BLOCK, c)
    d, sharp = jnp.asarray(cosines()), jax.lax.Precision.HIGHEST
    z = jnp.einsum("ui,vj,bminjc->bmunvc", d, d, blocks, precision=sharp)
    steps = jnp.asarray(q)[:, None, :, None]
    z = z / steps
    # The value of the rounded number, with the gradient of the number itself.
    z = (z + jax.lax.stop_gradient(jnp.round(z) - z)) * steps
    return jnp.einsum("ui,vj,bmunvc->bminjc", d, d, z, precision=sharp).reshape(x.shape)[:, :h, :w]


def _padded(x: Image, side: int) -> Float[Array, "b H W c"]:
    h, w = x.shape[1:3]
    return jnp.pad(x, ((0, 0), (0, -h % side), (0, -w % side), (0, 0)), mode="edge")
