"""Rays through a square picture: line integrals, and filtered back-projection.

Positions are (x, y) = (column, row) - n // 2. The view at the angle a has the axes

    e_t = (cos a, -sin a) along the detector,      e_s = (sin a, cos a) along its middle ray

and the detector at t, counted in pixels on the line through the middle, sees along the ray through t e_t with the
direction  u = (e_s + (t / D) e_t) / |.|,  the source being at -D e_s. Parallel rays have 1 / D = 0. A line integral is
the sum of the picture, interpolated bilinearly and 0 beyond its edges, at points one pixel apart, over n: the mean
along a line as long as a side.

Back-projection of the views p(t), filtered by the ramp |f| after weighting by 1 / sqrt(1 + (t/D)^2):

    x(q) = n d_a share sum_a (ramp * p)(t(q)) / U^2,       U = 1 + q.e_s / D,   t(q) = q.e_t / U

d_a being the step of the angle and `share` 1, or 1/2 where the views go all the way round.
Source: Kak and Slaney, "Principles of Computerized Tomographic Imaging", 1988, Eq. 3.34 (ramp) and Sec. 3.4.2 (fan).
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Image = Float[Array, "b n n c"]
Sinogram = Float[Array, "b views detectors c"]


@dataclasses.dataclass(frozen=True)
class Rays:
    """Views of a picture of n x n pixels."""

    n: int
    """Side of the picture."""
    views: int
    """Angles, evenly spaced from 0 on."""
    arc: float
    """Degrees that they are spread over."""
    nearness: float = 0.0
    """1 / D, in 1 / pixels; 0: parallel rays."""

    @property
    def detectors(self) -> int:
        """So many that the picture's corners are seen from everywhere."""
        if self.nearness == 0:
            return self.n + math.ceil((math.sqrt(2) - 1) * self.n)
        reach = self.n / math.sqrt(2) + 1
        return 2 * math.ceil(reach / math.sqrt(1 - (reach * self.nearness) ** 2)) + 1

    @property
    def angles(self) -> Float[np.ndarray, "views"]:
        """In radians."""
        return np.deg2rad(self.arc * np.arange(self.views) / self.views).astype(np.float32)


def points(rays: Rays, angle: Float[Array, ""]) -> tuple[Float[Array, "d s"], Float[Array, "d s"]]:
    """(rows, columns) of the points on the rays of one view."""
    steps = rays.n + math.ceil((math.sqrt(2) - 1) * rays.n)
    t = jnp.arange(rays.detectors)[:, None] - rays.detectors // 2
    s = jnp.arange(steps)[None] - steps // 2
    bend = t * rays.nearness
    length = jnp.sqrt(1 + jnp.square(bend))
    # From the ray's nearest point to the middle, along its direction.
    along_t, along_s = t + (s - t * bend / length) * bend / length, (s - t * bend / length) / length
    x = along_t * jnp.cos(angle) + along_s * jnp.sin(angle)
    y = -along_t * jnp.sin(angle) + along_s * jnp.cos(angle)
    return y + rays.n // 2, x + rays.n // 2


def corners(rays: Rays, angle: Float[Array, ""]) -> tuple[Array, Array, Array]:
    """(rows, columns, weights) of the four pixels around each point, [4, d, s]; the weight is 0 beyond the edges."""
    row, column = points(rays, angle)
    top, left = jnp.floor(row), jnp.floor(column)
    down, right = jnp.array([0, 0, 1, 1])[:, None, None], jnp.array([0, 1, 0, 1])[:, None, None]
    weight = jnp.abs(1 - down - (row - top)) * jnp.abs(1 - right - (column - left))
    rows, columns = (top + down).astype(int), (left + right).astype(int)
    inside = (rows >= 0) & (rows < rays.n) & (columns >= 0) & (columns < rays.n)
    return jnp.clip(rows, 0, rays.n - 1), jnp.clip(columns, 0, rays.n - 1), jnp.where(inside, weight, 0.0)


def project(rays: Rays, x: Image) -> Sinogram:
    """The line integrals, view after view: nothing is kept of a view but its sums."""

    def view(angle: Float[Array, ""]) -> Float[Array, "b d c"]:
        rows, columns, weights = corners(rays, angle)
        sums = [
            jnp.sum(w[None, ..., None] * x[:, r, c], axis=2) for r, c, w in zip(rows, columns, weights, strict=True)
        ]
        return functools.reduce(jnp.add, sums)

    return jnp.moveaxis(jax.lax.map(view, jnp.asarray(rays.angles)), 0, 1) / rays.n


def matrix(rays: Rays) -> Float[np.ndarray, "rays pixels"]:
    """The line integrals as a matrix on the pixels of one channel."""
    found = np.zeros((rays.views, rays.detectors, rays.n * rays.n))
    detector = np.arange(rays.detectors)[None, :, None]
    of_view = jax.jit(lambda angle: corners(rays, angle))
    for view, angle in zip(found, rays.angles, strict=True):
        rows, columns, weights = map(np.asarray, of_view(angle))
        np.add.at(view, (np.broadcast_to(detector, rows.shape), rows * rays.n + columns), weights)
    return found.reshape(-1, rays.n * rays.n) / rays.n


def back_projection(rays: Rays, y: Sinogram) -> Image:
    """Filtered back-projection."""
    t = np.arange(rays.detectors) - rays.detectors // 2
    weights = 1 / np.sqrt(1 + (t * rays.nearness) ** 2)
    size = 2 ** math.ceil(math.log2(2 * rays.detectors))
    filtered = jnp.fft.rfft(y * jnp.asarray(weights, jnp.float32)[:, None], n=size, axis=2)
    response = jnp.asarray(np.fft.rfft(ramp(size)).real, jnp.float32)[:, None]
    filtered = jnp.fft.irfft(filtered * response, n=size, axis=2)[:, :, : rays.detectors]
    row, column = np.mgrid[: rays.n, : rays.n] - rays.n // 2

    def view(inputs: tuple[Float[Array, ""], Float[Array, "b d c"]]) -> Float[Array, "b n n c"]:
        angle, p = inputs
        along_t = column * jnp.cos(angle) - row * jnp.sin(angle)
        near = 1 + rays.nearness * (column * jnp.sin(angle) + row * jnp.cos(angle))
        place = along_t / near + rays.detectors // 2
        low = jnp.floor(place).astype(int)
        share = (place - low)[None, ..., None]
        below, above = (p[:, jnp.clip(i, 0, rays.detectors - 1)] for i in (low, low + 1))
        return ((1 - share) * below + share * above) / jnp.square(near)[None, ..., None]

    parts = jax.lax.map(view, (jnp.asarray(rays.angles), jnp.moveaxis(filtered, 1, 0)))
    step = math.radians(rays.arc) / rays.views * min(1.0, 180 / rays.arc)
    return rays.n * step * jnp.sum(parts, axis=0)


def ramp(size: int) -> Float[np.ndarray, "size"]:
    """The ramp |f| as a filter of samples one apart, the one at 0 first: 1/4, and -1 / (pi k)^2 at odd k."""
    k = np.fft.fftfreq(size, 1 / size).round()
    odd = k % 2 == 1
    found = np.zeros(size)
    found[0] = 0.25
    found[odd] = -1 / (np.pi * k[odd]) ** 2
    return found
