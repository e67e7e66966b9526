"""Maps that were made of slices, written as scans: on the grid of the originals, in their units."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int

from jaxdiff.data.config import Crop
from jaxdiff.data.images import unfit
from jaxdiff.data.medical import dicom, nifti
from jaxdiff.data.medical.geometry import AXES
from jaxdiff.data.medical.slices import SliceSource
from jaxdiff.data.medical.sources import ReadDicom, ReadNifti


def write_maps(
    folder: Path,
    source: SliceSource,
    places: Int[np.ndarray, "n"],
    maps: Float32[np.ndarray, "n h w"],
    crop: Crop,
    description: str,
    anonymous: bool,
) -> list[str]:
    """Writes maps of the images `places` of the source, whole or not at all; returns the files' names.

    A map is a difference of what the network saw, which runs from -1 to 1: half the width of the window makes units of
    it. Of DICOM each map becomes a derived image, of NIfTI all maps of a volume one volume, 0 in slices without a map.
    Raises: ValueError where the folder holds something.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty: name a new folder (--out)")
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        if isinstance(source.read, ReadNifti):
            _volumes(part, source, source.read, places, maps, crop)
        elif isinstance(source.read, ReadDicom):
            _images(part, source, source.read, places, maps, crop, description, anonymous)
        if folder.exists():
            folder.rmdir()
        part.replace(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return sorted(file.name for file in folder.iterdir())


def _images(
    part: Path,
    source: SliceSource,
    read: ReadDicom,
    places: Int[np.ndarray, "n"],
    maps: Float32[np.ndarray, "n h w"],
    crop: Crop,
    description: str,
    anonymous: bool,
) -> None:
    series = dicom.new_uid()
    for index, each in zip(places, maps, strict=True):
        place, frame = int(source.place[index]), int(source.part[index])
        original = source.files.read(place)
        image = dicom.read_dicom(original, source.files.place(place), frame)
        window = read.shown(image)
        height, width = image.values.shape
        values = unfit(each[..., None], height, width, crop)[..., 0] * (abs(window.high - window.low) / 2)
        step = dicom.step_of(values)
        made = dicom.derived(original, values, series, description, anonymous=anonymous, rescale=step)
        dicom.write(part / f"{index:06d}.dcm", made)


def _volumes(
    part: Path,
    source: SliceSource,
    read: ReadNifti,
    places: Int[np.ndarray, "n"],
    maps: Float32[np.ndarray, "n h w"],
    crop: Crop,
) -> None:
    for volume in sorted({int(v) for v in source.place[places]}):
        file = Path(source.files.place(volume))
        window, shape = read.shown(file), nifti.shape_of(file)
        height, width = plane_size(shape, AXES[read.plane])
        slices = np.zeros((shape[AXES[read.plane]], height, width), np.float32)
        for index, each in zip(places, maps, strict=True):
            if source.place[index] == volume:
                whole = unfit(each[..., None], height, width, crop)[..., 0]
                slices[source.part[index]] = whole * (abs(window.high - window.low) / 2)
        name = "-".join(Path(source.files.files[volume]).parts)
        nifti.write_like(part / name, slices, read.plane, file)


def plane_size(shape: Sequence[int], axis: int) -> tuple[int, int]:
    """(rows, columns) of the slices across an axis of R, A, S."""
    columns, rows = (n for i, n in enumerate(shape) if i != axis)
    return rows, columns
