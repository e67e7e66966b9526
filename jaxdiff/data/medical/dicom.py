"""DICOM images: reading in units, and writing what was made of them as derived images.

    value = stored * RescaleSlope + RescaleIntercept               Hounsfield units in CT

Bits are kept: float32 has 24, and a value that is written again is stored as it was. Windows are those of the standard
(PS3.3 C.11.2.1.2): a linear one of centre c and width w shows c - w/2 as black and c + w/2 - 1 as white.
"""

import copy
import io
import os
from pathlib import Path

import numpy as np
import pydicom
from jaxtyping import Float32, Int64
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.errors import InvalidDicomError
from pydicom.multival import MultiValue
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.utils import pixel_array
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

from jaxdiff.data.images import broken
from jaxdiff.data.listing import Stream
from jaxdiff.data.medical.geometry import Slice
from jaxdiff.data.units import Window, check_finite, range_of

BROKEN = (
    InvalidDicomError, OSError, EOFError, ValueError, TypeError, AttributeError, KeyError, IndexError,
    NotImplementedError, RuntimeError, ImportError,
)  # fmt: skip
"""What pydicom and its decoders raise on files that they cannot read."""

MOST_BITS = 24
"""What float32 keeps."""

KEPT = (
    "SOPClassUID", "Modality", "ImageType", "BodyPartExamined", "Laterality", "ImageLaterality", "ViewPosition",
    "PatientPosition", "PatientOrientation", "SliceThickness", "SpacingBetweenSlices", "SliceLocation",
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "ImagerPixelSpacing", "PixelAspectRatio",
    "SamplesPerPixel", "PhotometricInterpretation", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit",
    "PixelRepresentation", "RescaleSlope", "RescaleIntercept", "RescaleType", "Units", "WindowCenter", "WindowWidth",
    "VOILUTFunction", "PixelPaddingValue", "LossyImageCompression", "LossyImageCompressionRatio",
    "LossyImageCompressionMethod", "BurnedInAnnotation", "PresentationLUTShape", "PixelIntensityRelationship",
    "PixelIntensityRelationshipSign",
)  # fmt: skip
"""What is left of a file when the patient is removed: pixels, units and geometry, nothing else."""


def frames_of(stream: Stream, name: str) -> int:
    """How many images the file holds. Raises: BrokenImageError where it is no DICOM file."""
    try:
        header = pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=["NumberOfFrames"])
        return int(header.get("NumberOfFrames") or 1)
    except BROKEN as error:
        raise broken(name, error) from error


def series_of(encoded: bytes, name: str) -> str:
    """The UID of the series that the file belongs to. Raises: BrokenImageError."""
    try:
        header = pydicom.dcmread(io.BytesIO(encoded), stop_before_pixels=True, specific_tags=["SeriesInstanceUID"])
        return str(header.get("SeriesInstanceUID") or "")
    except BROKEN as error:
        raise broken(name, error) from error


def is_dicom(stream: Stream) -> bool:
    """Whether a file begins as DICOM files do."""
    return stream.read(132)[128:] == b"DICM"


def read_dicom(encoded: bytes, name: str, frame: int = 0) -> Slice:
    """An image of the file in units. Raises: BrokenImageError, one line with the file's name."""
    try:
        return slice_of(parsed(encoded), frame)
    except BROKEN as error:
        raise broken(name, error) from error


def parsed(encoded: bytes) -> FileDataset:
    """The file's content. Raises: ValueError."""
    try:
        return pydicom.dcmread(io.BytesIO(encoded))
    except InvalidDicomError as error:
        raise ValueError("not a DICOM file") from error


def slice_of(data: FileDataset, frame: int) -> Slice:
    """An image of a file that has been parsed. Raises: ValueError, and whatever decoders raise."""
    slope, intercept = rescale_of(data)
    values = (stored_of(data, frame).astype(np.float64) * slope + intercept).astype(np.float32)
    check_finite(values)
    spacing = data.get("PixelSpacing") or data.get("ImagerPixelSpacing")
    orientation, position = data.get("ImageOrientationPatient"), data.get("ImagePositionPatient")
    return Slice(
        values,
        shown(data, values),
        unit_of(data),
        (float(spacing[0]), float(spacing[1])) if spacing else None,
        tuple(map(float, orientation)) if orientation else None,
        tuple(map(float, position)) if position else None,
    )


