"""The images that `jaxdiff anomaly` looks at, with all their bits, and those that the run has learned."""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from jaxdiff.data import Data, Source, open_source
from jaxdiff.data.pictures import Pictures
from jaxdiff.data.pipeline import validation_batch
from jaxdiff.training.step import to_unit

TOLD_NOTHING = {"text": False, "keywords": False, "caption": "", "flip": False, "augment": 0.0}
"""Fields of `Data` that leave the pictures as they are, and say nothing of them."""


class Opened(NamedTuple):
    """The images that are looked at."""

    images: Float[np.ndarray, "n h w c"]
    """In [-1, 1]."""
    label: Int[np.ndarray, "n"] | None
    label_names: tuple[str, ...]
    data: Data
    source: Source
    places: Int[np.ndarray, "n"]
    """Their numbers in the set."""


def data_of(data: Data, images: str | None, split: str | None) -> Data:
    """The set to look at, as the run would see it: by default the test split of the run's own, the train split of
    another set."""
    return dataclasses.replace(
        data,
        source=images or data.source,
        split=split or ("test" if images in (None, data.source) else "train"),
        crop="center" if data.crop == "random" else data.crop,
        labels=True,
        classes=(),
        holdout=0.0,
        prior="",
        **TOLD_NOTHING,
    )


def read(data: Data, num: int = 0) -> Opened:
    """The pictures of a set in [-1, 1], with all bits that the set has. Raises: ValueError or FileNotFoundError."""
    source = open_source(data)
    if not len(source):
        raise ValueError(f"{source.name} has no images (--images)")
    pictures = Pictures(data, source)
    count = len(source) if num == 0 else min(num, len(source))
    places = np.unique(np.linspace(0, len(source) - 1, count).round().astype(np.int64))
    parts, labels = [], []
    for first in range(0, len(places), 256):
        batch = validation_batch(data, pictures, [int(i) for i in places[first : first + 256]])
        parts.append(np.asarray(to_unit(jnp.asarray(batch["image"]))))
        labels.append(batch.get("label"))
    label = None if labels[0] is None else np.concatenate(labels)
    return Opened(np.concatenate(parts), label, tuple(source.label_names), data, source, places)


def flagged(data: Data, num: int, flag: str) -> Opened:
    """`read`, whose errors name this command's flags."""
    try:
        return read(data, num)
    except (ValueError, FileNotFoundError) as error:
        said = str(error).replace("--data.source", flag).replace("--data.split", "--split").replace("--data.", "--")
        raise ValueError(said) from error


def learned(data: Data) -> Float[np.ndarray, "n h w c"]:
    """The pictures that the run has learned, in [-1, 1]. Raises: ValueError or FileNotFoundError."""
    return read(dataclasses.replace(data, **TOLD_NOTHING)).images
