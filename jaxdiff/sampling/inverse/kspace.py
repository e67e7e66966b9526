"""Magnetic resonance imaging: places of k-space, seen by coils.

    y_c = M F (S_c x)        F the centred orthonormal Fourier transform, M the places visited, S_c the sensitivities

with sum_c |S_c|^2 = 1. A measurement is [coils, h, w, channels, 2], real and imaginary parts last, and 0 where the scan
does not go. Pictures are real, each channel one of its own (magnitudes without phase); `complex_image` takes the two
channels of a picture as real and imaginary part.

With one coil the Fourier transform decomposes A: the singular values of complex pictures are those of M. A real
picture has conjugate coefficients at k and -k, so their squares are (M(k) + M(-k)) / 2. With several coils `solve` goes
by conjugate gradients.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

from jaxdiff.sampling.inverse import kspace_masks
from jaxdiff.sampling.inverse.operator import Arrays, Image, Linear, Measured, Shape, from_forward, from_svd, inverse

PLANE = (-3, -2)
"""Axes of the picture in [..., h, w, channels]."""


@dataclasses.dataclass(frozen=True)
class Cartesian:
    """Whole columns of k-space."""

    acceleration: float = 4.0
    """Places over places visited, above 1."""
    centre: float = 0.08
    """Share of the columns, in the middle, that are all visited."""
    coils: int = 1
    """Receivers; with more than one, or with the array "sensitivities", each sees the picture in its own light."""
    complex_image: bool = False
    """Whether the picture's two channels are a real and an imaginary part."""
    seed: int = 0
    """Which columns."""

    def __post_init__(self) -> None:
        check_numbers(self.acceleration, self.coils)

    def on(self, shape: Shape, arrays: Arrays) -> Linear:
        mask = kspace_masks.cartesian(*shape[:2], self.acceleration, self.centre, self.seed)
        return scanned(shape, mask, self.coils, self.complex_image, arrays)


@dataclasses.dataclass(frozen=True)
class Radial:
    """Spokes through the middle of k-space, on the nearest places of the grid."""

    acceleration: float = 4.0
    """Places over places visited, above 1, up to one spoke."""
    coils: int = 1
    """Receivers."""
    complex_image: bool = False
    """Whether the picture's two channels are a real and an imaginary part."""

    def __post_init__(self) -> None:
        check_numbers(self.acceleration, self.coils)

    def on(self, shape: Shape, arrays: Arrays) -> Linear:
        mask = kspace_masks.radial(*shape[:2], self.acceleration)
        return scanned(shape, mask, self.coils, self.complex_image, arrays)


@dataclasses.dataclass(frozen=True)
class PoissonDisc:
    """Places that keep a distance from each other, denser in the middle."""

    acceleration: float = 4.0
    """Places over places visited, above 1."""
    centre: float = 0.12
    """Side of the square in the middle that is all visited, as a share of k-space's."""
    coils: int = 1
    """Receivers."""
    complex_image: bool = False
    """Whether the picture's two channels are a real and an imaginary part."""
    seed: int = 0
    """Which places."""

    def __post_init__(self) -> None:
        check_numbers(self.acceleration, self.coils)

    def on(self, shape: Shape, arrays: Arrays) -> Linear:
        mask = kspace_masks.poisson_disc(*shape[:2], self.acceleration, self.centre, self.seed)
        return scanned(shape, mask, self.coils, self.complex_image, arrays)


def check_numbers(acceleration: float, coils: int) -> None:
    """Raises: ValueError for numbers that no scan has."""
    if not acceleration > 1:
        raise ValueError(f"acceleration = {acceleration} is not allowed: above 1 (--operator)")
    if not 1 <= coils <= 64:
        raise ValueError(f"coils = {coils} is not allowed: 1 to 64 (--operator)")


def scanned(shape: Shape, mask: Float[np.ndarray, "h w"], coils: int, complex_image: bool, arrays: Arrays) -> Linear:
    """The scan with this mask, or with the arrays "kspace_mask" [h, w] and "sensitivities" [coils, h, w].

    Raises: ValueError where these, or the picture's channels, do not fit.
    """
    h, w, c = shape
    if complex_image and c != 2:
        raise ValueError(f"complex_image is not allowed for pictures of {c} channels: it needs 2 (--operator)")
    mask = np.asarray(arrays.get("kspace_mask", mask))
    if mask.shape != (h, w) or not np.isin(mask, (0, 1)).all():
        raise ValueError(f"kspace_mask {mask.shape} is not allowed: 0 and 1 of the shape ({h}, {w}) (--arrays)")
    if "sensitivities" not in arrays and coils == 1:
        return one_coil(shape, mask.astype(np.float32), complex_image)
    sensitivities = np.asarray(arrays.get("sensitivities", smooth_coils(coils, h, w)))
    if sensitivities.ndim != 3 or sensitivities.shape[1:] != (h, w):
        raise ValueError(f"sensitivities {sensitivities.shape} are not allowed: (coils, {h}, {w}) (--arrays)")
    return many_coils(shape, mask.astype(np.float32), sensitivities, complex_image)


