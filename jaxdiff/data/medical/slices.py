"""A set of slices, each a part of a file that may hold many: frames of DICOM, slices of NIfTI."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int

from jaxdiff.data.files import FileSource
from jaxdiff.data.source import Example


@runtime_checkable
class ReadSlice(Protocol):
    """Reads a slice as a network sees it; a value that can be pickled."""

    def __call__(self, files: FileSource, place: int, part: int) -> Float32[np.ndarray, "h w 1"]:
        """Part `part` of file `place`, in [-1, 1]. Raises: BrokenImageError, one line with the file's name."""
        ...


@dataclass(frozen=True, eq=False)
class SliceSource:
    """Image i is part `part[i]` of the file `place[i]`; labels and captions are those of its file."""

    name: str
    files: FileSource
    place: Int[np.ndarray, " n"]
    part: Int[np.ndarray, " n"]
    read: ReadSlice

    @property
    def label_names(self) -> tuple[str, ...]:
        return self.files.label_names

    @property
    def label(self) -> Int[np.ndarray, " n"] | None:
        """The label of every image."""
        return None if self.files.label is None else self.files.label[self.place]

    def __len__(self) -> int:
        return len(self.place)

    def __getitem__(self, index: int) -> Example:
        place = int(self.place[index])
        return self.files.example(place, self.read(self.files, place, int(self.part[index])))


def parts_of(name: str, files: FileSource, counts: list[int], read: ReadSlice) -> SliceSource:
    """All parts of all files, file after file."""
    places = np.repeat(np.arange(len(counts)), counts)
    parts = np.concatenate([np.arange(n) for n in counts])
    return SliceSource(name, files, places, parts, read)
