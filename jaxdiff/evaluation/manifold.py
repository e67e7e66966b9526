"""Metrics of the balls that reach from each feature of a set to its k-th nearest neighbour in the set.

    precision   share of generated features inside some ball of the reference       (fidelity)
    recall      share of reference features inside some ball of the generated set   (diversity)
    density     balls of the reference that hold a generated feature, per feature, divided by k; not bounded by 1
    coverage    share of the reference's balls that hold a generated feature

A ball holds its border, so that a set of copies has precision, recall and coverage 1 (density's authors leave the
border out; only ties differ). Distances come in blocks of float32 from the device together with a bound on their
error; where the bound leaves a comparison open it is made with differences in float64. So the results are those of
exact arithmetic, ties and copies included, at any offset of the features. Memory is that of
the features and of a few blocks of ROWS x n numbers.

Source: arXiv:1904.06991 (precision, recall), arXiv:2002.09797 (density, coverage).
"""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxdiff.evaluation.moments import check_dimensions

ROWS = 128
"""Rows of a block of distances."""
EXACT = 2**22
"""Numbers of a block of float64 differences."""


class PrecisionRecall(NamedTuple):
    """Both in [0, 1]."""

    precision: float
    recall: float


class DensityCoverage(NamedTuple):
    """density >= 0; coverage in [0, 1]."""

    density: float
    coverage: float


def precision_recall(
    generated: Float[np.ndarray, "n d"], reference: Float[np.ndarray, "m e"], *, k: int = 3
) -> PrecisionRecall:
    """Improved precision and recall. Raises: ValueError unless 1 <= k < both sizes."""
    check_dimensions(generated, reference)
    precision = [block.any(axis=1) for block in _inside(generated, reference, radii(reference, k))]
    recall = [block.any(axis=1) for block in _inside(reference, generated, radii(generated, k))]
    return PrecisionRecall(float(np.concatenate(precision).mean()), float(np.concatenate(recall).mean()))


def density_coverage(
    generated: Float[np.ndarray, "n d"], reference: Float[np.ndarray, "m e"], *, k: int = 5
) -> DensityCoverage:
    """Density and coverage. Raises: ValueError unless 1 <= k < the size of the reference."""
    check_dimensions(generated, reference)
    held = np.zeros(len(reference), np.int64)
    for block in _inside(generated, reference, radii(reference, k)):
        held += block.sum(axis=0)
    return DensityCoverage(float(held.sum() / (k * len(generated))), float(np.mean(held > 0)))


def precision_of(
    generated: Float[np.ndarray, "n d"],
    reference: Float[np.ndarray, "m e"],
    subsets: Bool[np.ndarray, "s n"],
    *,
    k: int = 3,
) -> Float[np.ndarray, "s"]:
    """The precision of each of many subsets of the generated set, in one pass: for `bootstrap.interval_of`."""
    check_dimensions(generated, reference)
    inside = np.concatenate([block.any(axis=1) for block in _inside(generated, reference, radii(reference, k))])
    return subsets @ inside.astype(np.float64) / subsets.sum(axis=1)


def recall_of(
    generated: Float[np.ndarray, "n d"],
    reference: Float[np.ndarray, "m e"],
    subsets: Bool[np.ndarray, "s n"],
    *,
    k: int = 3,
) -> Float[np.ndarray, "s"]:
    """The recall of each of many subsets, of about a half of the generated set or more, in one pass.

    Raises: ValueError where fewer than k of a feature's 8 k + 40 nearest are in a subset.
    """
    check_dimensions(generated, reference)
    near, index = _neighbours(generated, max(k, min(8 * k + 40, len(generated) - 1)))
    pairs = []
    for start, low, _ in _bounds(reference, generated):
        row, column = np.nonzero(low <= near[:, -1])
        distance = _exact(reference, generated, start + row, column)
        # In the ball of a subset if this many neighbours, counted in the whole set, are inside its border.
        pairs.append((start + row, column, np.sum(near[column] < distance[:, None], axis=1)))
    row, column, closer = (np.concatenate(each) for each in zip(*pairs, strict=True))
    result = []
    for subset in subsets:
        found = np.cumsum(subset[index], axis=1) >= k
        if not found[subset, -1].all():
            raise ValueError(f"a subset of {subset.sum()} of {len(subset)} features is too small for k = {k} (--num)")
        border = found.argmax(axis=1)
        inside = row[subset[column] & (closer <= border[column])]
        result.append(len(np.unique(inside)) / len(reference))
    return np.array(result)


