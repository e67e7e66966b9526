"""What `jaxdiff audit` compares: samples, the images that they were learned from, and real images that were not."""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Float, UInt8

from jaxdiff.commands.evaluate import weights_in
from jaxdiff.commands.images import Images, data_of_folder, images_of_data, images_of_run, label, looker
from jaxdiff.commands.reference import pictures_behind
from jaxdiff.data import Data, open_source, open_validation
from jaxdiff.models import is_trained
from jaxdiff.pretrained.features import open_features
from jaxdiff.settings import Settings
from jaxdiff.trained import open_trained

PIXELS = "pixels"
"""The space that needs no network: root mean square differences in grey levels of 255."""

BLOCK = 1024
"""Images that are read at once."""


class Sets(NamedTuple):
    """What is compared."""

    samples: Images
    train: Images
    held_out: Images | None
    """None: training images, each without itself."""
    mirrored: bool
    """Whether training saw mirror images too."""


def sets_of(
    folder: epath.PathLike, settings: Settings, train: str | None, held_out: str | None, split: str | None
) -> Sets:
    """Opens samples, training images and held-out ones, as the command's flags name them.

    Raises: ValueError or FileNotFoundError, one line.
    """
    trained = None
    if is_trained(folder):
        trained = open_trained(folder, settings)
        config = trained.config
        data = config.data if config.latents is None else pictures_behind(config, train, "train")
        samples = images_of_run(trained)
    else:
        data, samples = data_of_folder(folder), images_of_data(data_of_folder(folder))
        if train is None:
            raise ValueError(f"{folder} is no run: say what its images were learned from (--train)")
    if train is not None and train != data.source:
        data = dataclasses.replace(data, source=train, split="train", holdout=0.0, classes=())
    learned = flagged(lambda: images_of_data(data), "--train")
    return Sets(samples, learned, held_out_of(data, held_out, split), data.flip)


def held_out_of(data: Data, held_out: str | None, split: str | None) -> Images | None:
    """Real images that are not among the training images `data`; None where there are none."""
    if held_out == "none":
        return None
    if held_out is None and split is None:
        source = open_validation(data)
        return None if source is None else images_of_data(data, source, "validation")
    other = dataclasses.replace(data, split=split or "train", holdout=0.0)
    if held_out not in (None, data.source):
        other = dataclasses.replace(other, source=str(held_out), classes=())
    if (other.source, other.split) == (data.source, data.split):
        raise ValueError(
            f"{other.source}, split {other.split}, is what was trained on: name other images "
            "(--held-out, --held-out-split), or none"
        )
    return flagged(lambda: images_of_data(other, open_source(other)), "--held-out")


def flagged(make: Callable[[], Images], flag: str) -> Images:
    """Images whose errors name this command's flags."""
    try:
        return make()
    except (ValueError, FileNotFoundError) as error:
        said = str(error).replace("--data.source", flag).replace("--data.split", f"{flag}-split")
        raise ValueError(said) from error


class Space(NamedTuple):
    """Where distances are taken."""

    name: str
    embed: Callable[[UInt8[np.ndarray, "n h w c"]], Float[np.ndarray, "n d"]]


def spaces_of(features: str, weights: Sequence[str], batch_size: int) -> list[Space]:
    """The spaces that --features names. Raises: ValueError or FileNotFoundError."""
    files, spaces = weights_in(weights), []
    for name in [name.strip() for name in features.split(",") if name.strip()]:
        if name == PIXELS:
            spaces.append(Space(name, lambda images: images.reshape(len(images), -1).astype(np.float32)))
            continue
        net = open_features(name, files.get(name))

        def embed(images: UInt8[np.ndarray, "n h w c"], net=net) -> Float[np.ndarray, "n d"]:
            read = Images({}, len(images), images.__getitem__)
            look = looker({"net": net}, read, batch_size, keep=False)
            return look(np.arange(len(images), dtype=np.int32))[f"{label(net)}/features"]

        spaces.append(Space(label(net), embed))
    if not spaces:
        raise ValueError(f"features {features!r} name nothing: {PIXELS}, or a network of jaxdiff evaluate (--features)")
    return spaces


def read_all(images: Images, count: int) -> UInt8[np.ndarray, "n h w c"]:
    """The first `count` images."""
    parts = (np.arange(i, min(i + BLOCK, count), dtype=np.int32) for i in range(0, count, BLOCK))
    return np.concatenate([images.read(part) for part in parts])


def sha256_of(images: Images, count: int) -> str:
    """Of the images' own digests, as `jaxdiff evaluate` has it of a reference."""
    whole = hashlib.sha256()
    for first in range(0, count, BLOCK):
        for image in images.read(np.arange(first, min(first + BLOCK, count), dtype=np.int32)):
            whole.update(hashlib.sha256(image.tobytes()).digest())
    return whole.hexdigest()


def digest_of(images: UInt8[np.ndarray, "n h w c"]) -> str:
    """The same of images in memory."""
    return sha256_of(Images({}, len(images), images.__getitem__), len(images))
