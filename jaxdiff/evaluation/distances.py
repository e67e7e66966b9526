"""Squared distances of many vectors, block by block, exact where it matters.

Distances come in blocks of float32 from the device together with a bound on their error; where the bound leaves a
comparison open it is made with differences in float64. So what is found is that of exact arithmetic, ties and copies
included, at any offset of the vectors and in any order of them. Memory is that of the vectors and of a few blocks of
ROWS x n numbers.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxdiff.evaluation.moments import check_dimensions

ROWS = 128
"""Rows of a block of distances."""
EXACT = 2**22
"""Numbers of a block of float64 differences."""


class Neighbours(NamedTuple):
    """The nearest of a set, rising."""

    squared: Float[np.ndarray, "n k"]
    """Squared distances."""
    index: Int[np.ndarray, "n k"]
    """Their places in the set."""


def nearest(x: Float[np.ndarray, "n d"], blocks: Iterable[Float[np.ndarray, "m e"]], k: int) -> Neighbours:
    """The k nearest to each x of a set that comes in blocks, and so need never be in memory as a whole.

    Raises: ValueError where k is below 1 or the set has fewer than k vectors.
    """
    squared, index, size = np.zeros((len(x), 0)), np.zeros((len(x), 0), np.int64), 0
    for block in blocks:
        check_dimensions(x, block)
        near = [closest(x, block, *part, min(k, len(block))) for part in bounds(x, block)] if len(block) else []
        if near:
            distances, columns = (np.concatenate(each) for each in zip(*near, strict=True))
            squared, index = np.hstack([squared, distances]), np.hstack([index, columns + size])
            kept = np.argsort(squared, axis=1, kind="stable")[:, :k]
            squared, index = (np.take_along_axis(each, kept, axis=1) for each in (squared, index))
        size += len(block)
    if not 1 <= k <= size:
        raise ValueError(f"k = {k} is not allowed: 1 to {size}, the number of vectors (--neighbours)")
    return Neighbours(squared, index)


def closest(
    x: Float[np.ndarray, "n d"],
    y: Float[np.ndarray, "m d"],
    start: int,
    low: Float[np.ndarray, "rows m"],
    high: Float[np.ndarray, "rows m"],
    k: int,
) -> Neighbours:
    """The k nearest in y of the rows of x from `start` on, whose squared distances lie between `low` and `high`."""
    # The k nearest are surely within this reach, and so among the pairs whose lower bound is.
    reach = np.partition(high, k - 1, axis=1)[:, k - 1 : k]
    row, column = np.nonzero(low <= reach)
    distance = exact(x, y, start + row, column)
    order = np.lexsort((distance, row))
    first = np.searchsorted(row, np.arange(len(low)))
    kept = order[first[:, None] + np.arange(k)]
    return Neighbours(distance[kept], column[kept])


def bounds(
    x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]
) -> Iterator[tuple[int, Float[np.ndarray, "rows m"], Float[np.ndarray, "rows m"]]]:
    """Block by block of x: its first row, and bounds on the squared distances of its rows from all of y.

    With u = 2^-24 and S = (|x| + |y|)^2, rounding features to float32 costs 2 u S, their scalar product in any
    order of summation d u S / 2, the rest 4 u S: twice the sum is allowed for.
    """
    # Any shift will do, if it is the same for both and the difference of two numbers is rounded once.
    centre = y.mean(axis=0, dtype=np.float64).astype(np.promote_types(y.dtype, np.float32))
    columns = (y - centre).astype(np.float32)
    lengths = _lengths(columns)
    on_device = jnp.asarray(columns)
    slack = (x.shape[1] + 12) * 2.0**-24
    for start in range(0, len(x), ROWS):
        rows = (x[start : start + ROWS] - centre).astype(np.float32)
        length = _lengths(rows)[:, None]
        # Padded, so that one compiled function serves the last block too.
        padded = np.pad(rows, ((0, min(ROWS, len(x)) - len(rows)), (0, 0)))
        product = np.asarray(_product(padded, on_device))[: len(rows)].astype(np.float64)
        distance = length**2 + lengths**2 - 2 * product
        error = slack * (length + lengths) ** 2
        yield start, distance - error, distance + error


def exact(
    x: Float[np.ndarray, "n d"],
    y: Float[np.ndarray, "m d"],
    row: Int[np.ndarray, "pairs"],
    column: Int[np.ndarray, "pairs"],
) -> Float[np.ndarray, "pairs"]:
    """Squared distances of pairs of rows from differences in float64: the same for (x, y) as for (y, x)."""
    step = max(EXACT // x.shape[1], 1)
    parts = [np.zeros(0)]
    for start in range(0, len(row), step):
        part = slice(start, start + step)
        parts.append(np.square(x[row[part]].astype(np.float64) - y[column[part]]).sum(axis=1))
    return np.concatenate(parts)


def _lengths(x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n"]:
    squares = np.einsum("nd,nd->n", x, x, dtype=np.float64)
    if not np.all(np.isfinite(squares)):
        raise ValueError(f"feature {np.argmin(np.isfinite(squares))} of a block is not finite in float32")
    return np.sqrt(squares)


@jax.jit
def _product(x: Float[Array, "rows d"], y: Float[Array, "m d"]) -> Float[Array, "rows m"]:
    return jnp.matmul(x, y.T, precision=jax.lax.Precision.HIGHEST)
