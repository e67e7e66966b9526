"""What ranks say: how often one score lies above another, whether that is chance, and shares with their intervals.

    AUC = P(a > b) + P(a = b) / 2 = U / (n m)            of scores a (n of them) and b (m of them)

U is Mann and Whitney's statistic: the area under the ROC curve that tells the a's from the b's.

Source: Hanley and McNeil, Radiology 143(1), 1982 (AUC and U); Wilson, JASA 22, 1927 (the interval of a share).
"""

import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jaxdiff.evaluation.bootstrap import Interval

Scores = Float[np.ndarray, "_"]


class MannWhitney(NamedTuple):
    """Whether the a's lie above the b's by chance."""

    z: float
    """(U - n m / 2) / its standard deviation were both alike; above 0 where the a's lie above."""
    p: float
    """How likely a z so large is, were both alike: one-sided, for large sets."""


class Share(NamedTuple):
    """A share of n with its interval."""

    value: float
    low: float
    high: float


def auc(above: Scores, below: Scores) -> float:
    """How often a score of `above` is the larger, ties counting half. Raises: ValueError where one of them is empty."""
    return float(_aucs(above, below, np.ones((1, len(above))), np.ones((1, len(below))))[0])


def auc_interval(above: Scores, below: Scores, *, count: int = 1000, level: float = 0.95, seed: int = 0) -> Interval:
    """The AUC with its interval: quantiles over `count` bootstrap samples, each of both sets.

    Copies of a score meet only scores of the other set, so repeating them does not move the figure as it moves a
    Fréchet distance. Where the sets are apart, or one has a single member, the interval is a point.
    """
    rng = np.random.default_rng(seed)
    value = auc(above, below)
    weights = [rng.multinomial(n, np.full(n, 1 / n), count).astype(np.float64) for n in (len(above), len(below))]
    made = _aucs(above, below, *weights)
    low, high = np.quantile(made, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high), float(made.std()), float(made.mean() - value))


def mann_whitney(above: Scores, below: Scores) -> MannWhitney:
    """Mann and Whitney's test by its normal approximation, ties accounted for, without continuity correction.

    z is 0 and p 1/2 where all scores are equal.
    """
    n, m = len(above), len(below)
    _, ties = np.unique(np.concatenate([above, below]), return_counts=True)
    tied = float(np.sum(ties.astype(np.float64) ** 3 - ties)) / ((n + m) * max(n + m - 1, 1))
    variance = n * m / 12 * (n + m + 1 - tied)
    z = n * m * (auc(above, below) - 0.5) / math.sqrt(variance) if variance > 0 else 0.0
    return MannWhitney(z, 0.5 * math.erfc(z / math.sqrt(2)))


def share(hits: int, n: int, level: float = 0.95) -> Share:
    """hits / n and its Wilson interval. Raises: ValueError where n is 0."""
    if n < 1:
        raise ValueError("a share of nothing has no value: at least 1 is needed (--num)")
    z, p = NormalDist().inv_cdf((1 + level) / 2), hits / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    return Share(p, max(centre - half, 0.0) if hits else 0.0, min(centre + half, 1.0) if hits < n else 1.0)


def beta_binomial_tail(hits: int, n: int, a: int, b: int) -> float:
    """P(K >= hits) for K of n, each with one probability drawn from Beta(a, b); a, b >= 1.

    With a + b - 1 calibration scores, K is how many of n further scores lie below the a-th smallest of these.
    """

    def log_beta(x: float, y: float) -> float:
        return math.lgamma(x) + math.lgamma(y) - math.lgamma(x + y)

    terms = [
        -log_beta(k + 1.0, n - k + 1.0)
        - math.log(n + 1)
        + log_beta(k + float(a), n - k + float(b))
        - log_beta(float(a), float(b))
        for k in range(max(hits, 0), n + 1)
    ]
    return min(math.fsum(math.exp(term) for term in terms), 1.0)


def _aucs(
    above: Scores, below: Scores, a: Float[np.ndarray, "count n"], b: Float[np.ndarray, "count m"]
) -> Float[np.ndarray, "count"]:
    """The AUC for each row of weights of both sets."""
    if not len(above) or not len(below):
        raise ValueError("scores of two kinds are needed, and one of them has none")
    order = np.argsort(below, kind="stable")
    ordered = below[order]
    under = np.concatenate([np.zeros((len(b), 1)), np.cumsum(b[:, order], axis=1)], axis=1)
    beaten = under[:, np.searchsorted(ordered, above, "left")] + under[:, np.searchsorted(ordered, above, "right")]
    return np.sum(a * beaten, axis=1) / 2 / (a.sum(axis=1) * b.sum(axis=1))
