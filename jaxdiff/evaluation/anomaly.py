"""How far images are from what they should look like: maps, scores, and what simple methods say.

Images are in [-1, 1]; a score is higher where the image is less like the training set.

    map         |x - y| at each pixel, the mean over channels and over reconstructions y
    mae, mse    mean of |x - y|, of (x - y)^2
    brighter    mean of max(x - y, 0): what is whiter than the reconstruction, as fluid and consolidation are in a lung
    darker      mean of max(y - x, 0)
    ssim        1 - structural similarity of x and y

and without a network: `pca`, what is left of an image outside the principal components of the training set;
`nearest`, the distance from the nearest training image; `mean`, that from the training set's mean image.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdiff.evaluation.distances import nearest
from jaxdiff.evaluation.image_quality import WINDOW, ssim

Images = Float[np.ndarray, "n h w c"]
Image = Float[Array, "b h w c"]


class Principal(NamedTuple):
    """The mean of some images and the directions of most variance."""

    mean: Float[np.ndarray, "d"]
    components: Float[np.ndarray, "k d"]


def difference(x: Image, y: Image) -> Float[Array, "b h w"]:
    """|x - y|, the mean over channels."""
    return jnp.mean(jnp.abs(x - y), axis=-1)


def scores(x: Image, y: Image) -> Mapping[str, Float[Array, "b"]]:
    """The scores of images with one reconstruction each; without ssim where they are too small for it."""
    gap = x - y
    axes = (1, 2, 3)
    found = {
        "mae": jnp.mean(jnp.abs(gap), axes),
        "mse": jnp.mean(jnp.square(gap), axes),
        "brighter": jnp.mean(jnp.maximum(gap, 0), axes),
        "darker": jnp.mean(jnp.maximum(-gap, 0), axes),
    }
    if min(x.shape[1:3]) >= WINDOW:
        found["ssim"] = 1 - ssim((x + 1) / 2, jnp.clip((y + 1) / 2, 0, 1))
    return found


def principal(images: Images, variance: float) -> Principal:
    """As few components as hold this share of the variance of the images. Raises: ValueError for other shares."""
    if not 0 < variance <= 1:
        raise ValueError(f"variance = {variance} is not allowed: above 0, at most 1 (--variance)")
    flat = images.reshape(len(images), -1).astype(np.float64)
    mean = flat.mean(axis=0)
    # The smaller of the two matrices of scalar products has all that is needed.
    centred = flat - mean
    if len(flat) < flat.shape[1]:
        values, vectors = np.linalg.eigh(centred @ centred.T)
        directions = vectors.T @ centred / np.sqrt(np.maximum(values, np.finfo(np.float64).tiny))[:, None]
    else:
        values, vectors = np.linalg.eigh(centred.T @ centred)
        directions = vectors.T
    values, directions = np.maximum(values[::-1], 0.0), directions[::-1]
    values = np.where(values > 1e-12 * values[0], values, 0.0)  # of rounding, whose directions mean nothing
    kept = np.searchsorted(np.cumsum(values), variance * values.sum() * (1 - 1e-12)) + 1
    return Principal(mean, directions[: min(kept, int(np.sum(values > 0)))])


def rebuilt(images: Images, basis: Principal) -> Images:
    """The images projected on the mean and the components."""
    flat = images.reshape(len(images), -1) - basis.mean
    return (basis.mean + flat @ basis.components.T @ basis.components).reshape(images.shape).astype(np.float32)


def baselines(
    images: Images, train: Float[np.ndarray, "m h w c"], variance: float
) -> tuple[dict[str, Float[np.ndarray, "n"]], int]:
    """(scores of the methods without a network, by name; the number of principal components)."""
    basis = principal(train, variance)
    found: dict[str, np.ndarray] = {}
    for name, guess in (("pca", rebuilt(images, basis)), ("mean", rebuilt(images, Principal(*_none(basis))))):
        made = scores(jnp.asarray(images), jnp.asarray(guess))
        found |= {f"{name}/{key}": np.asarray(value) for key, value in made.items()}
    flat = [part.reshape(len(part), -1).astype(np.float32) for part in (images, train)]
    blocks = (flat[1][i : i + 4096] for i in range(0, len(flat[1]), 4096))
    found["nearest/mse"] = nearest(flat[0], blocks, 1).squared[:, 0] / flat[0].shape[1]
    return found, len(basis.components)


def _none(basis: Principal) -> tuple[np.ndarray, np.ndarray]:
    return basis.mean, basis.components[:0]
