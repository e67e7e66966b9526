"""Convolutions and their gradients, said to XLA in the way in which a CPU is fast at them.

    y[p] = sum over taps t of x[p + t] k[t]                    3x3, zeros outside of the image
    dL/dx[p] = sum over taps t of dL/dy[p + t] k[-t]^T
    dL/dk[t] = sum over images and pixels p of x[p + t]^T dL/dy[p]

The second line is a convolution too. XLA's kernels for CPUs want theirs in the order of axes of the first, which a
pass over the program brings about, but not inside loops; there it takes ten times as long. `to_transpose` makes it be
in that order from the start.

XLA computes the third line as a convolution whose kernel is as large as the image. On a CPU that takes up to three
times as long as a product of the pixels by their nine neighbours, which is made here for a few images at a time, so
that the neighbours stay in the cache.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero, linear_call
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from jaxdiff.networks.axes import free_axes, program_platform, spread

LARGE = 16 * 16
"""Pixels from which products are the faster: measured with 48 to 512 channels."""

AT_A_TIME = 32 * 32
"""Pixels whose neighbours are made at a time, or those of one image."""


def pointwise(
    x: Float[Array, "b h w c"], kernel: Float[Array, "1 1 c d"], *_: object, **__: object
) -> Float[Array, "b h w d"]:
    """A 1x1 convolution: one matrix product. What `nn.Conv` passes after the kernel is not used, here and below."""
    return x @ kernel[0, 0]


def convolution(
    x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c d"], *_: object, **__: object
) -> Float[Array, "b h w d"]:
    """A 3x3 convolution with zeros outside of the image.

    On a CPU its gradient by the kernel cannot be vectorised (`jax.vmap`) or differentiated again, for large images.
    """
    return on_cpu(x, kernel) if program_platform() == "cpu" else plain(x, kernel)


def plain(x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c d"]) -> Float[Array, "b h w d"]:
    """XLA's convolution, whose gradients are XLA's as well: the reference."""
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


@jax.custom_jvp
def on_cpu(x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c d"]) -> Float[Array, "b h w d"]:
    """`plain`, whose gradients are convolutions in XLA's order, and by the kernel of large images products."""
    return plain(x, kernel)


def _derivative(primals: tuple[Array, Array], tangents: tuple[Any, Any]) -> tuple[Array, Array]:
    (x, kernel), (dx, dkernel) = primals, tangents
    parts = []
    if not isinstance(dx, SymbolicZero):
        parts.append(to_transpose(dx, kernel))
    if not isinstance(dkernel, SymbolicZero):
        large = math.prod(x.shape[1:3]) >= LARGE and x.dtype == kernel.dtype == jnp.float32
        parts.append(linear_call(plain, kernel_gradient, x, dkernel) if large else plain(x, dkernel))
    return on_cpu(x, kernel), sum(parts[1:], parts[0])


on_cpu.defjvp(_derivative, symbolic_zeros=True)


@jax.custom_jvp
def to_transpose(dx: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c d"]) -> Float[Array, "b h w d"]:
    """`plain` with a kernel of turned axes, which JAX turns back where it transposes by the image."""
    order = ("NHWC", "HWOI", "NHWC")
    return jax.lax.conv_general_dilated(dx, kernel.swapaxes(2, 3), (1, 1), "SAME", dimension_numbers=order)


to_transpose.defjvp(_derivative, symbolic_zeros=True)


def kernel_gradient(x: Float[Array, "b h w c"], dy: Float[Array, "b h w d"]) -> Float[Array, "3 3 c d"]:
    """The gradient by the kernel, of each device's images, then summed over the mesh in force."""
    axes = spread("batch", x.shape[0])
    if not free_axes():
        return of_images(x, dy)

    def summed(x: Array, dy: Array) -> Array:
        return jax.lax.psum(of_images(x, dy), axes)

    images = PartitionSpec(axes)
    return jax.shard_map(summed, in_specs=(images, images), out_specs=PartitionSpec(), check_vma=False)(x, dy)


def of_images(x: Float[Array, "b h w c"], dy: Float[Array, "b h w d"]) -> Float[Array, "3 3 c d"]:
    """The gradient by the kernel, by products of a few images each."""
    b, h, w, c = x.shape
    d = dy.shape[-1]
    count = max(n for n in range(1, b + 1) if b % n == 0 and (n == 1 or n * h * w <= AT_A_TIME))
    # The taps of the narrower one; x seen from dy is dy seen from x in a mirror. The wider operand is on the right.
    mirrored = d < c
    left, right = (x, dy) if mirrored else (dy, x)

    def add(total: Array, pair: tuple[Array, Array]) -> tuple[Array, None]:
        pixels, images = pair
        return total + pixels.reshape(-1, pixels.shape[-1]).T @ neighbours(images).reshape(-1, total.shape[1]), None

    total = jnp.zeros((left.shape[-1], 9 * right.shape[-1]))
    few = [a.reshape(b // count, count, h, w, a.shape[-1]) for a in (left, right)]
    total = jax.lax.scan(add, total, (few[0], few[1]))[0].reshape(left.shape[-1], 3, 3, right.shape[-1])
    return total[:, ::-1, ::-1].transpose(1, 2, 0, 3) if mirrored else total.transpose(1, 2, 3, 0)


def neighbours(x: Float[Array, "b h w c"]) -> Float[Array, "b h w 9*c"]:
    """Each pixel's 3x3 neighbours, one after the other; zeros outside of the image."""
    h, w = x.shape[1:3]
    wide = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return jnp.concatenate([wide[:, i : i + h, j : j + w] for i in range(3) for j in range(3)], axis=-1)
