"""The Inception score: how sure a classifier is of each image, and how many classes it sees.

    IS = exp( mean_i KL( p(class | image_i) || mean_j p(class | image_j) ) ),       1 <= IS <= number of classes

Source: arXiv:1606.03498, Sec. 4.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class InceptionScore(NamedTuple):
    """Over the splits; std is 0 with one split."""

    mean: float
    std: float


def inception_score(logits: Float[np.ndarray, "n k"], *, splits: int = 10, seed: int | None = 0) -> InceptionScore:
    """Mean and standard deviation over equal splits of the images; logits may be log-probabilities, -inf included.

    The images are shuffled first, since a split of images in the order of their labels would see few classes;
    seed = None keeps their order. Splits of n / splits images bias the score downwards: keep both when comparing.

    Raises: ValueError unless 1 <= splits <= n, or if a row of logits has no finite largest value.
    """
    n = len(logits)
    if not 1 <= splits <= n:
        raise ValueError(f"splits = {splits} is not allowed: 1 to {n}, the number of images (--num)")
    top = logits.max(axis=1, keepdims=True).astype(np.float64)
    if not np.all(np.isfinite(top)):
        bad = int(np.argmin(np.isfinite(top[:, 0])))
        raise ValueError(f"the logits of image {bad} are not finite: look at it, or compute them in float32")
    shifted = logits - top
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    if seed is not None:
        log_p = log_p[np.random.default_rng(seed).permutation(n)]
    scores = [_score(log_p[i * n // splits : (i + 1) * n // splits]) for i in range(splits)]
    return InceptionScore(float(np.mean(scores)), float(np.std(scores)))


def _score(log_p: np.ndarray) -> float:
    p = np.exp(log_p)
    marginal = p.mean(axis=0)
    # A class of probability 0 adds nothing.
    entropy_all = -np.sum(np.where(marginal > 0, marginal * np.log(np.where(marginal > 0, marginal, 1.0)), 0.0))
    entropy_each = -np.sum(np.where(p > 0, p * np.where(p > 0, log_p, 0.0), 0.0), axis=1).mean()
    return float(np.exp(entropy_all - entropy_each))
