"""Sets of scans: DICOM images and slices of NIfTI volumes as pictures in [-1, 1], read by index.

Labels and captions come from a metadata.jsonl alone: folders of scans are patients and studies as often as classes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from etils import epath
from jaxtyping import Float32

from jaxdiff.data.config import Plane
from jaxdiff.data.files import FileSource, of_metadata
from jaxdiff.data.listing import METADATA, Listing, list_files, part_of, splits_of
from jaxdiff.data.medical import dicom, nifti
from jaxdiff.data.medical.geometry import AXES, Slice
from jaxdiff.data.medical.slices import SliceSource, parts_of
from jaxdiff.data.units import Window, to_network

DICOM_SUFFIXES = frozenset({".dcm", ".dicom", ".ima"})
"""Files that must be DICOM; those without such a suffix are, if they begin as DICOM files do."""


@dataclass(frozen=True)
class ReadDicom:
    """Frames of DICOM files, by a window in units or (None) by the one that each file has."""

    window: Window | None

    def __call__(self, files: FileSource, place: int, part: int) -> Float32[np.ndarray, "h w 1"]:
        image = dicom.read_dicom(files.read(place), files.place(place), part)
        return to_network(image.values, self.shown(image))[..., None]

    def shown(self, image: Slice) -> Window:
        """The window by which an image is seen; black for white where the file is MONOCHROME1."""
        if self.window is None:
            return image.window
        return self.window if image.window.low < image.window.high else self.window.swapped


@dataclass(frozen=True)
class ReadNifti:
    """Slices of NIfTI volumes across a plane, by a window in units or (None) by the one that each volume has."""

    plane: Plane
    window: Window | None

    def __call__(self, files: FileSource, place: int, part: int) -> Float32[np.ndarray, "h w 1"]:
        file = Path(files.place(place))
        return to_network(nifti.read_slice(file, self.plane, part), self.shown(file))[..., None]

    def shown(self, file: Path) -> Window:
        """The window by which a volume is seen."""
        return self.window or nifti.window_of_file(file)


def scan_splits(path: epath.PathLike) -> tuple[str, ...]:
    """The splits of a folder or .zip of scans; `train` of a single file."""
    path = epath.Path(path)
    return ("train",) if is_single(path) else splits_of(list_files(path))


def open_dicom(path: epath.PathLike, split: str, window: Window | None) -> SliceSource:
    """The images of a DICOM file, or of all those in a folder or .zip, in the order of their paths.

    Raises: FileNotFoundError or ValueError, one line with the flag.
    """
    path = epath.Path(path)
    files = files_of(path, split, is_dicom, "DICOM images")
    counts = []
    for i, file in enumerate(files.files):
        with files.archive.open(file) if files.archive else (files.path / file).open("rb") as stream:
            counts.append(dicom.frames_of(stream, files.place(i)))
    return parts_of(f"dicom:{path}", files, counts, ReadDicom(window))


def open_nifti(path: epath.PathLike, split: str, plane: Plane, window: Window | None) -> SliceSource:
    """The slices of a NIfTI volume, or of all those in a folder, in the order of their paths.

    Raises: FileNotFoundError or ValueError, one line with the flag.
    """
    path = epath.Path(path)
    if path.suffix.lower() == ".zip":
        raise ValueError(f"--data.source nifti:{path} must be a file or a folder of .nii or .nii.gz")
    files = files_of(path, split, lambda listing, file: nifti.is_nifti(file), "NIfTI volumes (.nii, .nii.gz)")
    counts = [nifti.shape_of(Path(files.place(i)))[AXES[plane]] for i in range(len(files))]
    return parts_of(f"nifti:{path}", files, counts, ReadNifti(plane, window))


def is_single(path: epath.Path) -> bool:
    """Whether one file is meant, and no set of them."""
    return path.is_file() and path.suffix.lower() != ".zip"


def is_dicom(listing: Listing, file: str) -> bool:
    """Whether a file of a listing is taken for DICOM."""
    path = PurePosixPath(file)
    if path.suffix.lower() in DICOM_SUFFIXES:
        return True
    if path.name == "DICOMDIR":
        return False
    with listing.open(file) as stream:
        return dicom.is_dicom(stream)


def files_of(path: epath.Path, split: str, wanted: Callable[[Listing, str], bool], kind: str) -> FileSource:
    """The files of a split that are wanted, or those that its metadata.jsonl lists."""
    if is_single(path):
        if split != "train":
            raise ValueError(f"--data.split {split} is not in {path}, which has train")
        return FileSource(path.parent, (path.name,), None, (), (), None)
    listing = part_of(list_files(path), split)
    if METADATA in listing.files:
        return of_metadata(listing)
    files = tuple(listing.top + file for file in listing.files if wanted(listing, file))
    if not files:
        raise FileNotFoundError(f"--data.source {path / listing.top} has no {kind}")
    return FileSource(path, files, None, (), (), listing.archive)
