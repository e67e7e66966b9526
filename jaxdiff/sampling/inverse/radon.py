"""Computed tomography: line integrals of a picture along the rays of some views.

Sparse views are few of them, a limited angle is an arc below 180 degrees. The operator of few rays of a small picture
is decomposed once, so that every method can use it; others project anew each time, which needs no memory, and are
inverted by conjugate gradients. Either way the pseudo-inverse is filtered back-projection: the quick look that a
scanner gives, and no exact inverse where views are few.

With `photons` the measurement is that of a counting detector. A ray of line integral p (in intensities, black 0, white
1) lets exp(-attenuation p) of the photons pass, N of them are counted, and -log(N / photons) / attenuation is
measured, with a deviation of about 1 / (attenuation sqrt(N)).
Source: Kak and Slaney, 1988, Ch. 4 (counting).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from jaxdiff.sampling.inverse.operator import Arrays, Linear, Measured, Shape, check_square, from_forward, from_matrix
from jaxdiff.sampling.inverse.radon_rays import Rays, back_projection, matrix, project

MOST_WORK = 2.0**36
"""Largest max(m, n) min(m, n)^2 of m rays and n pixels whose operator is decomposed: half a minute of two CPU cores."""


@dataclasses.dataclass(frozen=True)
class CT:
    """Parallel rays."""

    views: int = 20
    """Angles from which the picture is seen."""
    arc: float = 180.0
    """Degrees that they are spread over."""
    photons: float = 0.0
    """Photons a ray, where they are counted; 0: noise of --noise."""
    attenuation: float = 3.0
    """With photons: the exponent of a white line as long as the picture."""

    def __post_init__(self) -> None:
        check_numbers(self.views, self.arc, self.photons, self.attenuation)

    def on(self, shape: Shape, arrays: Arrays) -> Linear:
        return seen_along(Rays(check_square(shape, "ct"), self.views, self.arc), shape)


@dataclasses.dataclass(frozen=True)
class FanCT:
    """Rays from a source that goes round the picture, to a flat detector."""

    views: int = 20
    """Places of the source."""
    arc: float = 360.0
    """Degrees that they are spread over."""
    distance: float = 2.0
    """From the source to the picture's middle, in sides of the picture."""
    photons: float = 0.0
    """Photons a ray, where they are counted; 0: noise of --noise."""
    attenuation: float = 3.0
    """With photons: the exponent of a white line as long as the picture."""

    def __post_init__(self) -> None:
        check_numbers(self.views, self.arc, self.photons, self.attenuation)
        if not self.distance >= 1:
            raise ValueError(f"distance = {self.distance} is not allowed: at least 1 (--operator ct-fan)")

    def on(self, shape: Shape, arrays: Arrays) -> Linear:
        n = check_square(shape, "ct-fan")
        return seen_along(Rays(n, self.views, self.arc, 1 / (self.distance * n)), shape)


def check_numbers(views: int, arc: float, photons: float, attenuation: float) -> None:
    """Raises: ValueError for numbers that no scan has."""
    if not 1 <= views <= 4096:
        raise ValueError(f"views = {views} is not allowed: 1 to 4096 (--operator)")
    if not 0 < arc <= 360:
        raise ValueError(f"arc = {arc} is not allowed: above 0, at most 360 degrees (--operator)")
    if not (photons == 0 or photons >= 1):
        raise ValueError(f"photons = {photons} is not allowed: at least 1, or 0 for noise of --noise (--operator)")
    if not attenuation > 0:
        raise ValueError(f"attenuation = {attenuation} is not allowed: above 0 (--operator)")


def seen_along(rays: Rays, shape: Shape) -> Linear:
    """The line integrals of pictures of this shape, channel by channel."""
    measured = (rays.views, rays.detectors, shape[-1])

    def pinv(y: Measured) -> Float[Array, "b n n c"]:
        return back_projection(rays, y)

    few, many = sorted((rays.views * rays.detectors, rays.n**2))
    if many * few**2 > MOST_WORK:
        return from_forward(shape, measured, lambda x: project(rays, x), pinv, floor=1e-4)
    return dataclasses.replace(from_matrix(shape, measured, matrix(rays), cut=1e-3), pinv=pinv)


def counted(
    key: Key[Array, ""], integrals: Float[Array, "..."], photons: float, attenuation: float
) -> Float[np.ndarray, "..."]:
    """What a counting detector makes of line integrals of intensities; a ray that nothing comes through counts 1."""
    counts = jax.random.poisson(key, photons * jnp.exp(-attenuation * integrals))
    return -np.log(np.maximum(np.asarray(counts, np.float64), 1) / photons) / attenuation


def counting_std(integrals: Float[np.ndarray, "..."], photons: float, attenuation: float) -> Float[np.ndarray, "..."]:
    """The deviation of such a measurement, as its own value tells it."""
    expected = photons * np.exp(-attenuation * np.asarray(integrals, np.float64))
    return 1 / (attenuation * np.sqrt(np.maximum(expected, 1)))