def stored_of(data: FileDataset, frame: int) -> np.ndarray:
    """The stored values of an image, decoded. Raises: ValueError where it has none, or none that have units."""
    if not any(name in data for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        kind = data.get("SOPClassUID")
        raise ValueError(f"it has no pixel data, it is {kind.name if kind else 'of no known kind'}")
    colours = str(data.get("PhotometricInterpretation", ""))
    if not colours.startswith("MONOCHROME"):
        raise ValueError(f"its colours ({colours or 'not said'}) have no units: save it as PNG")
    if "ModalityLUTSequence" in data:
        raise ValueError("its units are a table (Modality LUT), which cannot be turned back")
    if "PixelData" in data and int(data.BitsStored) > MOST_BITS:
        raise ValueError(f"its {data.BitsStored} bits are more than the {MOST_BITS} that float32 keeps")
    syntax = UID(data.file_meta.TransferSyntaxUID)
    if syntax.is_compressed and not can_decode(syntax):
        raise ValueError(
            f"it is compressed as {syntax.name}, of which no decoder is installed:"
            " pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg"
        )
    return pixel_array(data, index=frame, raw=True)


def can_decode(syntax: UID) -> bool:
    """Whether a decoder of this compression is installed."""
    try:
        return get_decoder(syntax).is_available
    except NotImplementedError:
        return False


def rescale_of(data: Dataset) -> tuple[float, float]:
    """(slope, intercept) from stored values to units. Raises: ValueError where the slope is 0."""
    slope, intercept = float(data.get("RescaleSlope", 1)), float(data.get("RescaleIntercept", 0))
    if not (np.isfinite([slope, intercept]).all() and slope):
        raise ValueError(f"its RescaleSlope {slope:g} and RescaleIntercept {intercept:g} make no units")
    return slope, intercept


def unit_of(data: Dataset) -> str:
    """HU of CT, or what the file calls its units, or nothing."""
    said = str(data.get("RescaleType", "") or data.get("Units", "") or "")
    return said or ("HU" if data.get("Modality") == "CT" and "RescaleIntercept" in data else "")


def shown(data: Dataset, values: Float32[np.ndarray, "h w"]) -> Window:
    """The file's first window, or the range of the values; black for white in MONOCHROME1."""
    centre, width = (first_of(data, name) for name in ("WindowCenter", "WindowWidth"))
    window = range_of(values)
    if centre is not None and width is not None:
        linear = str(data.get("VOILUTFunction", "LINEAR")) == "LINEAR"
        low, high = centre - width / 2, centre + width / 2 - linear
        window = Window(low, high) if high > low else window
    return window.swapped if data.PhotometricInterpretation == "MONOCHROME1" else window


def first_of(data: Dataset, name: str) -> float | None:
    """The number, or the first of several, that an attribute holds; None where it holds none."""
    value = data.get(name)
    if isinstance(value, MultiValue):
        value = value[0] if len(value) else None
    return None if value in (None, "") else float(value)


def derived(
    original: bytes,
    values: Float32[np.ndarray, "h w"],
    series: str,
    description: str,
    *,
    anonymous: bool = False,
    rescale: tuple[float, float] | None = None,
) -> FileDataset:
    """A new DICOM image of these values (in units), made from the original, whose header it keeps.

    Stored as the original is, bits, sign and rescaling alike, so values that came from it come back exactly, others
    to half a step; what its bits cannot hold is clipped. `rescale`: (slope, intercept) in place of its own, with all
    16 bits. `series`: the UID of the new series. `anonymous`: of the header only pixels, units and geometry are kept,
    with new UIDs.

    Raises: ValueError for an original of several frames, or values that are not finite.
    """
    source = parsed(original)
    if int(source.get("NumberOfFrames") or 1) > 1:
        raise ValueError("images derived from a file of several frames cannot be written: split it first")
    check_finite(values)
    made = Dataset()
    for element in source:
        if element.tag.group != 0x7FE0 and (not anonymous or element.keyword in KEPT):
            made.add(copy.deepcopy(element))
    made.SOPInstanceUID, made.SeriesInstanceUID = generate_uid(), series
    kind = list(source.get("ImageType") or [])
    made.ImageType = ["DERIVED", "SECONDARY", *kind[2:]]
    made.SeriesDescription = description[:64]
    made.DerivationDescription = description[:1024]
    if anonymous:
        made.PatientName, made.PatientID = "Anonymous", ""
        made.StudyInstanceUID = generate_uid(entropy_srcs=[series])  # one study for a series, of no known patient
        made.PatientIdentityRemoved = "YES"
        made.DeidentificationMethod = "jaxdiff: only pixels, units and geometry kept"
    else:
        origin = Dataset()
        origin.ReferencedSOPClassUID, origin.ReferencedSOPInstanceUID = source.SOPClassUID, source.SOPInstanceUID
        made.SourceImageSequence = [origin]
    stored(made, values, rescale)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = made.SOPClassUID, made.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return FileDataset(
        io.BytesIO(), made, preamble=b"\0" * 128, file_meta=meta, is_implicit_VR=False, is_little_endian=True
    )


def stored(made: Dataset, values: Float32[np.ndarray, "h w"], rescale: tuple[float, float] | None) -> None:
    """Sets the pixels, and what says how they are stored."""
    if rescale is not None or "BitsStored" not in made or int(made.BitsAllocated) not in (8, 16, 32):
        made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 16, 16, 15, 0
        made.RescaleSlope, made.RescaleIntercept = rescale or step_of(values)
        for name in ("PixelPaddingValue", "PixelPaddingRangeLimit", "WindowCenter", "WindowWidth", "VOILUTSequence"):
            if name in made:
                delattr(made, name)
    slope, intercept = rescale_of(made)
    bits, signed = int(made.BitsStored), int(made.PixelRepresentation)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    whole: Int64[np.ndarray, "h w"] = np.round((values.astype(np.float64) - intercept) / slope).astype(np.int64)
    kind = np.dtype(f"<{'i' if signed else 'u'}{int(made.BitsAllocated) // 8}")
    made.Rows, made.Columns, made.SamplesPerPixel = *values.shape, 1
    for name in ("SmallestImagePixelValue", "LargestImagePixelValue"):
        if name in made:
            delattr(made, name)
    made.PixelData = np.clip(whole, low, high).astype(kind).tobytes()
    made["PixelData"].VR = "OB" if kind.itemsize == 1 else "OW"
    if len(made.PixelData) % 2:
        made.PixelData += b"\0"


def new_uid() -> str:
    """A number that no other image, series or study in the world has."""
    return str(generate_uid())


def step_of(values: Float32[np.ndarray, "h w"]) -> tuple[float, float]:
    """The rescaling that spreads values over 16 bits, in the 16 characters that DICOM has for a number."""
    low, high = range_of(values)
    return float(f"{(high - low) / 65535 or 1.0:.8g}"), float(f"{low:.8g}")


def write(path: Path, data: FileDataset) -> None:
    """Writes a file that has its name only once it is complete."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        data.save_as(part, enforce_file_format=True)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
