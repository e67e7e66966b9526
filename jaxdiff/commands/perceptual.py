"""Figures that are made image by image, or pair by pair, before they are averaged: LPIPS and the CLIP score."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from jaxdiff.evaluation.kernel import unit
from jaxdiff.evaluation.metrics import Metric, Reference
from jaxdiff.pretrained.lpips import Distance, open_lpips

BATCH = 32
"""Pairs that are compared at once."""


def is_feature(metric: Metric) -> bool:
    """Whether a metric looks at a feature network's output, rather than at the images."""
    return metric.output in ("features", "spatial", "logits")


def distances(
    distance: Distance, x: UInt8[np.ndarray, "n h w c"], y: UInt8[np.ndarray, "n h w c"]
) -> Float[np.ndarray, "n"]:
    """The distance of each pair. Raises: ValueError where they are no pairs."""
    if x.shape != y.shape:
        raise ValueError(
            f"{len(x)} images {x.shape[1:]} and {len(y)} images {y.shape[1:]} are no pairs: as many are needed, of one "
            "size (--reference, --num)"
        )
    forward = jax.jit(distance.forward)
    parts = []
    for first in range(0, len(x), BATCH):
        # Filled up to a whole batch, so that one compilation serves all.
        a, b = (np.resize(images[first : first + BATCH], (BATCH, *x.shape[1:])) for images in (x, y))
        a, b = (jnp.asarray(images, jnp.float32) / 127.5 - 1 for images in (a, b))
        parts.append(np.asarray(forward(distance.params, a, b)))
    return np.concatenate(parts)[: len(x)]


def same_class_pairs(n: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Disjoint pairs of numbers below n with one class, image i being of class i % classes (1: all alike).

    Raises: ValueError where there is not one pair.
    """
    whole = n // (2 * classes)
    if not whole:
        raise ValueError(f"{n} images hold no pair of each of {classes} classes: at least {2 * classes} (--num)")
    pairs = np.arange(whole * 2 * classes).reshape(whole, 2, classes)
    return pairs[:, 0].ravel(), pairs[:, 1].ravel()


def caption_scores(
    images: Float[np.ndarray, "n d"],
    captions: Sequence[str],
    embed: Callable[[Sequence[str]], Float[np.ndarray, "k d"]],
) -> Float[np.ndarray, "n"]:
    """100 times the cosine of each image's embedding and its caption's, at least 0. Source: arXiv:2104.08718, Eq. 1."""
    different = sorted(set(captions))
    texts = unit(np.asarray(embed(different), np.float64))
    rows = np.array([different.index(caption) for caption in captions])
    return 100 * np.maximum(np.sum(unit(images.astype(np.float64)) * texts[rows], axis=1), 0)


def paired(
    metric: Metric, seen: UInt8[np.ndarray, "n h w c"], reference: Reference | None, weights: Mapping[str, Path]
) -> Float[np.ndarray, "n"]:
    """The distance of each sample from the reference's image of the same number."""
    assert reference is not None and reference.features is not None
    return distances(_distance(metric, weights), seen, reference.features)


def diversity(
    metric: Metric, seen: UInt8[np.ndarray, "n h w c"], classes: int, weights: Mapping[str, Path]
) -> Float[np.ndarray, "m"]:
    """The distance of each pair of samples of one class."""
    one, other = same_class_pairs(len(seen), classes)
    return distances(_distance(metric, weights), seen[one], seen[other])


def _distance(metric: Metric, weights: Mapping[str, Path]) -> Distance:
    network = str(metric.network)
    return open_lpips(network, weights.get(network))
