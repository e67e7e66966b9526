"""Precomputed features: ArrayRecord shards, and a features.json beside them that says what a record holds.

    DIR/features.json
    DIR/train-00000-of-00016.array_record ...

A record is the bytes of its arrays one after the other, in the order of features.json: little-endian, the last index
fastest; a caption, if there is one, is the UTF-8 text after them, and its keywords follow it, each after a zero byte.
Records lie in the order of the set that they were made of, shard after shard. Latents are stored as the codec gave
them and read as ``(z - mean) / std``, channel by channel.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence, Sized
from dataclasses import asdict, dataclass
from typing import NamedTuple, cast

import grain
import numpy as np
from etils import epath
from jaxtyping import Float32, UInt8

from jaxdiff.data.cache import user_cache
from jaxdiff.data.config import Data
from jaxdiff.data.source import Example

FEATURES = "features.json"
VERSION = 2
"""Of the format; what holds no keywords is written as version 1, which it also is."""

SEPARATOR = "\0"
"""Between a caption and its keywords."""

TEXT = ("text_tokens", "text_mask", "text_pooled")
"""What a frozen text encoder said of the caption."""


class Array(NamedTuple):
    """An array of each record."""

    name: str
    """image, flipped (the mirrored picture's), label, or one of `TEXT`."""
    dtype: str
    """NumPy's name."""
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Latents:
    """What the floats called image are."""

    codec: str
    """Name of the codec."""
    sha256: tuple[str, ...]
    """Of its files of weights."""
    factor: int
    """Pixels a side for each latent pixel."""
    mean: tuple[float, ...]
    """Of each channel over the whole set."""
    std: tuple[float, ...]


@dataclass(frozen=True)
class Header:
    """features.json."""

    count: int
    """Records."""
    shards: tuple[str, ...]
    """Names of their files, in order."""
    arrays: tuple[Array, ...]
    caption: bool
    """Whether a record ends with its caption."""
    label_names: tuple[str, ...]
    latents: Latents | None
    """None: pixels."""
    made: Mapping[str, object]
    """All that the records depend on."""
    keywords: bool = False
    """Whether keywords follow the caption."""

    @property
    def image(self) -> Array:
        """The array called image."""
        return next(a for a in self.arrays if a.name == "image")


def to_json(header: Header) -> dict[str, object]:
    """The content of features.json."""
    return {
        "version": VERSION if header.keywords else 1,
        "count": header.count,
        "shards": list(header.shards),
        "arrays": [{"name": a.name, "dtype": a.dtype, "shape": list(a.shape)} for a in header.arrays],
        "caption": header.caption,
        **({"keywords": True} if header.keywords else {}),
        "label_names": list(header.label_names),
        "latents": None if header.latents is None else asdict(header.latents),
        "made": dict(header.made),
    }


def read_header(folder: epath.PathLike) -> Header:
    """The header of the set in `folder`. Raises FileNotFoundError or ValueError, one line."""
    file = epath.Path(folder) / FEATURES
    if not file.is_file():
        raise FileNotFoundError(
            f"--data.source records:{folder} has no {FEATURES}: jaxdiff precompute writes it when every shard is there"
        )
    try:
        content = json.loads(file.read_text())
        if content["version"] not in (1, VERSION):
            raise ValueError(f"its version is {content['version']}, this jaxdiff reads 1 and {VERSION}")
        arrays = tuple(Array(a["name"], np.dtype(a["dtype"]).name, tuple(a["shape"])) for a in content["arrays"])
        latents = content["latents"]
        return Header(
            count=content["count"],
            shards=tuple(content["shards"]),
            arrays=arrays,
            caption=content["caption"],
            label_names=tuple(content["label_names"]),
            latents=None if latents is None else latents_from_json(latents),
            made=content["made"],
            keywords=content.get("keywords", False),
        )
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ValueError(f"--data.source records:{folder}: {file} cannot be read ({reason})") from error


def latents_from_json(content: Mapping) -> Latents:
    """The inverse of `dataclasses.asdict` of latents in JSON."""
    mean, std = (tuple(map(float, content[key])) for key in ("mean", "std"))
    return Latents(content["codec"], tuple(content["sha256"]), content["factor"], mean, std)


def pack(arrays: Sequence[Array], values: Mapping[str, np.ndarray], caption: str = "") -> bytes:
    """A record, with or without a caption. Raises ValueError where a value has another shape than its array."""
    parts = []
    for array in arrays:
        value = np.asarray(values[array.name])
        if value.shape != array.shape:
            raise ValueError(f"{array.name} has the shape {list(value.shape)} in place of {list(array.shape)}")
        parts.append(value.astype(_little(array)).tobytes())
    return b"".join(parts) + caption.encode()


def unpack(arrays: Sequence[Array], record: bytes) -> tuple[dict[str, np.ndarray], str]:
    """(arrays by name, caption) of a record. Raises ValueError for one that is too short."""
    values, place = {}, 0
    for array in arrays:
        count = int(np.prod(array.shape, dtype=np.int64))
        end = place + count * _little(array).itemsize
        if end > len(record):
            break
        values[array.name] = np.frombuffer(record, _little(array), count, place).reshape(array.shape)
        place = end
    if len(values) < len(arrays):
        raise ValueError(f"a record has {len(record)} bytes, fewer than {FEATURES} says")
    return values, record[place:].decode()


def _little(array: Array) -> np.dtype:
    return np.dtype(array.dtype).newbyteorder("<")


@dataclass(frozen=True, eq=False)
class RecordSource:
    """A precomputed set. Latents come as float32 of zero mean and unit variance, pixels as uint8."""

    name: str
    header: Header
    records: grain.sources.ArrayRecordDataSource

    @property
    def label_names(self) -> tuple[str, ...]:
        return self.header.label_names

    def __len__(self) -> int:
        return self.header.count

    def __getitem__(self, index: int) -> Example:
        values, caption = unpack(self.header.arrays, self.records[index])
        example = Example(image=self._image(values["image"]))
        if "flipped" in values:
            example["flipped"] = self._image(values["flipped"])
        if "label" in values:
            example["label"] = int(values["label"])
        if self.header.caption:
            text, *keywords = caption.split(SEPARATOR) if self.header.keywords else [caption]
            example["text"] = text
            if self.header.keywords:
                example["keywords"] = tuple(keywords)
        texts = {key: values[key].astype(np.float32) for key in TEXT if key in values}
        return cast(Example, {**example, **texts})

    def _image(self, value: np.ndarray) -> UInt8[np.ndarray, "h w c"] | Float32[np.ndarray, "h w c"]:
        latents = self.header.latents
        if latents is None:
            return value
        mean, std = np.asarray(latents.mean, np.float32), np.asarray(latents.std, np.float32)
        return (value.astype(np.float32) - mean) / std


def open_records(folder: epath.PathLike, split: str) -> RecordSource:
    """The set in `folder`. Raises FileNotFoundError or ValueError, one line, where it is not whole."""
    folder = epath.Path(folder)
    header = read_header(folder)
    if split != "train":
        raise ValueError(f"--data.split {split} is not in records:{folder}, which has train")
    for shard in header.shards:
        if not (folder / shard).is_file():
            raise FileNotFoundError(f"--data.source records:{folder} lacks {shard}: run jaxdiff precompute again")
    try:
        files = [str(local_copy(folder, shard)) for shard in header.shards]
        records = grain.sources.ArrayRecordDataSource(files)
        found = len(cast(Sized, records))
    except (RuntimeError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"--data.source records:{folder} has a damaged shard ({reason})") from error
    if found != header.count:
        raise ValueError(f"--data.source records:{folder} has {found} records, {FEATURES} says {header.count}")
    return RecordSource(f"records:{folder}", header, records)


def local_copy(folder: epath.Path, shard: str) -> epath.Path:
    """The file itself, or of a bucket's, which ArrayRecord cannot read, a copy in the user's cache, made once.

    A set that was written anew is copied anew.
    """
    if "://" not in str(folder):
        return folder / shard
    written = hashlib.sha256(str(folder).encode() + (folder / FEATURES).read_bytes()).hexdigest()[:16]
    cache = user_cache("records") / written
    copy = cache / shard
    if not copy.exists():
        cache.mkdir(parents=True, exist_ok=True)
        part = cache / f"{shard}.{os.getpid()}"  # several processes may copy at once
        with (folder / shard).open("rb") as there, part.open("wb") as here:
            shutil.copyfileobj(there, here, 1 << 24)
        part.replace(copy)
    return copy


def check_latents(data: Data, source: RecordSource) -> None:
    """Refuses what cannot be done with latents. Raises ValueError, one line; pixels are not concerned."""
    header = source.header
    if header.latents is None:
        return
    height, width, channels = header.image.shape
    if (height, width, channels) != (data.size, data.size, data.channels):
        raise ValueError(
            f"{source.name} has latents of {height} x {width} x {channels}:"
            f" --data.size {height} --data.channels {channels} are needed"
        )
    if data.flip and all(a.name != "flipped" for a in header.arrays):
        raise ValueError(f"--data.flip needs mirrored latents, which {source.name} lacks: precompute with --flip both")
    for flag, wrong in (("augment", data.augment > 0), ("crop random", data.crop == "random")):
        if wrong:
            raise ValueError(f"--data.{flag} is not possible with latents ({source.name}): only with pixels")