def transform(z: Complex[Array, "*n h w c"]) -> Complex[Array, "*n h w c"]:
    """The centred orthonormal Fourier transform: position and frequency 0 at (h // 2, w // 2)."""
    z = jnp.fft.fft2(jnp.fft.ifftshift(z, axes=PLANE), axes=PLANE, norm="ortho")
    return jnp.fft.fftshift(z, axes=PLANE)


def inverse_transform(z: Complex[Array, "*n h w c"]) -> Complex[Array, "*n h w c"]:
    """The inverse of `transform`."""
    z = jnp.fft.ifft2(jnp.fft.ifftshift(z, axes=PLANE), axes=PLANE, norm="ortho")
    return jnp.fft.fftshift(z, axes=PLANE)


def mirrored(z: Array) -> Array:
    """z at -k, for [..., h, w, channels]."""
    for axis in PLANE:
        z = jnp.roll(jnp.flip(z, axis), 1 - z.shape[axis] % 2, axis)
    return z


def one_coil(shape: Shape, mask: Float[np.ndarray, "h w"], complex_image: bool) -> Linear:
    """A scan by one coil that sees all alike."""
    h, w, c = shape
    m = jnp.asarray(mask)[..., None]
    measured, seen = (1, h, w, 1 if complex_image else c, 2), mask[..., None, None]
    if complex_image:
        return from_svd(
            shape,
            measured,
            mask[..., None],
            into_v=lambda x: transform(_complex(x, True)),
            from_v=lambda z: _real(inverse_transform(z), True),
            into_u=lambda y: _coils(y)[:, 0],
            from_u=lambda z: _pairs(z[:, None]),
            seen=seen,
        )
    values = jnp.sqrt((m + mirrored(m)) / 2)
    share = m * inverse(values)  # of a coefficient's measurement at k, in units of its singular value

    def into_u(y: Measured) -> Array:
        z = share * _coils(y)[:, 0]
        return (z + jnp.conj(mirrored(z))) / 2

    return from_svd(
        shape,
        measured,
        np.asarray(values),
        into_v=lambda x: transform(_complex(x, False)),
        from_v=lambda z: _real(inverse_transform(z), False),
        into_u=into_u,
        from_u=lambda z: _pairs((share * z)[:, None]),
        onto=False,
        seen=seen,
    )


def many_coils(shape: Shape, mask: Float[np.ndarray, "h w"], sensitivities: np.ndarray, complex_image: bool) -> Linear:
    """A scan by several coils."""
    h, w, c = shape
    m = jnp.asarray(mask)[..., None]
    s = jnp.asarray(sensitivities, jnp.complex64)[..., None]

    def forward(x: Image) -> Measured:
        return _pairs(m * transform(s * _complex(x, complex_image)[:, None]))

    measured = (sensitivities.shape[0], h, w, 1 if complex_image else c, 2)
    return from_forward(shape, measured, forward, floor=1e-3, seen=mask[..., None, None])


def smooth_coils(coils: int, h: int, w: int) -> Complex[np.ndarray, "coils h w"]:
    """Made-up sensitivities: Gaussians around places on a circle, each with a phase of its own that turns slowly."""
    y, x = np.meshgrid(np.linspace(-1, 1, h), np.linspace(-1, 1, w), indexing="ij")
    angle = 2 * np.pi * np.arange(coils)[:, None, None] / coils
    distance = np.square(x - np.cos(angle)) + np.square(y - np.sin(angle))
    found = np.exp(-distance / 1.5 + 1j * (angle + 0.5 * np.pi * (x * np.cos(angle) + y * np.sin(angle))))
    return found / np.sqrt(np.sum(np.abs(found) ** 2, axis=0))


def _complex(x: Image, complex_image: bool) -> Array:
    return complex_of(x[..., :1], x[..., 1:]) if complex_image else x.astype(jnp.complex64)


def _real(z: Array, complex_image: bool) -> Image:
    return jnp.concatenate([z.real, z.imag], axis=-1) if complex_image else z.real


def _coils(y: Measured) -> Complex[Array, "b coils h w c"]:
    return complex_of(y[..., 0], y[..., 1])


def _pairs(z: Complex[Array, "b coils h w c"]) -> Measured:
    return jnp.stack([z.real, z.imag], axis=-1)


def complex_of(real: Array, imaginary: Array) -> Array:
    """real + i imaginary."""
    return real + 1j * imaginary
