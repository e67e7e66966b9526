"""Metrics of the balls that reach from each feature of a set to its k-th nearest neighbour in the set.

    precision   share of generated features inside some ball of the reference       (fidelity)
    recall      share of reference features inside some ball of the generated set   (diversity)
    density     balls of the reference that hold a generated feature, per feature, divided by k; not bounded by 1
    coverage    share of the reference's balls that hold a generated feature

A ball holds its border, so that a set of copies has precision, recall and coverage 1 (density's authors leave the
border out; only ties differ). The results are those of exact arithmetic, ties and copies included, at any offset of
the features (`distances.py`).

Source: arXiv:1904.06991 (precision, recall), arXiv:2002.09797 (density, coverage).
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxdiff.evaluation.distances import bounds, closest, exact
from jaxdiff.evaluation.moments import check_dimensions


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
    for start, low, _ in bounds(reference, generated):
        row, column = np.nonzero(low <= near[:, -1])
        distance = exact(reference, generated, start + row, column)
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
    for start, low, high in bounds(features, features):
        own = np.arange(len(low)), start + np.arange(len(low))
        low[own] = high[own] = np.inf
        near = closest(features, features, start, low, high, k)
        distances.append(near.squared)
        indices.append(near.index)
    return np.concatenate(distances), np.concatenate(indices)


def _inside(
    points: Float[np.ndarray, "n d"], centres: Float[np.ndarray, "m d"], squared_radii: Float[np.ndarray, "m"]
) -> Iterator[Bool[np.ndarray, "rows m"]]:
    """Block by block of points: in which of the balls each lies."""
    for start, low, high in bounds(points, centres):
        inside = high <= squared_radii
        row, column = np.nonzero((low <= squared_radii) & ~inside)
        inside[row, column] = exact(points, centres, start + row, column) <= squared_radii[column]
        yield inside
