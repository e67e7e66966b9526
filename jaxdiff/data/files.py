"""A folder, or a .zip, of images, with or without a metadata.jsonl.

With `metadata.jsonl` at its top, the set is the pictures which that lists (`listing.py`). Without one, it is every
picture at any depth, in the order of their paths, and the sub-folders of the top are the classes if no picture lies
outside them.
"""

import zipfile
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
from etils import epath
from jaxtyping import Int32

from jaxdiff.data.images import BROKEN, Pixels, broken, decode
from jaxdiff.data.listing import METADATA, Archive, Listing, list_files, part_of, read_metadata, splits_of
from jaxdiff.data.source import Example
from jaxdiff.data.units import Window

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"})


@dataclass(frozen=True, eq=False)
class FileSource:
    """The pictures `files` of the folder or archive `path`, decoded at each reading."""

    path: epath.Path
    files: tuple[str, ...]
    label: Int32[np.ndarray, " n"] | None
    label_names: tuple[str, ...]
    text: tuple[str, ...]
    archive: Archive | None
    keywords: tuple[tuple[str, ...], ...] = ()
    window: Window | None = None
    """Of grey pictures of more than eight bits."""
    sources: tuple[str, ...] = ()
    """Of each picture the file that it is made from; () where the set has no pairs."""

    @property
    def name(self) -> str:
        return str(self.path)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Example:
        example = self.example(index, self.picture(self.files[index]))
        if self.sources:
            example["source"] = self.picture(self.sources[index])
        return example

    def picture(self, file: str) -> Pixels:
        """A picture of the set. Raises BrokenImageError."""
        return decode(self._content(file), str(self.path / file), self.window)

    def place(self, index: int) -> str:
        """The name of a file, for messages."""
        return str(self.path / self.files[index])

    def read(self, index: int) -> bytes:
        """The content of a file."""
        return self._content(self.files[index])

    def _content(self, file: str) -> bytes:
        try:
            return self.archive.read(file) if self.archive else (self.path / file).read_bytes()
        except (*BROKEN, zipfile.BadZipFile, RuntimeError) as error:
            raise broken(str(self.path / file), error) from error

    def example(self, index: int, image: Pixels) -> Example:
        """A picture with what the set says of it."""
        example = Example(image=image)
        if self.label is not None:
            example["label"] = int(self.label[index])
        if self.text:
            example["text"] = self.text[index]
        if self.keywords:
            example["keywords"] = self.keywords[index]
        return example


def files_splits(path: epath.PathLike) -> tuple[str, ...]:
    """The splits of a folder or .zip: those of its sub-folders that are named as one, else `train`."""
    return splits_of(list_files(epath.Path(path)))


def open_files(path: epath.PathLike, split: str, window: Window | None = None) -> FileSource:
    """The pictures of a split of a folder or .zip, as this module's head says; `window` for those of many bits.

    Raises FileNotFoundError or ValueError, one line with the file and, in a metadata.jsonl, the line.
    """
    path = epath.Path(path)
    listing = part_of(list_files(path), split)
    if METADATA in listing.files:
        return of_metadata(listing, window)
    files = tuple(file for file in listing.files if PurePosixPath(file).suffix.lower() in SUFFIXES)
    if not files:
        where = path / listing.top
        raise FileNotFoundError(f"--data.source {where} has no images ({', '.join(sorted(SUFFIXES))})")
    folders = [file.split("/")[0] for file in files if "/" in file]
    names = tuple(sorted(set(folders)))
    label = None
    if len(folders) == len(files) and len(names) > 1:
        label = np.array([names.index(folder) for folder in folders], np.int32)
    files = tuple(listing.top + file for file in files)
    return FileSource(path, files, label, names if label is not None else (), (), listing.archive, window=window)


def of_metadata(listing: Listing, window: Window | None = None) -> FileSource:
    """The files that a metadata.jsonl lists."""
    said = read_metadata(listing)
    about = (said.files, said.label, said.label_names, said.text, listing.archive, said.keywords)
    return FileSource(listing.path, *about, window, said.sources)
