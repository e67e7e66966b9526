"""Resampling by two with a separable FIR filter, and space-to-depth.

With taps ``f`` normalised to sum one, per axis::

    down:  y[i] = sum_k f[k] x[2 i + k - p]           p = len(f) / 2 - 1, zeros outside
    up:    y[j] = 2 sum_i f[j - 2 i + p] x[i]         (the adjoint of ``down``, times 2)

``(1, 1)`` is average pooling and nearest-neighbour interpolation, ``(1, 3, 3, 1)`` the filter of NCSN++.
Source: arXiv:1904.11486 (why to filter), arXiv:2011.13456, App. H (its use in NCSN++).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def downsample(x: Float[Array, "b h w c"], taps: tuple[int, ...] = (1, 1)) -> Float[Array, "b h2 w2 c"]:
    """Half of the height and of the width. Raises ValueError for taps of odd length or sum 0."""
    for axis in (1, 2):
        x = _down(x, axis, _normalised(taps))
    return x


def upsample(x: Float[Array, "b h w c"], taps: tuple[int, ...] = (1, 1)) -> Float[Array, "b h2 w2 c"]:
    """Twice the height and the width. Raises ValueError for taps of odd length or sum 0."""
    for axis in (1, 2):
        x = _up(x, axis, _normalised(taps))
    return x


def upsampled_convolution(
    x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c d"], *_: object, **__: object
) -> Float[Array, "b h2 w2 d"]:
    """The 3x3 convolution of ``upsample(x)``, zeros outside, in 4/9 of its products.

    Of three neighbours at the higher density two are copies of one pixel. So each output, by whether its row and its
    column are even or odd, is a 2x2 convolution of `x`, with a kernel whose rows and columns of copies are added up.
    The arguments after the kernel, which `nn.Conv` passes as well, are not used.
    """

    def folded(kernel: Array, odd: int, axis: int) -> Array:
        first, second, third = jnp.split(kernel, 3, axis)
        return jnp.concatenate([first + second, third] if odd else [first, second + third], axis)

    def phase(row: int, column: int) -> Array:
        taps = folded(folded(kernel, row, 0), column, 1)
        padding = ((1 - row, row), (1 - column, column))
        return jax.lax.conv_general_dilated(x, taps, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))

    b, h, w = x.shape[:3]
    rows = [jnp.stack([phase(row, column) for column in (0, 1)], axis=3) for row in (0, 1)]
    return jnp.stack(rows, axis=2).reshape(b, 2 * h, 2 * w, kernel.shape[-1])


def smooth(x: Float[Array, "b h w c"], taps: tuple[int, ...] = (1, 1)) -> Float[Array, "b h3 w3 c"]:
    """Filtered at the same density, ``[b, h + 1, w + 1, c]``: a 3x3 convolution with stride 2 and no
    padding then halves the image, which is `downsample` and the convolution in one. Raises as there.
    """
    for axis in (1, 2):
        padded = _pad(x, axis, len(taps) // 2)
        size = x.shape[axis] + 1
        x = _sum([tap * _slice(padded, axis, k, size, 1) for k, tap in enumerate(_normalised(taps))])
    return x


def space_to_depth(x: Float[Array, "b h w c"], patch: int) -> Float[Array, "b h2 w2 c2"]:
    """Patches of ``patch x patch`` pixels as channels: ``[b, h/p, w/p, p*p*c]``."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // patch, patch, w // patch, patch, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h // patch, w // patch, patch * patch * c)


def depth_to_space(x: Float[Array, "b h2 w2 c2"], patch: int) -> Float[Array, "b h w c"]:
    """The inverse of `space_to_depth`."""
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, patch, patch, c // (patch * patch))
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h * patch, w * patch, c // (patch * patch))


def _normalised(taps: tuple[int, ...]) -> tuple[float, ...]:
    if len(taps) % 2 or sum(taps) == 0:
        raise ValueError(
            f"filter taps {taps}: allowed are an even number of them with a sum other than 0, "
            "such as (1, 1) or (1, 3, 3, 1): change --network.resample-taps"
        )
    return tuple(tap / sum(taps) for tap in taps)


def _down(x: Array, axis: int, taps: tuple[float, ...]) -> Array:
    # Strided slices and sums instead of a depthwise convolution, which XLA runs slowly on a CPU.
    half = x.shape[axis] // 2
    padded = _pad(x, axis, len(taps) // 2 - 1)
    parts = [tap * _slice(padded, axis, k, half, 2) for k, tap in enumerate(taps)]
    return _sum(parts)


def _up(x: Array, axis: int, taps: tuple[float, ...]) -> Array:
    size, pad = x.shape[axis], len(taps) // 2 - 1
    padded = _pad(x, axis, pad)
    phases = []
    for r in (0, 1):  # the even and the odd outputs
        hits = [(k, (r + pad - k) // 2) for k in range(len(taps)) if (r + pad - k) % 2 == 0]
        parts = [2 * taps[k] * _slice(padded, axis, pad + i, size, 1) for k, i in hits]
        phases.append(_sum(parts))
    shape = (*x.shape[:axis], 2 * size, *x.shape[axis + 1 :])
    return jnp.stack(phases, axis=axis + 1).reshape(shape)


def _sum(parts: list[Array]) -> Array:
    return sum(parts[1:], parts[0])


def _pad(x: Array, axis: int, width: int) -> Array:
    return jnp.pad(x, [(width, width) if a == axis else (0, 0) for a in range(x.ndim)])


def _slice(x: Array, axis: int, start: int, size: int, stride: int) -> Array:
    where = slice(start, start + (size - 1) * stride + 1, stride)
    return x[(slice(None),) * axis + (where,)]
