"""Writing precomputed sets: each shard a piece of work of its own, whole or absent, the same whoever writes it.

Shard k of K holds the examples k n / K to (k + 1) n / K - 1 of the n. Beside each lies a small JSON file with the sums
of its latents, so that mean and deviation of the whole set need no second reading.
"""

import json
import os
import socket
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jaxdiff.data.records import FEATURES, Header, to_json

RECIPE = "recipe.json"
"""What the shards of a folder are made of, written before the first of them."""

OPTIONS = "group_size:1,zstd:1"
"""Of the files: every record can be read without another. Half-floats of latents shrink by some 4%."""


class Sums(NamedTuple):
    """Of the latents of a shard, for each channel."""

    count: int
    """Latent pixels."""
    total: Float[np.ndarray, " c"]
    squares: Float[np.ndarray, " c"]


def sums(latents: Float[np.ndarray, "n h w c"]) -> Sums:
    """The sums of some latents, in float64."""
    flat = latents.reshape(-1, latents.shape[-1]).astype(np.float64)
    return Sums(len(flat), flat.sum(0), np.square(flat).sum(0))


def joined(parts: Sequence[Sums]) -> Sums:
    """The sums of all parts; added in order, so always the same."""
    first, *rest = parts
    for part in rest:
        first = Sums(first.count + part.count, first.total + part.total, first.squares + part.squares)
    return first


def mean_and_std(all_sums: Sums) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Each channel's mean, and its standard deviation, 1 where a channel never changes."""
    mean = all_sums.total / all_sums.count
    std = np.sqrt(np.maximum(all_sums.squares / all_sums.count - np.square(mean), 0.0))
    std = np.where(std > 1e-6, std, 1.0)
    return tuple(map(float, mean)), tuple(map(float, std))


def shard_name(shard: int, shards: int) -> str:
    """train-00003-of-00016.array_record"""
    return f"train-{shard:05d}-of-{shards:05d}.array_record"


def places(shard: int, shards: int, count: int) -> range:
    """The examples of a shard."""
    return range(shard * count // shards, (shard + 1) * count // shards)


def is_whole(folder: Path, shard: int, shards: int) -> bool:
    """Whether the shard has been written."""
    file = folder / shard_name(shard, shards)
    return file.is_file() and file.with_suffix(".json").is_file()


def write_shard(folder: Path, shard: int, shards: int, records: Iterable[tuple[bytes, Sums | None]]) -> None:
    """Writes records, in parts of some latents each, under the shard's own name once they are complete."""
    from array_record.python.array_record_module import ArrayRecordWriter

    file = folder / shard_name(shard, shards)
    partial = _partial(file)
    parts = []
    writer = ArrayRecordWriter(str(partial), OPTIONS)
    try:
        for record, part in records:
            writer.write(record)
            if part is not None:
                parts.append(part)
        writer.close()
        whole = joined(parts) if parts else None
        content = whole and {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in whole._asdict().items()}
        write_json(file.with_suffix(".json"), {"sums": content})
        partial.replace(file)
    finally:
        if writer.is_open():
            writer.close()
        partial.unlink(missing_ok=True)


def read_sums(folder: Path, shards: int) -> Sums | None:
    """The sums of all shards together; None where they hold no latents."""
    contents = [json.loads((folder / shard_name(k, shards)).with_suffix(".json").read_text()) for k in range(shards)]
    found = [c["sums"] for c in contents if c["sums"] is not None]
    return joined([Sums(s["count"], np.array(s["total"]), np.array(s["squares"])) for s in found]) if found else None


def write_header(folder: Path, header: Header) -> None:
    """Writes features.json: from now on the set can be read."""
    write_json(folder / FEATURES, to_json(header))


def begin(folder: Path, recipe: Mapping[str, object]) -> None:
    """Makes the folder, or checks that the shards in it are of the same recipe.

    Raises ValueError, one line that names the first difference, and for a folder with other things in it.
    """
    file = folder / RECIPE
    if not file.is_file():
        found = sorted(p.name for p in folder.iterdir() if not p.name.startswith(".")) if folder.is_dir() else []
        if found and not (folder / RECIPE).is_file():  # another worker may have begun meanwhile
            raise ValueError(f"{folder} holds {found[0]}, but no precomputed set: use a new or empty folder (OUT)")
        folder.mkdir(parents=True, exist_ok=True)
        write_json(file, recipe)
        return
    stored, wanted = json.loads(file.read_text()), json.loads(json.dumps(recipe))
    differ = [key for key in sorted({*stored, *wanted}) if stored.get(key) != wanted.get(key)]
    if differ:
        key = differ[0]
        raise ValueError(
            f"{folder} holds shards with {key} = {_short(stored.get(key))}, this command says"
            f" {_short(wanted.get(key))}: use the same, or another folder (--{key.replace('_', '-')})"
        )


def write_json(file: Path, content: object) -> None:
    """Writes the file whole or not at all."""
    partial = _partial(file)
    partial.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(partial, file)


def _partial(file: Path) -> Path:
    # Two workers may make the same shard, on one machine or on two that share the folder.
    return file.with_name(f".{file.name}.{socket.gethostname()}.{os.getpid()}")


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
