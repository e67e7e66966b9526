"""Nearest neighbours in a set that comes in blocks: brute force, in any order, of any size of block."""

import numpy as np
import pytest

from jaxdiff.evaluation.distances import nearest

RNG = np.random.default_rng(0)


def blocks(y, size):
    return (y[i : i + size] for i in range(0, len(y), size))


@pytest.mark.parametrize("offset", [0, 2**16])
@pytest.mark.parametrize("size", [1, 7, 50])
def test_brute_force(size, offset):
    x, y = (RNG.integers(0, 9, (n, 5)).astype(np.float32) + offset for n in (140, 50))
    squared = ((x[:, None].astype(np.float64) - y) ** 2).sum(-1)
    found = nearest(x, blocks(y, size), 4)
    np.testing.assert_array_equal(found.squared, np.sort(squared, axis=1)[:, :4])
    # Ties may be any of the tied ones, but each is as far as it is said to be, and none comes twice.
    np.testing.assert_array_equal(np.take_along_axis(squared, found.index, axis=1), found.squared)
    assert all(len(set(row)) == 4 for row in found.index.tolist())


def test_order_does_not_matter():
    x, y, order = RNG.normal(size=(20, 6)), RNG.normal(size=(30, 6)), RNG.permutation(30)
    one, other = nearest(x, blocks(y, 8), 3), nearest(x, blocks(y[order], 13), 3)
    np.testing.assert_array_equal(one.squared, other.squared)
    np.testing.assert_array_equal(one.index, order[other.index])


def test_too_few_are_refused():
    with pytest.raises(ValueError, match="k = 4 is not allowed: 1 to 3"):
        nearest(np.zeros((2, 2)), blocks(np.zeros((3, 2)), 2), 4)
