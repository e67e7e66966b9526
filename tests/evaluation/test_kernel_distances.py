"""KID and CMMD: sums over all pairs written out, unbiasedness, blocks of any size."""

import numpy as np
import pytest

from jaxdiff.evaluation.kernel import cmmd, cmmd_of, kid, kid_full, kid_of

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _the_same_draws_in_any_order():
    RNG.bit_generator.state = np.random.default_rng(0).bit_generator.state


D = 6


def draw(n, shift=0.0, d=D):
    return (RNG.normal(size=(n, d)) + shift).astype(np.float32)


def unbiased(x, y):
    """Pair by pair, in float64."""

    def k(a, b):
        return (float(a.astype(np.float64) @ b.astype(np.float64)) / len(a) + 1) ** 3

    xx = np.mean([k(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j])
    yy = np.mean([k(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j])
    return xx + yy - 2 * np.mean([k(a, b) for a in x for b in y])


def biased_gaussian(x, y):
    x, y = (v.astype(np.float64) / np.linalg.norm(v.astype(np.float64), axis=1, keepdims=True) for v in (x, y))

    def mean(a, b):
        return np.mean(np.exp(-np.sum((a[:, None] - b) ** 2, -1) / 200))

    return 1000 * (mean(x, x) + mean(y, y) - 2 * mean(x, y))


X, Y = draw(13), draw(9, 0.5)


@pytest.mark.parametrize("block", [1, 4, 13, 100])
def test_blocks_of_any_size_give_the_sums_over_pairs(block):
    assert np.isclose(kid_full(X, Y, block=block), unbiased(X, Y), rtol=1e-5)
    assert np.isclose(cmmd(X, Y, block=block), biased_gaussian(X, Y), rtol=1e-5)


@pytest.mark.parametrize("block", [5, 100])
def test_many_subsets_at_once(block):
    masks = RNG.permuted(np.tile(np.arange(len(X)) < 8, (3, 1)), axis=1)
    each = [[f(X[mask], Y) for mask in masks] for f in (kid_full, cmmd)]
    assert np.allclose(kid_of(X, Y, masks, block=block), each[0], rtol=1e-5)
    assert np.allclose(cmmd_of(X, Y, masks, block=block), each[1], rtol=1e-5)


def test_kid_is_zero_on_average_under_equal_distributions():
    values = [kid_full(draw(20), draw(30)) for _ in range(200)]
    error = np.std(values) / np.sqrt(200)
    # The biased figure would be above by tr k / n, some forty of these errors.
    assert abs(np.mean(values)) < 3.5 * error and min(values) < 0
    assert np.mean([kid_full(draw(20), draw(20, 0.5)) for _ in range(20)]) > 20 * error


def test_kid_of_all_pairs_is_the_mean_over_all_subsets():
    # Of 4 of 5 features there are 25 pairs of subsets; many random ones come near their mean.
    x, y = draw(5), draw(5, 0.3)
    subsets = [unbiased(np.delete(x, i, 0), np.delete(y, j, 0)) for i in range(5) for j in range(5)]
    assert np.isclose(np.mean(subsets), kid_full(x, y), rtol=1e-4)
    got = kid(x, y, subsets=200, subset_size=4)
    assert abs(got.mean - np.mean(subsets)) < 4 * np.std(subsets) / 14
    assert np.isclose(got.std, np.std(subsets), rtol=0.2)


def test_kid_is_counted():
    x, y = draw(40), draw(40, 0.2)
    some = {"subsets": 3, "subset_size": 10}
    assert kid(x, y, **some) == kid(x, y, **some) != kid(x, y, **some, seed=1)
    # All features in the subset: nothing is random, and both figures are one.
    assert np.isclose(kid(x, y, subsets=2, subset_size=40).mean, kid_full(x, y), rtol=1e-5)


def test_cmmd_has_the_digits_of_close_sets():
    # Kernel values differ from 1 by less than 0.02: summed as they are, float32 would leave two digits of this.
    x = draw(300, 0.0, 32)
    y = x + draw(300, 0.0, 32) * np.float32(0.01)
    want = biased_gaussian(x, y)
    assert 0 < want < 1e-2 and np.isclose(cmmd(x, y), want, atol=3e-6)
    assert np.isclose(cmmd(7 * x, y), cmmd(x, y), atol=3e-6)
    assert abs(cmmd(x, x[::-1])) < 1e-6


def test_cmmd_of_two_points():
    x, y = np.float32([[2, 0]]), np.float32([[0, 5]])
    assert np.isclose(cmmd(x, y), 2000 * (1 - np.exp(-2 / 200)), rtol=1e-6)
    assert np.isclose(cmmd(x, -x, sigma=1.0), 2000 * (1 - np.exp(-2)), rtol=1e-6)


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="of 10 are not allowed: at least 1, of 2 to 9"):
        kid(X, Y, subset_size=10)
    with pytest.raises(ValueError, match="1 features have no unbiased"):
        kid_of(X, Y, np.arange(13)[None] < 1)
    with pytest.raises(ValueError, match="6 and of 5 numbers"):
        kid_full(X, draw(9, d=5))
    with pytest.raises(ValueError, match="embedding 1 has the length 0"):
        cmmd(np.float32([[1, 0], [0, 0]]), np.float32([[1, 0]]))
