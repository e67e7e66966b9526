"""A folder, or a .zip, of images, with or without a metadata.jsonl.

With `metadata.jsonl` at its top, the set is the pictures which that lists, in its order: one JSON object
a line with `file_name`, and optionally `text`, `keywords` (strings) and `label` (all strings, or all integers from
0); and of pairs `source_file_name`, the picture that this one is made from, and `edit`, what was done to it, which is
the caption where there is no `text`. Without one, it is every picture at any depth, in the order of their paths, and
the sub-folders of the top are the classes if no picture lies outside them. A top that holds `train` (and `val`, `test`,
...) has these as its splits.
"""

import json
import zipfile
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Int32, UInt8

from jaxdiff.data.images import BROKEN, broken, decode
from jaxdiff.data.source import Example

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"})
SPLITS = ("train", "validation", "val", "valid", "test")
METADATA = "metadata.jsonl"
MAX_LABEL = 99_999


@dataclass(frozen=True, eq=False)
class FileSource:
    """The pictures `files` of the folder or archive `path`, decoded at each reading."""

    path: epath.Path
    files: tuple[str, ...]
    label: Int32[np.ndarray, " n"] | None
    label_names: tuple[str, ...]
    text: tuple[str, ...]
    archive: "Archive | None"
    keywords: tuple[tuple[str, ...], ...] = ()
    sources: tuple[str, ...] = ()
    """Of each picture the file that it is made from; () where the set has no pairs."""

    @property
    def name(self) -> str:
        return str(self.path)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Example:
        example = Example(image=self.picture(self.files[index]))
        if self.sources:
            example["source"] = self.picture(self.sources[index])
        if self.label is not None:
            example["label"] = int(self.label[index])
        if self.text:
            example["text"] = self.text[index]
        if self.keywords:
            example["keywords"] = self.keywords[index]
        return example

    def picture(self, file: str) -> UInt8[np.ndarray, "h w c"]:
        """A picture of the set. Raises BrokenImageError."""
        name = str(self.path / file)
        try:
            encoded = self.archive.read(file) if self.archive else (self.path / file).read_bytes()
        except (*BROKEN, zipfile.BadZipFile, RuntimeError) as error:
            raise broken(name, error) from error
        return decode(encoded, name)


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


def files_splits(path: epath.PathLike) -> tuple[str, ...]:
    """The splits of a folder or .zip: those of its sub-folders that are named as one, else `train`."""
    return _splits(_listing(epath.Path(path)))


def open_files(path: epath.PathLike, split: str) -> FileSource:
    """The pictures of a split of a folder or .zip, as this module's head says.

    Raises FileNotFoundError or ValueError, one line with the file and, in a metadata.jsonl, the line.
    """
    path = epath.Path(path)
    listing = _listing(path)
    splits = _splits(listing)
    if split not in splits:
        raise ValueError(f"--data.split {split} is not in {path}, which has {', '.join(splits)}")
    if _has_splits(listing):
        listing = listing.under(split)
    if METADATA in listing.files:
        return _from_metadata(listing)
    files = tuple(file for file in listing.files if PurePosixPath(file).suffix.lower() in SUFFIXES)
    if not files:
        where = path / listing.top
        raise FileNotFoundError(f"--data.source {where} has no images ({', '.join(sorted(SUFFIXES))})")
    folders = [file.split("/")[0] for file in files if "/" in file]
    names = tuple(sorted(set(folders)))
    label = None
    if len(folders) == len(files) and len(names) > 1:
        label = np.array([names.index(folder) for folder in folders], np.int32)
    return FileSource(
        path,
        tuple(listing.top + file for file in files),
        label,
        names if label is not None else (),
        (),
        listing.archive,
    )


def _listing(path: epath.Path) -> Listing:
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


def _splits(listing: Listing) -> tuple[str, ...]:
    if not _has_splits(listing):
        return ("train",)
    folders = {file.split("/")[0] for file in listing.files if "/" in file}
    return tuple(split for split in SPLITS if split in folders)


def _from_metadata(listing: Listing) -> FileSource:
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
    some_text, some_keywords, some_sources = (tuple(given) if any(given) else () for given in (text, keywords, sources))
    return FileSource(listing.path, tuple(files), label, names, some_text, listing.archive, some_keywords, some_sources)


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
