"""Adaptive integration, each image with steps of its own, of fields that are computed for a whole batch.

The probability-flow ODE is integrated in the angle phi = atan2(sigma, alpha) of z = x / hypot(alpha, sigma), where

    z = cos(phi) x0 + sin(phi) eps,      dz/dphi = cos(phi) eps - sin(phi) x0

on every path, finite from alpha = 0 (phi = pi/2) to sigma = 0 (phi = 0). An image's steps depend on its own error
alone, so it is the same image in any batch.

diffrax chooses the steps. It is mapped over the images, and each of its calls of the field becomes one call for the
batch, images that are done or ahead included.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxdiff.core import gaussian
from jaxdiff.core.types import Denoise, Level

Image = Float[Array, "b h w c"]

Field = Callable[[Float[Array, "b"], PyTree[Float[Array, "b ..."]]], PyTree[Float[Array, "b ..."]]]
"""``(phi, z) -> dz/dphi``, each image at its own phi."""

HALF_PI = float(np.float32(np.pi / 2))
"""The angle of alpha = 0, in float32."""

FIRST_STEP = 0.01
"""The first step tried, in radians. A fixed one keeps the count of evaluations plain."""

STAGES = 6
"""Evaluations in a step of Dormand-Prince 5(4), whose seventh is the next step's first."""


def angle(level: Level) -> Float[Array, "*b"]:
    """phi = atan2(sigma, alpha), in radians from 0 (clean) to pi/2 (noise)."""
    return jnp.arctan2(level.sigma, level.alpha)


def at_angle(phi: Float[Array, "*b"]) -> Level:
    """The level alpha = cos(phi), sigma = sin(phi); alpha is exactly 0 at float32's pi/2, and never negative."""
    return Level(jnp.sin(HALF_PI - phi), jnp.sin(phi))


def probability_flow(denoise: Denoise) -> Field:
    """The field dz/dphi of images z = x / hypot(alpha, sigma). Needs phi > 0 where the denoiser needs sigma > 0."""

    def field(phi: Float[Array, "b"], z: Image) -> Image:
        level = at_angle(phi)
        x0, eps, _ = denoise(z, level, level)
        return gaussian.expand(level.alpha, z) * eps - gaussian.expand(level.sigma, z) * x0

    return field


def solve_each(
    field: Field,
    z: PyTree[Float[Array, "b ..."]],
    start: Float[Array, ""] | Float[Array, "b"],
    end: Float[Array, ""] | Float[Array, "b"],
    rtol: float,
    atol: float,
    max_steps: int = 4096,
) -> tuple[PyTree[Float[Array, "b ..."]], Int[Array, "b"], Bool[Array, "b"]]:
    """z at phi = `end`, how many evaluations of the field each image took, and whether it is there.

    Dormand-Prince 5(4). A step is taken if the root mean square over the image (over all its leaves) of
    error / (atol + rtol |z|) is below 1; an image is not there after `max_steps` of them, taken or refused, or where
    the field is not finite. `field` may close over traced arrays, and over arrays with an axis b. Not differentiable.
    """
    import diffrax
    import equinox as eqx

    b = jax.tree.leaves(z)[0].shape[0]
    start, end = (jnp.broadcast_to(phi, (b,)) for phi in (start, end))
    # What the field closes over becomes arguments, so that the rule below may be used inside diffrax's own traces.
    closed = eqx.filter_closure_convert(field, start, z)
    arrays, static = eqx.partition(closed, eqx.is_array)

    @jax.custom_batching.custom_vmap
    def field_of_one(phi, z, arrays):
        return jax.tree.map(lambda a: jnp.full_like(a, jnp.nan), z)  # there is no image outside the batch

    @field_of_one.def_vmap
    def field_of_all(axis_size, in_batched, phi, z, arrays):
        phi_batched, z_batched, _ = in_batched
        phi = phi if phi_batched else jnp.broadcast_to(phi, (axis_size,))
        z = jax.tree.map(lambda a, m: a if m else jnp.broadcast_to(a, (axis_size, *a.shape)), z, z_batched)
        return eqx.combine(arrays, static)(phi, z), jax.tree.map(lambda _: True, z)

    term = diffrax.ODETerm(lambda phi, z, arrays: field_of_one(phi, z, arrays))
    controller = diffrax.PIDController(rtol=rtol, atol=atol)

    def solve(start, end, z, arrays):
        solution = diffrax.diffeqsolve(
            term,
            diffrax.Dopri5(),
            start,
            end,
            jnp.where(end < start, -FIRST_STEP, FIRST_STEP),
            z,
            arrays,
            saveat=diffrax.SaveAt(t1=True),
            stepsize_controller=controller,
            adjoint=diffrax.ForwardMode(),
            max_steps=max_steps,
            throw=False,
        )
        there = solution.result == diffrax.RESULTS.successful
        return jax.tree.map(lambda a: a[0], solution.ys), solution.stats["num_steps"], there

    z, steps, there = jax.vmap(solve, in_axes=(0, 0, 0, None))(start, end, z, arrays)
    # The first step's first stage is no other step's last.
    return z, 1 + STAGES * steps, there
