"""What lies in a folder or a .zip: its files, its splits, and what a metadata.jsonl says of them.

With `metadata.jsonl` at its top, the set is the pictures which that lists, in its order: one JSON object
a line with `file_name`, and optionally `text`, `keywords` (strings) and `label` (all strings, or all integers from
0); and of pairs `source_file_name`, the picture that this one is made from, and `edit`, what was done to it, which is
the caption where there is no `text`. A top that holds `train` (and `val`, `test`, ...) has these as its splits.
"""

import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO, NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Int32

SPLITS = ("train", "validation", "val", "valid", "test")
METADATA = "metadata.jsonl"
MAX_LABEL = 99_999

Stream = IO[bytes] | io.BufferedIOBase
"""A file that is being read."""


class Archive:
    """A .zip that threads may read together, and that each process to which it is sent opens for itself."""

    def __init__(self, path: epath.Path):
        self.path = path
        try:
            self.file = zipfile.ZipFile(path.open("rb"))  # pyright: ignore[reportArgumentType]
        except (OSError, zipfile.BadZipFile) as error:
            raise ValueError(f"--data.source {path} is not a whole .zip file") from error

    def __reduce__(self):
        return Archive, (self.path,)

    def files(self) -> list[str]:
        return [info.filename for info in self.file.infolist() if not info.is_dir()]

    def read(self, name: str) -> bytes:
        return self.file.read(name)

    def open(self, name: str) -> Stream:
        return self.file.open(name)


@dataclass(frozen=True)
class Listing:
    """The files of a set: `top` is the folder inside `path` in which the set lies ("" or ends in /)."""

    path: epath.Path
    archive: Archive | None
    top: str
    files: tuple[str, ...]

    def under(self, folder: str) -> "Listing":
        """The part of the listing in a folder of its top."""
        top = f"{self.top}{folder}/"
        files = (f.removeprefix(f"{folder}/") for f in self.files if f.startswith(f"{folder}/"))
        return Listing(self.path, self.archive, top, tuple(files))

    def read(self, file: str) -> bytes:
        name = self.top + file
        return self.archive.read(name) if self.archive else (self.path / name).read_bytes()

    def open(self, file: str) -> Stream:
        name = self.top + file
        return self.archive.open(name) if self.archive else (self.path / name).open("rb")  # pyright: ignore


def list_files(path: epath.Path) -> Listing:
    """Every file of the set but hidden ones, sorted, without the folders that hold all of them."""
    if not path.exists():
        raise FileNotFoundError(f"--data.source {path} does not exist")
    archive = None if path.is_dir() else Archive(path)
    names = archive.files() if archive else _files_under(path)
    hidden = (".", "__MACOSX")
    files = sorted(n for n in names if not any(part.startswith(hidden) for part in n.split("/")))
    listing = Listing(path, archive, "", tuple(files))
    while files and all("/" in file for file in listing.files):
        folders = {file.split("/")[0] for file in listing.files}
        if len(folders) > 1 or folders <= set(SPLITS):
            break
        listing = listing.under(folders.pop())
    return listing


def _files_under(path: epath.Path) -> list[str]:
    """Every file of a folder, or of a bucket's, at any depth."""

    def key(folder: object) -> str:
        return str(folder).rpartition("://")[2].strip("/")  # walking through a bucket leaves out the gs://

    return [
        PurePosixPath(key(folder).removeprefix(key(path)).strip("/"), file).as_posix()
        for folder, _, files in path.walk()
        for file in files
    ]


def _has_splits(listing: Listing) -> bool:
    return METADATA not in listing.files and any(file.startswith("train/") for file in listing.files)


def splits_of(listing: Listing) -> tuple[str, ...]:
    """The sub-folders of the top that are named as a split, else `train`."""
    if not _has_splits(listing):
        return ("train",)
    folders = {file.split("/")[0] for file in listing.files if "/" in file}
    return tuple(split for split in SPLITS if split in folders)


