"""Slices and volumes in units, and where they lie in a patient.

Positions are millimetres in NIfTI's axes, RAS: to the patient's Right, Anterior (the front), Superior (the head).
DICOM's are LPS, which turns the first two about. Slices are shown as radiologists see them, and DICOM stores them:

    axial       columns to the left side,    rows to the back
    coronal     columns to the left side,    rows to the feet
    sagittal    columns to the back,         rows to the feet
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float32, Float64

from jaxdiff.data.config import Plane
from jaxdiff.data.units import Window

AXES: dict[Plane, int] = {"sagittal": 0, "coronal": 1, "axial": 2}
"""The axis of RAS across which a plane's slices lie."""

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""LPS to RAS, and back."""


@dataclasses.dataclass(frozen=True, eq=False)
class Slice:
    """One image in units."""

    values: Float32[np.ndarray, "h w"]
    window: Window
    """What the file shows as black and white, or the range of its values; low above high for MONOCHROME1."""
    unit: str = ""
    """HU, or what the file says, or ""."""
    spacing: tuple[float, float] | None = None
    """Millimetres from row to row, and from column to column; None where the file does not say."""
    orientation: tuple[float, ...] | None = None
    """Where rows and columns run, in LPS: DICOM's ImageOrientationPatient."""
    position: tuple[float, ...] | None = None
    """Of the first pixel, in LPS."""


@dataclasses.dataclass(frozen=True, eq=False)
class Volume:
    """Images stacked, in units."""

    values: Float32[np.ndarray, "x y z"]
    affine: Float64[np.ndarray, "4 4"]
    """From (x, y, z, 1) to millimetres in RAS."""
    window: Window
    unit: str = ""


def plane_of(box: Float[np.ndarray, "x y z"], plane: Plane, index: int) -> Float[np.ndarray, "h w"]:
    """A slice of an array whose axes run to R, A and S, as it is shown."""
    return np.take(box, index, axis=AXES[plane])[::-1, ::-1].T


def box_of(slices: Float[np.ndarray, "n h w"], plane: Plane) -> Float[np.ndarray, "x y z"]:
    """The array whose slices, from the first on, are these: the inverse of `plane_of`."""
    return np.stack([each.T[::-1, ::-1] for each in slices], axis=AXES[plane])


def stack(slices: Sequence[Slice], names: Sequence[str]) -> Volume:
    """The slices of one series as a volume, sorted along their normal; x runs along columns, y along rows.

    Raises: ValueError, one line, where they are of several sizes or planes, or unevenly spaced.
    """
    first = slices[0]
    for name, each in zip(names, slices, strict=True):
        if each.values.shape != first.values.shape:
            sizes = " and ".join("x".join(map(str, s.values.shape[::-1])) for s in (first, each))
            raise ValueError(f"{name} is of another size than {names[0]} ({sizes}): a series has one")
        if each.position is None or each.orientation is None or each.spacing is None:
            raise ValueError(f"{name} does not say where it lies in the patient, so is no slice of a volume")
        if not np.allclose([*each.orientation, *each.spacing], [*first.orientation, *first.spacing], atol=1e-4):  # pyright: ignore
            raise ValueError(f"{name} lies in another plane or has another spacing than {names[0]}")
    along, down = (np.array(part) for part in (first.orientation[:3], first.orientation[3:]))  # pyright: ignore
    places = np.array([each.position for each in slices]) @ np.cross(along, down)
    order = np.argsort(places, kind="stable")
    steps = np.diff(places[order])
    if len(steps) and not (steps.min() > 1e-4 and np.ptp(steps) <= 0.01 * np.median(steps) + 1e-3):
        at = int(np.argmax(np.abs(steps - np.median(steps))))
        pair = " and ".join(names[int(order[i])] for i in (at, at + 1))
        raise ValueError(
            f"{pair} are {steps[at]:.4g} mm apart where others are {np.median(steps):.4g}: some are missing or doubled"
        )
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = along * first.spacing[1], down * first.spacing[0]  # pyright: ignore
    ends = [np.array(slices[order[i]].position) for i in (0, -1)]
    affine[:3, 2] = (ends[1] - ends[0]) / len(steps) if len(steps) else np.cross(along, down)
    affine[:3, 3] = ends[0]
    values = np.stack([slices[i].values.T for i in order], axis=2)
    return Volume(values, LPS @ affine, first.window, first.unit)
