"""From a set of images to records: what `jaxdiff precompute` makes of each shard, in any process."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import jax
import numpy as np
import tyro

import jaxdiff
from jaxdiff.codecs import open_codec
from jaxdiff.config import to_json
from jaxdiff.core.codec import Codec, Opened
from jaxdiff.data import Data, Source, open_source
from jaxdiff.data.pictures import Picture, Pictures
from jaxdiff.data.records import SEPARATOR, Array, Header, Latents, pack
from jaxdiff.data.shards import Sums, is_whole, mean_and_std, places, read_sums, shard_name, sums, write_shard
from jaxdiff.pretrained.minilm import TextEncoder, open_minilm

LARGEST_HALF = float(np.finfo(np.float16).max)


@dataclasses.dataclass(frozen=True)
class Encoding:
    """All that the records depend on."""

    source: Annotated[str, tyro.conf.Suppress] = ""
    """The images: whatever train.py takes as --data.source. The command's first word, and no flag."""
    codec: str = ""
    """The codec and its encoder's weights, taef2=taef2_encoder.safetensors; without one pixels are stored."""
    text: Literal["none", "minilm"] = "none"
    """What encodes the captions: nothing, or MiniLM-L6-v2."""
    text_length: int = 32
    """Tokens of each caption; longer ones are cut."""
    size: int = 256
    """Side of the square images, in pixels."""
    channels: int = 3
    """Colour channels, 3 or 1."""
    crop: Literal["center", "none"] = "center"
    """How a picture becomes square, as in train.py."""
    split: str = "train"
    """Part of the set, where it has parts."""
    flip: Literal["none", "both"] = "none"
    """Also store the latents of each mirrored picture, for train.py's --data.flip."""
    skip_broken: bool = False
    """In place of an image that cannot be read take the next good one."""
    shards: int = 16
    """Files into which the set is cut."""
    batch_size: int = 32
    """Images encoded at once, over all devices of a process."""

    def __post_init__(self) -> None:
        for name in ("shards", "batch_size"):
            if not 1 <= getattr(self, name) <= 99_999:
                flag = name.replace("_", "-")
                raise ValueError(f"{name} = {getattr(self, name)} is not allowed: 1 to 99999 (--{flag})")
        if self.flip == "both" and not self.codec:
            raise ValueError("flip both is not needed without a codec: train.py mirrors pixels itself (--flip)")


class Tools(NamedTuple):
    """What a process opens once."""

    pictures: Pictures
    source: Source
    codec: Opened | None
    text: TextEncoder | None
    arrays: tuple[Array, ...]
    caption: bool
    keywords: bool


def data_of(encoding: Encoding) -> Data:
    """The pictures as they are before they are encoded."""
    # The picture cache is of no use, since each picture is read once: workers turn it off.
    return Data(
        encoding.source,
        encoding.size,
        encoding.channels,
        crop=encoding.crop,
        split=encoding.split,
        skip_broken=encoding.skip_broken,
        workers=1,
    )


@functools.lru_cache(maxsize=1)
def tools_of(encoding: Encoding) -> Tools:
    """Opens source, codec and text encoder, once in each process. Raises ValueError or FileNotFoundError."""
    data = data_of(encoding)
    source = flagged(open_source, data)
    if not len(source):
        raise ValueError(f"{source.name} has no images (SOURCE)")
    codec = open_codec(encoding.codec) if encoding.codec else None
    if codec is not None and (encoding.size % codec.factor or encoding.channels != 3):
        raise ValueError(
            f"images of {encoding.size} x {encoding.size} x {encoding.channels} are not allowed with {codec.name}:"
            f" a multiple of {codec.factor} and 3 channels (--size, --channels)"
        )
    pictures = Pictures(data, source)
    first = pictures.good(0)
    if first["image"].dtype != np.uint8:
        raise ValueError(f"{source.name} holds latents already, or images of more than 8 bits (SOURCE)")
    text = open_minilm(encoding.text_length) if encoding.text == "minilm" else None
    if text is not None and "text" not in first:
        raise ValueError(f"{source.name} has no captions to encode (--text)")
    arrays = arrays_of(encoding, codec, text, "label" in first and bool(source.label_names))
    return Tools(pictures, source, codec, text, arrays, "text" in first, "text" in first and "keywords" in first)


def arrays_of(encoding: Encoding, codec: Opened | None, text: TextEncoder | None, label: bool) -> tuple[Array, ...]:
    """The arrays of each record."""
    if codec is None:
        arrays = [Array("image", "uint8", (encoding.size, encoding.size, encoding.channels))]
    else:
        side = encoding.size // codec.factor
        names = ("image", "flipped") if encoding.flip == "both" else ("image",)
        arrays = [Array(name, "float16", (side, side, codec.channels)) for name in names]
    if label:
        arrays.append(Array("label", "int32", ()))
    if text is not None:
        arrays.append(Array("text_tokens", "float16", (text.length, text.width)))
        arrays.append(Array("text_mask", "uint8", (text.length,)))
        arrays.append(Array("text_pooled", "float16", (text.width,)))
    return tuple(arrays)


