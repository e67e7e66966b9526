"""Whether samples lie nearer to the training set than real images that were never trained on do.

Of every sample, and of every held-out real image, two figures of its nearest training images:

    distance    d_1, to the nearest
    relative    d_1 / (alpha mean of d_1 ... d_k), alpha = 1/2: small where one is much nearer than others

and then, for either figure, samples are compared with held-out images:

    p_i         (1 + held-out images whose figure is not above sample i's) / (m + 1)
    flagged     samples with p_i <= q: of fresh draws at most a share q, whatever the distribution
    closer      P(a held-out image's figure is above a sample's): 1/2 where nothing is copied
    z           Mann and Whitney's statistic of that, which is the data-copying test with one cell, its sign turned:
                above 0 where samples lie too near

A held-out image is as far from the training set as a fresh draw of its distribution, so where held-out images are of
another hospital, or of the same patients, "too near" means no more than that. Figures that repeat (copies among the
real images) are counted against the flag.

Source: arXiv:2301.13188, Sec. 5.1 (the relative figure, alpha, k = 50); arXiv:2004.05675, Sec. 3 (the test);
Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World", 2005 (p_i).
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxdiff.evaluation.bootstrap import Interval
from jaxdiff.evaluation.distances import Neighbours
from jaxdiff.evaluation.ranks import Share, auc_interval, beta_binomial_tail, mann_whitney, share

ALPHA = 0.5

Figure = Float[np.ndarray, "_"]


class Comparison(NamedTuple):
    """Samples against held-out images in one figure."""

    p_values: Float[np.ndarray, "n"]
    flagged: Bool[np.ndarray, "n"]
    share: Share
    """Of the samples that are flagged."""
    expected: float
    """The share of fresh draws that would be."""
    p_share: float
    """How likely so many flagged ones are, were the samples fresh draws."""
    closer: Interval
    z: float
    p_closer: float
    """How likely a z so large is, were the samples fresh draws."""


def distances(near: Neighbours, dims: int) -> Float[np.ndarray, "n k"]:
    """Root mean square differences over `dims` numbers: in pixels, grey levels where those are."""
    return np.sqrt(near.squared / dims)


def relative(near: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n"]:
    """The nearest distance over half the mean of all k; 2 where all k are equally near, 0 included."""
    mean = near.mean(axis=1)
    return np.where(mean > 0, near[:, 0] / np.where(mean > 0, ALPHA * mean, 1.0), 1 / ALPHA)


def without(near: Neighbours, own: Int[np.ndarray, "n"], k: int) -> Neighbours:
    """The k nearest of each but the vectors numbered `own`, of which there may be several a row at most len - k."""
    order = np.argsort(near.index == own[:, None], axis=1, kind="stable")[:, :k]
    return Neighbours(*(np.take_along_axis(each, order, axis=1) for each in near))


def compare(
    samples: Figure, held_out: Figure, quantile: float, level: float, seed: int = 0, count: int = 1000
) -> Comparison:
    """The comparison at q = `quantile`, with intervals of `level`, those of ranks from `count` bootstrap samples.

    Raises: ValueError where there are too few held-out images for a p-value as small as q.
    """
    m, n = len(held_out), len(samples)
    most = check_quantile(quantile, m)
    rank = 1 + np.searchsorted(np.sort(held_out), samples, "right")
    flagged = rank <= most
    hits = int(flagged.sum())
    test = mann_whitney(held_out, samples)
    return Comparison(
        p_values=rank / (m + 1),
        flagged=flagged,
        share=share(hits, n, level),
        expected=most / (m + 1),
        p_share=beta_binomial_tail(hits, n, most, m + 1 - most),
        closer=auc_interval(held_out, samples, count=count, level=level, seed=seed),
        z=test.z,
        p_closer=test.p,
    )


def check_quantile(quantile: float, m: int) -> int:
    """The largest rank among m held-out images and itself that is flagged. Raises: ValueError where there is none."""
    most = int(np.floor(quantile * (m + 1) + 1e-9))
    if not 0 < quantile < 1 or most < 1:
        raise ValueError(
            f"quantile = {quantile} is not allowed with {m} held-out images: from {1 / (m + 1):.3g} on, below 1 "
            "(--quantile, --held-out)"
        )
    return most


def failed(compared: Mapping[str, Comparison], level: float) -> list[str]:
    """The tests that fail, by the figure's name and what is too high: of fresh draws, with a probability of at most
    1 - level, any does (Bonferroni)."""
    tests = {f"{name}: {what}": p for name, c in compared.items() for what, p in _tests(c).items()}
    return [name for name, p in tests.items() if p < (1 - level) / len(tests)]


def _tests(c: Comparison) -> dict[str, float]:
    return {"share flagged": c.p_share, "held-out above samples": c.p_closer}
