"""DICOM: units, windows, bits, there and back, and what is refused."""

import io
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.uid import JPEGLSLossless, RLELossless
from scans import dataset, dicom, to_bytes

from jaxdiff.data.images import BrokenImageError
from jaxdiff.data.medical.dicom import can_decode, derived, new_uid, read_dicom, step_of, write
from jaxdiff.data.units import Window

RNG = np.random.default_rng(0)


def stored(bits, signed, shape=(6, 5)):
    low = -(2 ** (bits - 1)) if signed else 0
    values = RNG.integers(low, low + 2**bits, shape)
    values.flat[:2] = low, low + 2**bits - 1
    return values


@pytest.mark.parametrize(
    ("bits", "signed"), [(8, False), (10, False), (12, False), (16, False), (12, True), (16, True)]
)
@pytest.mark.parametrize(("slope", "intercept"), [(1, -1024), (0.0078125, 0), (2.7, -31.4)])
def test_values_are_in_units_and_come_back_to_the_bit(bits, signed, slope, intercept, tmp_path):
    values = stored(bits, signed)
    encoded = dicom(values, bits=bits, signed=signed, RescaleSlope=slope, RescaleIntercept=intercept)
    image = read_dicom(encoded, "x.dcm")
    np.testing.assert_allclose(image.values, values * float(slope) + float(intercept), rtol=1e-6, atol=1e-5)
    write(tmp_path / "again.dcm", derived(encoded, image.values, new_uid(), "the same"))
    again = pydicom.dcmread(tmp_path / "again.dcm")
    np.testing.assert_array_equal(again.pixel_array, values)
    assert (again.BitsStored, again.BitsAllocated, again.PixelRepresentation) == (bits, 8 if bits == 8 else 16, signed)
    assert [p.name for p in tmp_path.iterdir()] == ["again.dcm"]


def test_what_was_changed_comes_back_to_half_a_step_and_is_clipped_to_the_bits():
    encoded = dicom(stored(12, False), RescaleSlope=0.5, RescaleIntercept=-100)
    values = RNG.uniform(-90, 1900, (6, 5)).astype(np.float32)
    values[0, :2] = -1e6, 1e6
    again = read_dicom(to_bytes(derived(encoded, values, new_uid(), "changed")), "x.dcm")
    assert np.abs(again.values - values)[1:].max() <= 0.25 + 1e-4
    assert again.values[0, :2].tolist() == [-100, 4095 * 0.5 - 100]


def test_a_map_takes_all_sixteen_bits():
    values = RNG.exponential(0.013, (6, 5)).astype(np.float32)
    made = derived(dicom(stored(8, False), bits=8), values, new_uid(), "a map", rescale=step_of(values))
    assert made.BitsStored == 16 and "WindowCenter" not in made
    again = read_dicom(to_bytes(made), "x.dcm")
    assert np.abs(again.values - values).max() <= np.ptp(values) / 65535


def test_units_spacing_and_place():
    image = read_dicom(dicom(stored(12, False), ImagePositionPatient=[1, -2, 3.5]), "x.dcm")
    assert image.unit == "HU" and image.spacing == (0.5, 0.75)
    assert image.orientation == (1, 0, 0, 0, 1, 0) and image.position == (1, -2, 3.5)
    plain = dict.fromkeys(("RescaleSlope", "RescaleIntercept", "PixelSpacing", "ImagePositionPatient"))
    image = read_dicom(dicom(stored(12, False), **plain, Modality="DX", ImagerPixelSpacing=[0.1, 0.1]), "x.dcm")
    assert image.unit == "" and image.spacing == (0.1, 0.1) and image.position is None
    assert read_dicom(dicom(stored(12, False), Modality="PT", Units="BQML"), "x.dcm").unit == "BQML"


@pytest.mark.parametrize(
    ("attributes", "window"),
    [
        ({"WindowCenter": 40, "WindowWidth": 400}, (-160, 239)),
        ({"WindowCenter": [40, 500], "WindowWidth": [400, 2000]}, (-160, 239)),
        ({"WindowCenter": 40, "WindowWidth": 400, "VOILUTFunction": "LINEAR_EXACT"}, (-160, 240)),
        ({}, (-1024, 3071)),
        ({"PhotometricInterpretation": "MONOCHROME1"}, (3071, -1024)),
    ],
)
def test_windows_are_the_standards(attributes, window):
    """PS3.3 C.11.2.1.2.1: black at c - 0.5 - (w - 1) / 2, white at c - 0.5 + (w - 1) / 2."""
    assert read_dicom(dicom(stored(12, False), **attributes), "x.dcm").window == Window(*window)


def test_frames_are_read_one_by_one():
    values = stored(12, False, (3, 4, 5))
    encoded = dicom(values, NumberOfFrames=3)
    for i in range(3):
        np.testing.assert_array_equal(read_dicom(encoded, "x.dcm", i).values + 1024, values[i])
    with pytest.raises(ValueError, match="several frames"):
        derived(encoded, np.zeros((4, 5), np.float32), new_uid(), "one of them")


