"""Features of many images, made chunk by chunk and kept on the way, so that an interrupted evaluation goes on.

A chunk is an .npz of `CHUNK` images' outputs (the last may have fewer), an array [n, ...] by name. It has its name only
once it is complete.
"""

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Collection, Mapping

import jax
import numpy as np
from etils import epath
from jaxtyping import Int
from tqdm import tqdm

CHUNK = 256
"""Images in a chunk."""

Outputs = Mapping[str, np.ndarray]
"""Arrays [n, ...] by name: "images", or what a network says of them, as "inception-2015-12-05/logits"."""


def digest(value: object) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of a value's JSON: names what was made with these settings."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def gather(
    folder: epath.PathLike,
    names: Collection[str],
    num: int,
    make: Callable[[Int[np.ndarray, "n"]], Outputs],
    title: str = "",
) -> dict[str, np.ndarray]:
    """The outputs `names` of images 0 to num - 1: read from the chunks in `folder`, or made by `make` and kept.

    `make` is called with at most `CHUNK` numbers and returns at least these outputs. Of many processes all must call
    this: all make a chunk together or none does, and process 0 writes it.
    """
    folder, first_process = epath.Path(folder), jax.process_index() == 0
    if first_process:
        folder.mkdir(parents=True, exist_ok=True)
    parts: list[dict[str, np.ndarray]] = []
    quiet = True if num <= CHUNK or not first_process else None
    for first in tqdm(range(0, num, CHUNK), desc=title, unit="chunk", disable=quiet):
        count = min(CHUNK, num - first)
        path = folder / f"{first:08d}.npz"
        kept = read(path)
        if not everywhere(all(name in kept and len(kept[name]) >= count for name in names)):
            kept = dict(make(np.arange(first, first + count, dtype=np.int32)))
            if first_process:
                write(path, kept)
        parts.append({name: kept[name][:count] for name in names})
    return {name: np.concatenate([part[name] for part in parts]) for name in names}


def everywhere(condition: bool) -> bool:
    """Whether this is so on all processes: every process must ask."""
    if jax.process_count() == 1:
        return condition
    from jax.experimental import multihost_utils

    return bool(np.all(multihost_utils.process_allgather(np.array(condition, np.int32))))


def read(path: epath.Path) -> dict[str, np.ndarray]:
    """The arrays of a chunk; none where it does not exist or cannot be read."""
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            return {name.replace("|", "/"): file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return {}


def write(path: epath.Path, arrays: Outputs) -> None:
    """Writes a chunk, whole or not at all."""
    whole = io.BytesIO()
    # Names become files of a zip, in which a slash would be a folder.
    np.savez(whole, **{name.replace("/", "|"): value for name, value in arrays.items()})  # pyright: ignore
    write_whole(path, whole.getvalue())


def write_whole(path: epath.Path, content: bytes) -> None:
    """Writes a file that has its name only once it is complete."""
    partial = path.parent / f".{path.name}.part"
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
