"""NIfTI volumes: reading slices in units, as radiologists see them, and writing volumes on the same grid.

The affine says where voxels lie; slices are cut along the axes of the patient that are nearest to the volume's own, so
no voxel is resampled. `.nii` files are read slice by slice, `.nii.gz` as a whole, and a few of those are kept.
"""

import functools
import os
from pathlib import Path
from typing import NamedTuple

import nibabel
import numpy as np
from jaxtyping import Float32, Int
from nibabel.filebasedimages import ImageFileError
from nibabel.orientations import apply_orientation, io_orientation, ornt_transform
from nibabel.spatialimages import HeaderDataError

from jaxdiff.data.config import Plane
from jaxdiff.data.images import broken
from jaxdiff.data.medical.geometry import AXES, Volume, box_of, plane_of
from jaxdiff.data.units import Window, check_finite, range_of

BROKEN = (ImageFileError, HeaderDataError, OSError, EOFError, ValueError, TypeError, KeyError, IndexError)
"""What nibabel raises on files that it cannot read."""

OUTLIERS = 0.001
"""Share of a volume's voxels at either end that its own window leaves out, for single ones may be far off."""

KEPT = 4
"""Compressed volumes that are kept in memory."""

RAS = np.array([[0, 1], [1, 1], [2, 1]])


class Shape(NamedTuple):
    """A volume's size along R, A and S."""

    x: int
    y: int
    z: int


def is_nifti(name: str) -> bool:
    """Whether a file's name ends as those of NIfTI do."""
    return name.lower().endswith((".nii", ".nii.gz"))


def shape_of(path: Path) -> Shape:
    """The size of a volume. Raises: BrokenImageError, one line with the file's name."""
    try:
        image = load(path)
        sizes = image.shape[:3]
        ornt = orientation_of(image)
        return Shape(*(int(sizes[int(np.flatnonzero(ornt[:, 0] == axis)[0])]) for axis in range(3)))
    except BROKEN as error:
        raise broken(str(path), error) from error


def read_slice(path: Path, plane: Plane, index: int) -> Float32[np.ndarray, "h w"]:
    """A slice in units, as it is shown. Raises: BrokenImageError, one line with the file's name, for NaN too."""
    try:
        if path.name.lower().endswith(".gz"):
            values = plane_of(box(path), plane, index)
        else:
            image = load(path)
            ornt = orientation_of(image)
            native = int(np.flatnonzero(ornt[:, 0] == AXES[plane])[0])
            place = index if ornt[native, 1] > 0 else image.shape[native] - 1 - index
            some: list[slice | int] = [slice(None)] * 3 + [0] * (len(image.shape) - 3)
            some[native] = slice(place, place + 1)
            cut = np.asarray(image.dataobj[tuple(some)], np.float32)
            values = plane_of(apply_orientation(cut, ornt), plane, 0)
        values = np.ascontiguousarray(values, np.float32)
        check_finite(values)
        return values
    except BROKEN as error:
        raise broken(str(path), error) from error


def read_volume(path: Path) -> Volume:
    """A whole volume along R, A and S, in units. Raises: BrokenImageError, one line with the file's name."""
    try:
        image = load(path)
        values = box(path) if path.name.lower().endswith(".gz") else in_ras(image)
        check_finite(values)
        ornt = orientation_of(image)
        affine = image.affine @ nibabel.orientations.inv_ornt_aff(ornt, image.shape[:3])
        return Volume(values, affine.astype(np.float64), window_of_file(path), unit_of(image))
    except BROKEN as error:
        raise broken(str(path), error) from error


def unit_of(image: nibabel.Nifti1Pair) -> str:
    """What the header says of its values: seldom anything."""
    said = image.header.get("intent_name", b"")
    return bytes(said).split(b"\0")[0].decode("latin-1").strip() if said is not None else ""


@functools.lru_cache(maxsize=1024)
def window_of_file(path: Path) -> Window:
    """The window in the header (cal_min, cal_max), or the range of the volume's values but for few outliers."""
    image = load(path)
    low, high = (float(image.header[name]) for name in ("cal_min", "cal_max"))
    if high > low:
        return Window(low, high)
    values = in_ras(image)
    check_finite(values)
    return range_of(values, OUTLIERS)


def load(path: Path) -> nibabel.Nifti1Pair:
    """The volume, not yet read. Raises: ValueError where it is none, and what nibabel raises."""
    image = nibabel.load(path)
    if not isinstance(image, nibabel.Nifti1Pair):
        raise ValueError(f"it is {type(image).__name__}, and NIfTI is read")
    if image.affine is None:
        raise ValueError("it has no affine, so nobody knows how it lies in the patient")
    sizes = image.shape
    if len(sizes) < 3 or any(n != 1 for n in sizes[3:]):
        raise ValueError(f"it is {' x '.join(map(str, sizes))}, and volumes of three axes are read: split it first")
    kind = np.dtype(image.get_data_dtype())
    if kind.kind not in "iuf":
        raise ValueError(f"its values are {kind}, and real numbers are read")
    return image


def orientation_of(image: nibabel.Nifti1Pair) -> Int[np.ndarray, "3 2"]:
    """For each of the volume's axes, along which of R, A and S it runs most, and whether backwards (-1)."""
    ornt = io_orientation(image.affine)
    if np.isnan(ornt).any():
        raise ValueError("its affine has an axis of no length, so nobody knows how it lies in the patient")
    return ornt.astype(np.int64)


def in_ras(image: nibabel.Nifti1Pair) -> Float32[np.ndarray, "x y z"]:
    """All values in units, axes along R, A and S."""
    values = np.asarray(image.dataobj, np.float32)
    return np.ascontiguousarray(apply_orientation(values.reshape(values.shape[:3]), orientation_of(image)))


@functools.lru_cache(maxsize=KEPT)
def box(path: Path) -> Float32[np.ndarray, "x y z"]:
    """`in_ras` of a compressed file, of which a few are kept."""
    return in_ras(load(path))


def write_like(path: Path, slices: Float32[np.ndarray, "n h w"], plane: Plane, original: Path) -> None:
    """Writes all slices of a plane, as they are shown, as a float32 volume with the original's axes and affine.

    Raises: ValueError where they are not as many or of another size, or not finite.
    """
    check_finite(slices)
    image = load(original)
    values = box_of(slices, plane)
    if values.shape != tuple(shape_of(original)):
        raise ValueError(f"slices of a volume {values.shape} do not fit {original}, which is {shape_of(original)}")
    back = ornt_transform(RAS, orientation_of(image))
    write_nifti(path, apply_orientation(values, back), np.asarray(image.affine))


def write_nifti(path: Path, values: Float32[np.ndarray, "x y z"], affine: np.ndarray) -> None:
    """Writes a float32 volume, with its name only once it is complete. Raises: ValueError for other names."""
    if not is_nifti(path.name):
        raise ValueError(f"{path} must end in .nii or .nii.gz")
    image = nibabel.Nifti1Image(np.ascontiguousarray(values, np.float32), affine)
    image.header.set_xyzt_units("mm")
    part = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        nibabel.save(image, part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
