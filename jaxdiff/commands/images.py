"""What an evaluation looks at: numbered images, of a run or of a data set, and what networks see in them."""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np
from etils import epath
from jaxtyping import Int, Shaped, UInt8

from jaxdiff.config import to_json
from jaxdiff.data import Data, Source, open_source
from jaxdiff.data.pictures import Pictures
from jaxdiff.data.pipeline import validation_batch
from jaxdiff.data.sources import find
from jaxdiff.evaluation.store import Outputs
from jaxdiff.networks.feature_net import FeatureNet
from jaxdiff.sampler import check_alone
from jaxdiff.trained import Trained
from jaxdiff.training import hosts
from jaxdiff.training.sharding import make_mesh, replicated, shard_batch, share, to_host

Indices = Int[np.ndarray, "n"]


class Images(NamedTuple):
    """Images that are read by number."""

    what: dict[str, object]
    """All that they depend on, for records; equal for equal images."""
    count: int | None
    """How many there are; None: as many as are asked for."""
    read: Callable[[Indices], UInt8[np.ndarray, "n h w c"]]


def images_of_run(trained: Trained) -> Images:
    """What a trained network makes."""

    def read(indices: Indices) -> UInt8[np.ndarray, "n h w c"]:
        check_alone(trained.config)
        size, made = trained.batch_size, []
        for first in range(0, len(indices), size):
            some = indices[first : first + size]
            # The last batch is filled up with further numbers, so that one compilation serves all.
            made.append(trained.images(np.resize(some, size))[: len(some)])
        return np.concatenate(made)

    return Images(trained.description(), None, read)


def images_of_data(data: Data, source: Source | None = None, part: str = "") -> Images:
    """The pictures of a data set in their order, as training would see them without anything random.

    `source`: those of this part of it, by default those that training reads.
    """
    data = dataclasses.replace(data, text=False, keywords=False)
    data = dataclasses.replace(data, flip=False, augment=0.0, crop="center" if data.crop == "random" else data.crop)
    pictures = Pictures(data, open_source(data) if source is None else source)

    def read(indices: Indices) -> UInt8[np.ndarray, "n h w c"]:
        return eight_bits(validation_batch(data, pictures, range(int(indices[0]), int(indices[-1]) + 1))["image"])

    what = to_json(dataclasses.replace(data, workers=0, labels=True, skip_broken=False))
    return Images({"data": what, **({"part": part} if part else {})}, len(pictures), read)


def eight_bits(images: Shaped[np.ndarray, "n h w c"]) -> UInt8[np.ndarray, "n h w c"]:
    """Pictures as a screen shows them: those of more bits, in [-1, 1], are rounded to 256 grey levels."""
    if images.dtype == np.uint8:
        return images
    return np.clip(np.round(127.5 * (images + 1)), 0, 255).astype(np.uint8)


def data_of_folder(folder: epath.PathLike) -> Data:
    """A folder, a zip or an .npz of images of one size, as a data set. Raises: ValueError for other sizes."""
    source = find(str(folder)).open("train")
    height, width, channels = source[0]["image"].shape
    if height != width:
        raise ValueError(f"{folder}: images of {width} x {height} pixels cannot be evaluated: square ones are needed")
    return Data(str(folder), size=height, channels=min(channels, 3), labels=False)


def looker(nets: Mapping[str, FeatureNet], images: Images, batch_size: int, keep: bool) -> Callable[[Indices], Outputs]:
    """indices -> what each network says of these images, "images" themselves if they are kept, and their SHA-256."""
    mesh = make_mesh()
    size = -(-batch_size // share(mesh)) * share(mesh)
    forwards = {name: jax.jit(net.forward) for name, net in nets.items()}
    params = {name: hosts.place(net.params, replicated(mesh)) for name, net in nets.items()}

    def look(indices: Indices) -> Outputs:
        pictures = images.read(indices)
        parts: dict[str, list[np.ndarray]] = {}
        for first in range(0, len(pictures), size):
            some = pictures[first : first + size]
            filled = np.concatenate([some, np.zeros((size - len(some), *some.shape[1:]), np.uint8)])
            batch = shard_batch(mesh, {"image": filled})["image"]
            for name, forward in forwards.items():
                for key, value in forward(params[name], batch).items():
                    parts.setdefault(f"{label(nets[name])}/{key}", []).append(to_host(value)[: len(some)])
        outputs = {key: np.concatenate(values) for key, values in parts.items()}
        hashes = [np.frombuffer(hashlib.sha256(p.tobytes()).digest(), np.uint8) for p in pictures]
        return outputs | {"sha256": np.stack(hashes)} | ({"images": pictures} if keep else {})

    return look


def label(net: FeatureNet) -> str:
    """A network's name with the beginning of its weights' SHA-256: whose outputs are kept."""
    return f"{net.name}@{net.weights_sha256[:8]}"
