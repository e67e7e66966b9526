"""AUC, Mann and Whitney's test, shares: closed forms, scipy, coverage."""

from statistics import NormalDist

import numpy as np
import pytest
from scipy import stats

from jaxdiff.evaluation.ranks import auc, auc_interval, beta_binomial_tail, mann_whitney, share

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(("gap", "width"), [(0.0, 1.0), (1.0, 1.0), (0.7, 2.0), (-1.5, 0.5)])
def test_auc_of_two_normals(gap, width):
    """P(a > b) = Phi(gap / sqrt(1 + width^2)) for a ~ N(gap, 1), b ~ N(0, width^2)."""
    rng = np.random.default_rng(1)
    a, b = rng.normal(gap, 1, 20000), rng.normal(0, width, 20000)
    assert auc(a, b) == pytest.approx(NormalDist().cdf(gap / np.hypot(1, width)), abs=0.008)


def test_auc_counts_ties_half_and_sees_ranks_alone():
    a, b = np.array([1.0, 2, 2, 5]), np.array([0.0, 2, 3])
    pairs = [(x > y) + (x == y) / 2 for x in a for y in b]
    assert auc(a, b) == pytest.approx(np.mean(pairs), abs=1e-15)
    assert auc(np.exp(a), np.exp(b)) == pytest.approx(auc(a, b)) == pytest.approx(1 - auc(b, a))


def test_the_interval_covers():
    true, hits = NormalDist().cdf(0.8 / 2**0.5), 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        found = auc_interval(rng.normal(0.8, 1, 60), rng.normal(0, 1, 40), count=200, level=0.9, seed=seed)
        hits += found.low <= true <= found.high
    # 180 are expected, with a deviation of 4.2.
    assert 164 <= hits <= 194


def test_mann_whitney_is_scipys():
    a, b = RNG.integers(0, 12, 30).astype(float), RNG.integers(2, 14, 25).astype(float)
    theirs = stats.mannwhitneyu(a, b, alternative="greater", method="asymptotic", use_continuity=False)
    ours = mann_whitney(a, b)
    assert ours.p == pytest.approx(theirs.pvalue, rel=1e-9)
    assert ours.z == pytest.approx(stats.norm.isf(theirs.pvalue), rel=1e-6)
    assert mann_whitney(np.ones(5), np.ones(4)) == (0.0, 0.5)


@pytest.mark.parametrize(("a", "b"), [(1, 1), (3, 40), (26, 500)])
def test_the_tail_is_scipys(a, b):
    for n, k in ((1, 1), (50, 0), (50, 7), (50, 50), (1000, 80)):
        wanted = stats.betabinom.pmf(np.arange(k, n + 1), n, a, b).sum()  # its sf is 1 - cdf, which has no digits left
        assert beta_binomial_tail(k, n, a, b) == pytest.approx(wanted, rel=1e-7)


def test_shares_by_wilson():
    theirs = stats.binomtest(7, 90).proportion_ci(0.9, "wilson")
    assert share(7, 90, 0.9) == pytest.approx((7 / 90, theirs.low, theirs.high), rel=1e-9)
    assert share(0, 5).low == 0 and share(5, 5).high == pytest.approx(1)


def test_nothing_has_no_auc():
    with pytest.raises(ValueError, match="none"):
        auc(np.zeros(0), np.ones(3))
