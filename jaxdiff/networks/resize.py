"""Image resizing as the evaluation of generated images needs it: to the bit, and named.

Output pixel i of n, of an input of m pixels, per axis::

    TF1_BILINEAR    x = i m / n             linear between floor(x) and the next pixel (no half-pixel centre)
    BICUBIC         x = (i + 1/2) m / n - 1/2      Keys' cubic, a = -1/2, stretched by m / n where that is over 1

The first is `tf.image.resize_bilinear` of TensorFlow 1, a part of FID's definition. The second is Pillow's
bicubic on float pixels, which does not alias. The results are not rounded.

Source: arXiv:2104.11222 (how the choice moves FID).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float


class Resize(NamedTuple):
    """A way to resize, with the name that a record of an evaluation holds."""

    name: str
    apply: Callable[[Float[Array, "b h w c"], int], Float[Array, "b size size c"]]
    """(images, size) -> images of size x size pixels, on the same scale."""


def tf1_bilinear(x: Float[Array, "b h w c"], size: int) -> Float[Array, "b size size c"]:
    """Bilinear as in TensorFlow 1 with `align_corners=False`: aliases, and leans to the top left."""
    for axis in (2, 1):
        low, high, share = _neighbours(x.shape[axis], size)
        share = share.reshape([-1 if a == axis else 1 for a in range(4)])
        below, above = x.take(low, axis), x.take(high, axis)
        x = below + (above - below) * share
    return x


def bicubic(x: Float[Array, "b h w c"], size: int) -> Float[Array, "b size size c"]:
    """Antialiased bicubic, as Pillow resizes float pixels: values may leave the input's range."""
    shape = (x.shape[0], size, size, x.shape[3])
    return jax.image.resize(x, shape, "cubic", antialias=True, precision=jax.lax.Precision.HIGHEST)


TF1_BILINEAR = Resize("tf1-bilinear", tf1_bilinear)
BICUBIC = Resize("bicubic-antialias", bicubic)


def _neighbours(old: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    # In float32, as TensorFlow counts: floor() may fall differently in float64.
    where = np.arange(new, dtype=np.float32) * np.float32(old / new)
    low = np.minimum(where.astype(np.int32), old - 1)
    return low, np.minimum(low + 1, old - 1), where - low.astype(np.float32)
