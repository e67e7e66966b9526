"""Look at scans as jaxdiff reads them, or make a volume of a series: jaxdiff scan PLACE [--out VOLUME.nii.gz] ...

PLACE is a DICOM file, a folder or .zip of them, or a NIfTI volume. A line of JSON for each series or volume says its
size, units, values, window and place in the patient; what cannot be read is one line of error with the file's name.
"""

import dataclasses
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from etils import epath

from jaxdiff import cli
from jaxdiff.data.files import FileSource
from jaxdiff.data.medical.geometry import Slice, Volume, stack


@dataclasses.dataclass(frozen=True)
class Command:
    """Look at scans as jaxdiff reads them, or make a volume of a series."""

    place: Annotated[epath.Path, tyro.conf.Positional, tyro.conf.arg(metavar="PLACE")]
    """A DICOM file, a folder or .zip of them, or a .nii or .nii.gz."""
    out: Path | None = None
    """Write the series as a NIfTI volume: float32, in units, with its place in the patient."""
    series: str | None = None
    """The series that is written, by its SeriesInstanceUID, where there are several."""


def scan(command: Command) -> None:
    """Prints what the scans are, and writes the volume. Raises: ValueError or FileNotFoundError, one line."""
    try:
        from jaxdiff.data.medical import nifti, sources
    except ImportError as error:
        raise ValueError(f"scans need a package that is missing: pip install 'jaxdiff[medical]' ({error})") from error
    if not command.place.exists():
        raise FileNotFoundError(f"there is no {command.place} (PLACE)")
    if nifti.is_nifti(command.place.name):
        if command.out is not None:
            raise ValueError(f"{command.place} is a volume already (--out)")
        print(json.dumps(of_volume(nifti.read_volume(Path(command.place)))))
        return
    found: dict[str, list[tuple[str, Slice]]] = {}
    for name, series, image in images_of(sources.open_dicom(command.place, "train", None).files):
        found.setdefault(series, []).append((name, image))
    for series, images in found.items():
        print(json.dumps({"series": series, "images": len(images), **of_slice(images[0][1])}))
    if command.out is None:
        return
    if command.series is None and len(found) > 1:
        raise ValueError(f"{command.place} holds {len(found)} series: choose one (--series {next(iter(found))})")
    chosen = command.series or next(iter(found))
    if chosen not in found:
        raise ValueError(f"{command.place} has no series {chosen}: {', '.join(found)} (--series)")
    names, slices = zip(*found[chosen], strict=True)
    volume = stack(slices, names)
    nifti.write_nifti(command.out, volume.values, volume.affine)
    print(json.dumps(of_volume(volume)))


def images_of(files: FileSource) -> Iterator[tuple[str, str, Slice]]:
    """(name, series, image) of every file. Raises: ValueError for files of several images."""
    from jaxdiff.data.medical import dicom

    for i in range(len(files)):
        encoded, name = files.read(i), files.place(i)
        if dicom.frames_of(io.BytesIO(encoded), name) > 1:
            raise ValueError(f"{name} holds several images: split it first")
        yield name, dicom.series_of(encoded, name), dicom.read_dicom(encoded, name)


def of_slice(image: Slice) -> dict[str, object]:
    """An image in words."""
    return {
        "size": list(image.values.shape[::-1]),
        "unit": image.unit,
        "values": [float(image.values.min()), float(image.values.max())],
        "window": list(image.window),
        "spacing": image.spacing,
        "orientation": image.orientation,
        "position": image.position,
    }


def of_volume(volume: Volume) -> dict[str, object]:
    """A volume in words."""
    return {
        "size": list(volume.values.shape),
        "unit": volume.unit,
        "values": [float(volume.values.min()), float(volume.values.max())],
        "window": list(volume.window),
        "spacing": [float(f"{v:.6g}") for v in np.linalg.norm(volume.affine[:3, :3], axis=0)],
        "affine": [[float(f"{v:.6g}") for v in row] for row in volume.affine],
    }


def main(args: Sequence[str]) -> None:
    """The command."""
    with cli.user_errors():
        scan(cli.parse(Command, "jaxdiff scan", args, description=__doc__ or ""))