def density_of(
    generated: Float[np.ndarray, "n d"],
    reference: Float[np.ndarray, "m e"],
    subsets: Bool[np.ndarray, "s n"],
    *,
    k: int = 5,
) -> Float[np.ndarray, "s"]:
    """The density of each of many subsets of the generated set, in one pass: for `bootstrap.interval_of`."""
    check_dimensions(generated, reference)
    held = np.concatenate([block.sum(axis=1) for block in _inside(generated, reference, radii(reference, k))])
    return subsets @ held.astype(np.float64) / (k * subsets.sum(axis=1))


def coverage_of(
    generated: Float[np.ndarray, "n d"],
    reference: Float[np.ndarray, "m e"],
    subsets: Bool[np.ndarray, "s n"],
    *,
    k: int = 5,
) -> Float[np.ndarray, "s"]:
    """The coverage of each of many subsets of the generated set, in one pass: for `bootstrap.interval_of`."""
    check_dimensions(generated, reference)
    held, start = np.zeros((len(subsets), len(reference)), bool), 0
    for block in _inside(generated, reference, radii(reference, k)):
        part = subsets[:, start : start + len(block)]
        held |= part.astype(np.float32) @ block.astype(np.float32) > 0
        start += len(block)
    return held.mean(axis=1)


def radii(features: Float[np.ndarray, "n d"], k: int) -> Float[np.ndarray, "n"]:
    """The squared distance of each feature from its k-th nearest other one.

    Raises: ValueError unless 1 <= k < n.
    """
    return _neighbours(features, k)[0][:, k - 1]


def _neighbours(features: Float[np.ndarray, "n d"], k: int) -> tuple[Float[np.ndarray, "n k"], Int[np.ndarray, "n k"]]:
    """The squared distances of each feature's k nearest others, rising, and their numbers."""
    if not 1 <= k < len(features):
        raise ValueError(f"k = {k} is not allowed: 1 to {len(features) - 1}, below the number of features (--num)")
    distances, indices = [], []
    for start, low, high in _bounds(features, features):
        own = np.arange(len(low)), start + np.arange(len(low))
        low[own] = high[own] = np.inf
        # The k nearest are surely within this reach, and so among the pairs whose lower bound is.
        reach = np.partition(high, k - 1, axis=1)[:, k - 1 : k]
        row, column = np.nonzero(low <= reach)
        distance = _exact(features, features, start + row, column)
        order = np.lexsort((distance, row))
        first = np.searchsorted(row, np.arange(len(low)))
        nearest = order[first[:, None] + np.arange(k)]
        distances.append(distance[nearest])
        indices.append(column[nearest])
    return np.concatenate(distances), np.concatenate(indices)


def _inside(
    points: Float[np.ndarray, "n d"], centres: Float[np.ndarray, "m d"], squared_radii: Float[np.ndarray, "m"]
) -> Iterator[Bool[np.ndarray, "rows m"]]:
    """Block by block of points: in which of the balls each lies."""
    for start, low, high in _bounds(points, centres):
        inside = high <= squared_radii
        row, column = np.nonzero((low <= squared_radii) & ~inside)
        inside[row, column] = _exact(points, centres, start + row, column) <= squared_radii[column]
        yield inside


def _bounds(
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


def _lengths(x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n"]:
    squares = np.einsum("nd,nd->n", x, x, dtype=np.float64)
    if not np.all(np.isfinite(squares)):
        raise ValueError(f"feature {np.argmin(np.isfinite(squares))} of a block is not finite in float32")
    return np.sqrt(squares)


@jax.jit
def _product(x: Float[Array, "rows d"], y: Float[Array, "m d"]) -> Float[Array, "rows m"]:
    return jnp.matmul(x, y.T, precision=jax.lax.Precision.HIGHEST)


def _exact(
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