def recipe(encoding: Encoding, tools: Tools) -> dict[str, object]:
    """All that the records depend on, for features.json and to know the shards of another encoding."""
    return {
        "jaxdiff": jaxdiff.__version__,
        "data": to_json(dataclasses.replace(data_of(encoding), workers=0)),
        "count": len(tools.source),
        "codec": tools.codec and [tools.codec.name, *tools.codec.sha256],
        "flip": encoding.flip,
        "text": tools.text and [encoding.text, tools.text.sha256, tools.text.length],
        "shards": encoding.shards,
        "batch_size": encoding.batch_size,
        **({"keywords": True} if tools.keywords else {}),
    }


def make_shard(encoding: Encoding, out: Path, shard: int) -> int:
    """Writes a shard, unless it is there; returns its number. It depends on the encoding and the number alone."""
    if not is_whole(out, shard, encoding.shards):
        tools = tools_of(encoding)
        rows = places(shard, encoding.shards, len(tools.source))
        write_shard(out, shard, encoding.shards, records(encoding, tools, rows))
    return shard


def records(encoding: Encoding, tools: Tools, rows: range) -> Iterator[tuple[bytes, Sums | None]]:
    """The records of these examples, each with the sums of its latents."""
    for first in range(rows.start, rows.stop, encoding.batch_size):
        some = range(first, min(first + encoding.batch_size, rows.stop))
        examples = [picture_and_caption(tools, i) for i in some]
        batch = np.stack([picture["image"] for picture, _ in examples])
        values: dict[str, np.ndarray] = {"image": batch}
        if tools.codec is not None:
            values["image"] = encoded(encoding, tools.codec.codec, batch)
            if encoding.flip == "both":
                values["flipped"] = encoded(encoding, tools.codec.codec, batch[:, :, ::-1])
        if tools.text is not None:
            # Filled up, so that one compilation serves all.
            captions = [words[0] for _, words in examples] + [""] * (encoding.batch_size - len(some))
            found = tools.text.encode(captions)
            values |= {"text_tokens": found.tokens, "text_mask": found.mask, "text_pooled": found.pooled}
        for i, (picture, words) in enumerate(examples):
            row = {name: value[i] for name, value in values.items()}
            if "label" in picture:
                row["label"] = picture["label"]
            part = sums(row["image"][None]) if tools.codec is not None else None
            yield pack(tools.arrays, row, SEPARATOR.join(words) if tools.caption else ""), part


def picture_and_caption(tools: Tools, index: int) -> tuple[Picture, tuple[str, ...]]:
    """A picture, fitted, and its caption with the keywords."""
    example = tools.pictures.good(index)
    words = (example.get("text", ""), *(example.get("keywords", ()) if tools.keywords else ()))
    return tools.pictures.fit(example), words


def encoded(encoding: Encoding, codec: Codec, batch: np.ndarray) -> np.ndarray:
    """float16 latents of uint8 pictures, computed over all devices of this process. Raises ValueError."""
    mesh = jax.make_mesh((jax.local_device_count(),), ("data",), devices=jax.local_devices())
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    size = -(-encoding.batch_size // mesh.size) * mesh.size
    # Always as many, whatever the shard: the same compilation, and the same rounding.
    filled = np.concatenate([batch, np.zeros((size - len(batch), *batch.shape[1:]), np.uint8)])
    latents = np.asarray(codec.encode(jax.device_put(filled.astype(np.float32) / 127.5 - 1, sharding)))[: len(batch)]
    if not np.abs(latents).max() <= LARGEST_HALF:
        raise ValueError(f"the codec gives latents beyond {LARGEST_HALF:.0f}: its weights are damaged (--codec)")
    return latents.astype(np.float16)


def header_of(encoding: Encoding, tools: Tools, out: Path) -> Header:
    """The set's features.json, once every shard is there."""
    found, latents = read_sums(out, encoding.shards), None
    if tools.codec is not None and found is not None:
        latents = Latents(tools.codec.name, tools.codec.sha256, tools.codec.factor, *mean_and_std(found))
    return Header(
        count=len(tools.source),
        shards=tuple(shard_name(k, encoding.shards) for k in range(encoding.shards)),
        arrays=tools.arrays,
        caption=tools.caption,
        label_names=tuple(tools.source.label_names) if any(a.name == "label" for a in tools.arrays) else (),
        latents=latents,
        made=recipe(encoding, tools),
        keywords=tools.keywords,
    )


def flagged(open_data: Callable[[Data], Source], data: Data) -> Source:
    """The source; its errors name the command's flags."""
    try:
        return open_data(data)
    except (ValueError, FileNotFoundError) as error:
        text = str(error).replace("--data.source", "SOURCE").replace("--data.", "--")
        raise ValueError(text) from error
