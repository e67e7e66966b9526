"""Operators that act on columns and rows one after the other: y = R x C^T, channel by channel.

Their singular vectors are products of those of the two small matrices R and C, and so are their singular values.

    average     R_ij = 1/f for the f pixels of a block              A A^T = I / f^2
    bicubic     Keys' kernel with a = -1/2, stretched by f, its weights inside the picture adding up to 1: what Pillow
                and PyTorch (antialiased) do
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdiff.sampling.inverse.operator import Arrays, Image, Linear, Measured, Shape, from_frame, from_svd


@dataclasses.dataclass(frozen=True)
class Downsample:
    """Means of blocks of factor x factor pixels."""

    factor: int = 4
    """Side of a block."""

    def on(self, shape: Shape, arrays: Arrays) -> Linear:
        h, w, c = shape
        f = check_factor(self.factor, shape, "downsample")

        def forward(x: Image) -> Measured:
            return jnp.mean(x.reshape(-1, h // f, f, w // f, f, c), axis=(2, 4))

        def adjoint(y: Measured) -> Image:
            return jnp.repeat(jnp.repeat(y, f, axis=1), f, axis=2) / f**2

        return from_frame(shape, (h // f, w // f, c), forward, adjoint, 1 / f**2)


@dataclasses.dataclass(frozen=True)
class Bicubic:
    """Antialiased bicubic down-sampling."""

    factor: int = 4
    """By how much a side shrinks."""

    def on(self, shape: Shape, arrays: Arrays) -> Linear:
        f = check_factor(self.factor, shape, "bicubic")
        return separable(shape, cubic_matrix(shape[0], shape[0] // f), cubic_matrix(shape[1], shape[1] // f))


def check_factor(factor: int, shape: Shape, name: str) -> int:
    """The factor. Raises: ValueError where it does not divide the sides."""
    h, w, _ = shape
    if factor < 2 or h % factor or w % factor:
        raise ValueError(
            f"factor = {factor} is not allowed for pictures of {w}x{h}: at least 2, and a divisor of both sides "
            f"(--operator {name})"
        )
    return factor


def cubic_matrix(size: int, new: int) -> Float[np.ndarray, "new size"]:
    """The weights of bicubic resizing along one axis, as a matrix."""
    eye = jnp.eye(size, dtype=jnp.float32)
    rows = jax.image.resize(eye, (new, size), "cubic", antialias=True, precision=jax.lax.Precision.HIGHEST)
    return np.asarray(rows, np.float64)


def separable(
    shape: Shape, rows: Float[np.ndarray, "h2 h"], columns: Float[np.ndarray, "w2 w"], cut: float = 1e-4
) -> Linear:
    """y = rows x columns^T for each channel, with h2 <= h and w2 <= w."""
    h, w, c = shape
    (ur, sr, vr), (uc, sc, vc) = (np.linalg.svd(np.asarray(a, np.float64)) for a in (rows, columns))
    values = np.zeros((h, w, 1))
    values[: sr.size, : sc.size, 0] = np.outer(sr, sc)
    ur, vr, uc, vc = (jnp.asarray(a, jnp.float32) for a in (ur, vr.T, uc, vc.T))
    high, wide = rows.shape[0], columns.shape[0]

    def into_u(y: Measured) -> Array:
        return jnp.pad(_both(ur.T, uc.T, y), ((0, 0), (0, h - high), (0, w - wide), (0, 0)))

    return from_svd(
        shape,
        (high, wide, c),
        values,
        into_v=lambda x: _both(vr.T, vc.T, x),
        from_v=lambda z: _both(vr, vc, z),
        into_u=into_u,
        from_u=lambda z: _both(ur, uc, z[:, :high, :wide]),
        cut=cut,
    )


def _both(
    rows: Float[Array, "i h"], columns: Float[Array, "j w"], x: Float[Array, "b h w c"]
) -> Float[Array, "b i j c"]:
    return jnp.einsum("ih,jw,bhwc->bijc", rows, columns, x, precision=jax.lax.Precision.HIGHEST)