def test_lossless_compression_changes_nothing():
    data = dataset(stored(16, False, (16, 16)), bits=16)
    plain = read_dicom(to_bytes(data), "x.dcm").values
    data.compress(RLELossless)
    encoded = to_bytes(data)
    np.testing.assert_array_equal(read_dicom(encoded, "x.dcm").values, plain)
    assert derived(encoded, plain, new_uid(), "x").file_meta.TransferSyntaxUID != RLELossless


def test_a_derived_image_is_one_of_its_own_and_says_of_which():
    encoded, series = dicom(stored(12, False)), new_uid()
    source = pydicom.dcmread(io.BytesIO(encoded))
    made = pydicom.dcmread(io.BytesIO(to_bytes(derived(encoded, np.zeros((6, 5), np.float32), series, "a map"))))
    assert made.SOPInstanceUID not in ("", source.SOPInstanceUID) and made.SeriesInstanceUID == series
    assert made.file_meta.MediaStorageSOPInstanceUID == made.SOPInstanceUID
    assert list(made.ImageType) == ["DERIVED", "SECONDARY", "AXIAL"] and made.SeriesDescription == "a map"
    assert made.StudyInstanceUID == source.StudyInstanceUID and made.PatientID == "4711"
    assert made.SourceImageSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID


def test_without_the_patient_nothing_leads_back():
    """No value of the header that is not geometry, units or pixels is anywhere in the file."""
    private = dataset(stored(12, False), ReferringPhysicianName="Strange^Dr", AccessionNumber="A-0815")
    private.add_new(0x00091001, "LO", "secret of the maker")
    encoded = to_bytes(private)
    made = derived(encoded, read_dicom(encoded, "x").values, new_uid(), "a map", anonymous=True)
    written = to_bytes(made)
    for word in ("Doe", "Jane", "4711", "19700101", "Hospital", "Strange", "0815", "secret"):
        assert word.encode() in encoded and word.encode() not in written
    for name in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
        assert str(getattr(private, name)).encode() not in written
    assert made.PatientIdentityRemoved == "YES" and list(made.PixelSpacing) == [0.5, 0.75]
    np.testing.assert_array_equal(read_dicom(written, "x").values, read_dicom(encoded, "x").values)


def refuse(encoded, *words):
    with pytest.raises(BrokenImageError) as info:
        read_dicom(encoded, "some/scan.dcm")
    message = str(info.value)
    assert message.startswith("some/scan.dcm ") and "\n" not in message and "--data.skip-broken" in message
    assert all(word in message for word in words), message


def test_what_is_no_image_is_refused_by_name():
    refuse(b"these are words", "not a DICOM file")
    refuse(b"", "not a DICOM file")
    whole = dicom(stored(12, False))
    refuse(whole[:-20])
    data = dataset(stored(12, False))
    del data.PixelData
    refuse(to_bytes(data), "no pixel data", "CT Image Storage")
    colours = RNG.integers(0, 256, (4, 5, 3))
    refuse(dicom(colours, bits=8, PhotometricInterpretation="RGB", SamplesPerPixel=3, PlanarConfiguration=0,
                 Rows=4, Columns=5), "RGB", "PNG")  # fmt: skip
    refuse(dicom(stored(12, False), RescaleSlope=0), "RescaleSlope 0")
    refuse(dicom(stored(31, False), bits=31), "31 bits", "24")


def test_a_compression_that_nothing_here_decodes_is_refused_by_name():
    if can_decode(JPEGLSLossless):
        pytest.skip("a decoder of JPEG-LS is installed")
    data = dataset(stored(12, False))
    data.file_meta.TransferSyntaxUID = JPEGLSLossless
    data.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8\xff\xf7 no image"])
    data["PixelData"].is_undefined_length = True
    refuse(to_bytes(data), "JPEG-LS Lossless", "no decoder", "pip install pylibjpeg")


def test_values_that_are_no_numbers_are_not_written():
    values = np.zeros((6, 5), np.float32)
    values[2, 3] = np.nan
    with pytest.raises(ValueError, match=r"\[2, 3\], is NaN"):
        derived(dicom(stored(12, False)), values, new_uid(), "x")


def test_real_files():
    """Those that come with pydicom: a CT and an MR slice, and a radiotherapy plan, which is no image."""
    for name, unit in (("CT_small.dcm", "HU"), ("MR_small.dcm", "")):
        place = Path(get_testdata_file(name))
        encoded = place.read_bytes()
        image = read_dicom(encoded, name)
        source = pydicom.dcmread(place)
        again = pydicom.dcmread(io.BytesIO(to_bytes(derived(encoded, image.values, new_uid(), "the same"))))
        np.testing.assert_array_equal(again.pixel_array, source.pixel_array)
        assert image.unit == unit and image.values.shape == source.pixel_array.shape and image.spacing
    with pytest.raises(BrokenImageError, match="no pixel data"):
        read_dicom(Path(get_testdata_file("rtplan.dcm")).read_bytes(), "rtplan.dcm")
