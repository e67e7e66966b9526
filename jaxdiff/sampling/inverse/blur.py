"""Blur: y = k * x, with a kernel of weights that add up to 1.

`circular`: the picture goes on at its other side, and the Fourier transform decomposes A, with the singular values
|k^|. Otherwise all is black beyond its edges: the Gaussian's matrices along each axis are decomposed, and motion is
inverted by conjugate gradients.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdiff.sampling.inverse.operator import Arrays, Image, Linear, Measured, Shape, from_forward, from_svd
from jaxdiff.sampling.inverse.separable import separable

AXES = (1, 2)

CUT = 0.01
"""Singular values below this, times the largest, count as 0 where they are divided by: a blur takes finer structures
than that below the grey levels of a file."""


@dataclasses.dataclass(frozen=True)
class GaussianBlur:
    """A Gaussian kernel."""

    std: float = 1.5
    """Its standard deviation, in pixels."""
    circular: bool = True
    """Whether the picture goes on at its other side; otherwise all is black beyond its edges."""

    def __post_init__(self) -> None:
        if not self.std > 0:
            raise ValueError(f"std = {self.std} is not allowed: above 0 (--operator blur)")

    def on(self, shape: Shape, arrays: Arrays) -> Linear:
        h, w, _ = shape
        reach = int(np.ceil(4 * self.std))
        offsets = np.arange(-reach, reach + 1)
        taps = np.exp(-0.5 * (offsets / self.std) ** 2)
        taps /= taps.sum()
        if self.circular:
            return circulant(shape, np.outer(taps, taps))
        return separable(shape, *(toeplitz(taps, n) for n in (h, w)), cut=CUT)


@dataclasses.dataclass(frozen=True)
class MotionBlur:
    """A straight line, of even weight."""

    length: float = 9.0
    """Its length in pixels."""
    angle: float = 45.0
    """Its direction in degrees, from the right upwards."""
    circular: bool = True
    """Whether the picture goes on at its other side; otherwise all is black beyond its edges."""

    def __post_init__(self) -> None:
        if not self.length >= 1:
            raise ValueError(f"length = {self.length} is not allowed: at least 1 (--operator motion)")

    def on(self, shape: Shape, arrays: Arrays) -> Linear:
        kernel = line(self.length, self.angle)
        return circulant(shape, kernel) if self.circular else bounded(shape, kernel)


def line(length: float, angle: float) -> Float[np.ndarray, "k k"]:
    """A line of this length through the middle, each of its points shared out bilinearly to the pixels around it."""
    reach = int(np.ceil(length / 2)) + 1
    places = np.linspace(-0.5, 0.5, 64 * reach) * (length - 1)
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1))
    row, column = reach - places * np.sin(np.deg2rad(angle)), reach + places * np.cos(np.deg2rad(angle))
    top, left = np.floor(row).astype(int), np.floor(column).astype(int)
    for down in (0, 1):
        for right in (0, 1):
            weight = np.abs(1 - down - (row - top)) * np.abs(1 - right - (column - left))
            np.add.at(kernel, (top + down, left + right), weight)
    return kernel / kernel.sum()


def toeplitz(taps: Float[np.ndarray, "k"], n: int) -> Float[np.ndarray, "n n"]:
    """Convolution with `taps`, whose middle is the one at 0, of n samples with zeros around them."""
    distance = np.arange(n)[:, None] - np.arange(n) + len(taps) // 2
    inside = (distance >= 0) & (distance < len(taps))
    return np.where(inside, taps[np.clip(distance, 0, len(taps) - 1)], 0.0)


def wrapped(kernel: Float[np.ndarray, "k l"], h: int, w: int) -> Float[np.ndarray, "h w"]:
    """The kernel on a torus of h x w pixels, its middle at (0, 0)."""
    found = np.zeros((h, w))
    rows, columns = (np.arange(n) - n // 2 for n in kernel.shape)
    np.add.at(found, (rows[:, None] % h, columns[None] % w), kernel)
    return found


def circulant(shape: Shape, kernel: Float[np.ndarray, "k l"]) -> Linear:
    """Circular convolution with the kernel, whose middle is the one at 0."""
    h, w, _ = shape
    response = np.fft.fft2(wrapped(kernel, h, w))[..., None]
    size = np.abs(response)
    phase = jnp.asarray(np.where(size > 1e-12, response / np.maximum(size, 1e-12), 1.0), jnp.complex64)

    def into(x: Image) -> Array:
        return jnp.fft.fft2(x, axes=AXES, norm="ortho")

    def out(z: Array) -> Image:
        return jnp.fft.ifft2(z, axes=AXES, norm="ortho").real

    return from_svd(
        shape,
        shape,
        size,
        into_v=into,
        from_v=out,
        into_u=lambda y: jnp.conj(phase) * into(y),
        from_u=lambda z: out(phase * z),
        cut=CUT,
    )


def bounded(shape: Shape, kernel: Float[np.ndarray, "k l"]) -> Linear:
    """Convolution with the kernel of pictures with zeros around them."""
    h, w, _ = shape
    high, wide = h + kernel.shape[0], w + kernel.shape[1]
    response = jnp.asarray(np.fft.rfft2(wrapped(kernel, high, wide))[..., None], jnp.complex64)

    def forward(x: Image) -> Measured:
        z = jnp.fft.rfft2(x, s=(high, wide), axes=AXES)
        return jnp.fft.irfft2(response * z, s=(high, wide), axes=AXES)[:, :h, :w]

    return from_forward(shape, shape, forward, floor=CUT**2)