def part_of(listing: Listing, split: str) -> Listing:
    """The files of a split. Raises: ValueError, naming the splits that there are."""
    splits = splits_of(listing)
    if split not in splits:
        raise ValueError(f"--data.split {split} is not in {listing.path}, which has {', '.join(splits)}")
    return listing.under(split) if _has_splits(listing) else listing


class Metadata(NamedTuple):
    """What a metadata.jsonl says, in its order; empty where it says nothing of the kind."""

    files: tuple[str, ...]
    """From the top of the folder or archive."""
    label: Int32[np.ndarray, " n"] | None
    label_names: tuple[str, ...]
    text: tuple[str, ...]
    keywords: tuple[tuple[str, ...], ...]
    sources: tuple[str, ...]
    """Of each picture the file that it is made from."""


def read_metadata(listing: Listing) -> Metadata:
    """The metadata.jsonl at the top. Raises: ValueError or FileNotFoundError, one line with the file's line."""
    where = listing.path / f"{listing.top}{METADATA}"
    try:
        lines = listing.read(METADATA).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} is not UTF-8 text") from error
    present = set(listing.files)
    files, labels, text, keywords, sources = [], [], [], [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        entry = _entry(line, f"{where} line {number}")
        file = str(PurePosixPath(entry.file_name))
        source = entry.source and str(PurePosixPath(entry.source))
        for name in (file, source):
            if name and name not in present:
                raise FileNotFoundError(f"{where} line {number}: {name} does not exist beside it")
        files.append(listing.top + file)
        sources.append(source and listing.top + source)
        labels.append(entry.label)
        text.append(entry.text)
        keywords.append(entry.keywords)
    if not files:
        raise ValueError(f"{where} lists no images (--data.source)")
    label, names = _labels(labels, str(where))
    if any(sources) and not all(sources):
        raise ValueError(f"{where}: every line must have a source_file_name, or none")
    said = (tuple(given) if any(given) else () for given in (text, keywords, sources))
    return Metadata(tuple(files), label, names, *said)


class Entry(NamedTuple):
    """A line of metadata.jsonl."""

    file_name: str
    label: str | int | None
    text: str
    keywords: tuple[str, ...]
    source: str


def _entry(line: str, where: str) -> Entry:
    """The object on a line of metadata.jsonl, its types checked."""
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not JSON ({error})") from error
    if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str):
        raise ValueError(f'{where} must be an object with a string "file_name"')
    label, text, keywords = entry.get("label"), entry.get("text"), entry.get("keywords") or []
    for key in ("text", "edit", "source_file_name"):
        if not isinstance(entry.get(key, ""), str | None):
            raise ValueError(f"{where}: {key} must be a string, got {entry[key]!r}")
    if not isinstance(keywords, list) or not all(isinstance(word, str) for word in keywords):
        raise ValueError(f"{where}: keywords must be a list of strings, got {keywords!r}")
    if label is not None and (isinstance(label, bool) or not isinstance(label, str | int)):
        raise ValueError(f"{where}: label must be a string or an integer, got {label!r}")
    if isinstance(label, int) and not 0 <= label <= MAX_LABEL:
        raise ValueError(f"{where}: label {label} is out of range, must be in 0..{MAX_LABEL}")
    source = entry.get("source_file_name") or ""
    return Entry(entry["file_name"], label, text or entry.get("edit") or "", tuple(keywords), source)


def _labels(labels: list[str | int | None], where: str) -> tuple[Int32[np.ndarray, " n"] | None, tuple[str, ...]]:
    """Labels as numbers, and the names of the classes: sorted strings, or the numbers themselves."""
    if all(label is None for label in labels):
        return None, ()
    numbers = [label for label in labels if isinstance(label, int)]
    if len(numbers) == len(labels):
        return np.array(numbers, np.int32), tuple(map(str, range(max(numbers) + 1)))
    words = [label for label in labels if isinstance(label, str)]
    if len(words) < len(labels):
        raise ValueError(f"{where}: every line must have a label of one kind, a string or an integer")
    names = sorted(set(words))
    place = {name: i for i, name in enumerate(names)}
    return np.array([place[word] for word in words], np.int32), tuple(names)
