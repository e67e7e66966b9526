"""Precision, recall, density, coverage: sets whose balls are known, brute force, ties, offsets."""

import numpy as np
import pytest

from jaxdiff.evaluation import distances
from jaxdiff.evaluation.manifold import (
    coverage_of,
    density_coverage,
    density_of,
    precision_of,
    precision_recall,
    radii,
    recall_of,
)

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _the_same_draws_in_any_order():
    RNG.bit_generator.state = np.random.default_rng(0).bit_generator.state


def brute_force(generated, reference, k):
    """By whole numbers or differences in float64, point by point."""

    def squared(a, b):
        return sum((float(u) - float(v)) ** 2 for u, v in zip(a, b, strict=True))

    def reach(points):
        return [sorted(squared(p, q) for j, q in enumerate(points) if j != i)[k - 1] for i, p in enumerate(points)]

    def held(points, centres):
        r = reach(centres)
        return np.array([[squared(p, c) <= r[j] for j, c in enumerate(centres)] for p in points])

    by_reference, by_generated = held(generated, reference), held(reference, generated)
    return (
        by_reference.any(1).mean(),
        by_generated.any(1).mean(),
        by_reference.sum() / (k * len(generated)),
        by_reference.any(0).mean(),
    )


def ours(generated, reference, k):
    return (*precision_recall(generated, reference, k=k), *density_coverage(generated, reference, k=k))


@pytest.mark.parametrize("k", [1, 3])
def test_random_sets_by_brute_force(k):
    x, y = RNG.normal(size=(40, 3)).astype(np.float32), (1.5 * RNG.normal(size=(30, 3)) + 0.3).astype(np.float32)
    want = brute_force(x, y, k)
    assert np.allclose(ours(x, y, k), want, atol=1e-12) and min(want[:2]) > 0


@pytest.mark.parametrize("offset", [0, 1000, 2**20])
def test_lattices_are_all_ties(offset):
    # Whole numbers: most distances equal some radius, and copies have distance 0.
    x, y = RNG.integers(0, 4, (60, 3)), RNG.integers(1, 5, (50, 3))
    want = brute_force(x, y, 3)
    assert np.allclose(ours(*(np.float32(v + offset) for v in (x, y)), 3), want, atol=1e-12)


def test_blocks_change_nothing(monkeypatch):
    x, y = (np.float32(RNG.integers(0, 4, (n, 3))) for n in (37, 23))
    want = ours(x, y, 2)
    monkeypatch.setattr(distances, "ROWS", 8)
    monkeypatch.setattr(distances, "EXACT", 9)
    assert ours(x, y, 2) == want


@pytest.mark.parametrize("lattice", [False, True])
def test_many_subsets_at_once(monkeypatch, lattice):
    monkeypatch.setattr(distances, "ROWS", 16)
    x, y = RNG.normal(size=(90, 3)), RNG.normal(size=(50, 3)) * 0.7
    if lattice:
        x, y = np.round(2 * x), np.round(2 * y)
    masks = RNG.random((5, 90)) < 0.5
    masks[0] = True
    each = np.array([ours(x[mask], y, 2) for mask in masks])
    at_once = [f(x, y, masks, k=2) for f in (precision_of, recall_of, density_of, coverage_of)]
    assert np.allclose(np.transpose(at_once), each, atol=1e-12) and np.ptp(each, axis=0).min() > 0
    with pytest.raises(ValueError, match="a subset of 2 of 90 features is too small for k = 2"):
        recall_of(x, y, np.arange(90)[None] < 2, k=2)


def test_a_row_of_points():
    # 0, 1, ..., 9 with k = 1: balls of radius 1. Generated: on points, on a border, outside.
    reference = np.arange(10.0)[:, None]
    generated = np.array([[0.0], [4.5], [10.0], [10.01], [-1.0]])
    assert np.array_equal(radii(reference, 1), np.ones(10)) and np.array_equal(radii(reference, 2)[[0, 5]], [4, 1])
    precision, _ = precision_recall(generated, reference, k=1)
    density, coverage = density_coverage(generated, reference, k=1)
    # 0 lies in the balls of 0 and 1, 4.5 in those of 4 and 5, 10 in that of 9, -1 in that of 0.
    assert (precision, density, coverage) == (0.8, 6 / 5, 5 / 10)


def test_copies_are_perfect_even_where_balls_are_points():
    x = np.repeat(RNG.normal(size=(10, 50)), 5, axis=0).astype(np.float32) + 100
    assert not radii(x, 3).any()
    assert precision_recall(x[::-1], x) == (1, 1) and density_coverage(x[::-1], x, k=4) == (5 / 4, 1)


def test_fidelity_and_diversity_are_told_apart():
    reference = RNG.normal(size=(200, 2))
    narrow, far = reference[:100] * 0.05, reference + 100
    precision, recall = precision_recall(narrow, reference)
    assert precision == 1 and recall < 0.1
    precision, recall = precision_recall(reference * 10, reference)
    assert precision < 0.3 and recall > 0.9
    assert precision_recall(far, reference) == (0, 0) and density_coverage(far, reference) == (0, 0)


def test_density_and_coverage_of_equal_distributions():
    # E density = 1; E coverage = 1 - prod_i (m - i) / (2 m - 1 - i) over i = 0..k-1, near 1 - 2^-k.
    m, k = 250, 5
    got = np.mean([density_coverage(*RNG.normal(size=(2, m, 4)), k=k) for _ in range(12)], axis=0)
    expected = 1 - np.prod([(m - i) / (2 * m - 1 - i) for i in range(k)])
    assert np.allclose(got, [1, expected], atol=0.03)


def test_bad_k_and_features_are_refused():
    x = np.zeros((5, 2))
    for k in (0, 5):
        with pytest.raises(ValueError, match="1 to 4"):
            precision_recall(x, x, k=k)
    with pytest.raises(ValueError, match="not finite"):
        density_coverage(np.full((7, 2), np.nan), RNG.normal(size=(7, 2)))
