"""NIfTI: slices as radiologists see them whatever the file's axes, units, and volumes that come back the same."""

import itertools

import nibabel
import numpy as np
import pytest
from scans import SERIES, dicom

from jaxdiff.data.images import BrokenImageError
from jaxdiff.data.medical.dicom import read_dicom
from jaxdiff.data.medical.geometry import LPS, box_of, plane_of, stack
from jaxdiff.data.medical.nifti import (
    read_slice,
    read_volume,
    shape_of,
    window_of_file,
    write_like,
    write_nifti,
)
from jaxdiff.data.units import Window

SHAPE = (4, 5, 6)
PLANES = {"sagittal": 0, "coronal": 1, "axial": 2}


def places():
    """(R, A, S) in millimetres of every voxel, in each voxel: spacings 2, 3, 4."""
    x, y, z = np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij")
    return 2 * x, 3 * y, 4 * z


def volume(order=(0, 1, 2), signs=(1, 1, 1)):
    """(values, affine): 10000 R + 100 A + S, stored with its axes in another order, some backwards."""
    r, a, s = places()
    values = (10000 * r + 100 * a + s).transpose(order)[tuple(slice(None, None, sign) for sign in signs)]
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for native, (axis, sign) in enumerate(zip(order, signs, strict=True)):
        step = (2.0, 3.0, 4.0)[axis]
        affine[axis, native] = sign * step
        affine[axis, 3] = 0 if sign > 0 else step * (SHAPE[axis] - 1)
    return values.astype(np.int32), affine


def save(path, values, affine, slope=None, **header):
    image = nibabel.Nifti1Image(values, affine)
    if slope:
        image.header.set_slope_inter(*slope)
    for name, value in header.items():
        image.header[name] = value
    nibabel.save(image, path)
    return path


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, -1, 1), (1, -1, -1)])
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_every_orientation_is_shown_alike(tmp_path, order, signs, suffix):
    """Columns to the left of the patient (to the back in sagittal slices), rows to the back, or to the feet."""
    path = save(tmp_path / f"v{suffix}", *volume(order, signs))
    r, a, s = (v.astype(np.int64) for v in places())
    whole = 10000 * r + 100 * a + s
    assert tuple(shape_of(path)) == SHAPE
    axial = read_slice(path, "axial", 2)
    np.testing.assert_array_equal(axial, whole[::-1, ::-1, 2].T)
    assert np.all(np.diff(axial, axis=1) == -20000) and np.all(np.diff(axial, axis=0) == -300)
    coronal = read_slice(path, "coronal", 1)
    assert np.all(np.diff(coronal, axis=1) == -20000) and np.all(np.diff(coronal, axis=0) == -4)
    sagittal = read_slice(path, "sagittal", 3)
    assert np.all(np.diff(sagittal, axis=1) == -300) and np.all(np.diff(sagittal, axis=0) == -4)
    assert axial[0, 0] == whole[-1, -1, 2] and coronal[0, 0] == whole[-1, 1, -1] and sagittal[0, 0] == whole[3, -1, -1]


@pytest.mark.parametrize("plane", list(PLANES))
@pytest.mark.parametrize(("order", "signs"), [((0, 1, 2), (1, 1, 1)), ((2, 0, 1), (-1, 1, -1))])
def test_slices_become_the_same_volume_again(tmp_path, plane, order, signs):
    values, affine = volume(order, signs)
    original = save(tmp_path / "v.nii", values, affine)
    count = shape_of(original)[PLANES[plane]]
    slices = np.stack([read_slice(original, plane, i) for i in range(count)])
    write_like(tmp_path / "again.nii.gz", slices, plane, original)
    again = nibabel.load(tmp_path / "again.nii.gz")
    np.testing.assert_array_equal(again.get_fdata(), values)
    np.testing.assert_array_equal(again.affine, affine)
    assert again.get_data_dtype() == np.float32
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again.nii.gz", "v.nii"]


@pytest.mark.parametrize("plane", list(PLANES))
def test_planes_of_a_box_make_the_box(plane):
    box = np.arange(24.0).reshape(2, 3, 4)
    slices = np.stack([plane_of(box, plane, i) for i in range(box.shape[PLANES[plane]])])
    np.testing.assert_array_equal(box_of(slices, plane), box)


def test_units_are_the_headers(tmp_path):
    """value = stored * scl_slope + scl_inter, all of 16 bits."""
    stored = np.arange(2**16, dtype=np.uint16).reshape(64, 32, 32)
    path = save(tmp_path / "v.nii", stored, np.eye(4), slope=(0.5, -100))
    seen = np.stack([read_slice(path, "axial", i) for i in range(32)])
    np.testing.assert_array_equal(np.sort(seen, axis=None), np.arange(2**16) * 0.5 - 100)
    whole = read_volume(path)
    np.testing.assert_array_equal(whole.values, stored * 0.5 - 100)


def test_the_window_is_the_headers_or_leaves_outliers_out(tmp_path):
    values = np.random.default_rng(0).uniform(0, 100, (20, 20, 20)).astype(np.float32)
    values[0, 0, 0] = 1e6
    window = window_of_file(save(tmp_path / "a.nii", values, np.eye(4)))
    assert 0 <= window.low < 1 and 99 < window.high < 101
    assert window_of_file(save(tmp_path / "b.nii", values, np.eye(4), cal_min=5, cal_max=50)) == Window(5, 50)


def test_a_series_becomes_a_volume_with_its_place_in_the_patient(tmp_path):
    """Voxel (column, row, slice) of axial slices, LPS, lies where DICOM says; its axial slices are DICOM's images."""
    rng = np.random.default_rng(0)
    stored = [rng.integers(0, 4096, (6, 5)) for _ in range(4)]
    heights = [30.0, 10.0, 20.0, 0.0]
    files = [dicom(v, ImagePositionPatient=[-7, 11, z]) for v, z in zip(stored, heights, strict=True)]
    images = [read_dicom(f, f"{i}.dcm") for i, f in enumerate(files)]
    made = stack(images, [f"{i}.dcm" for i in range(4)])
    assert made.values.shape == (5, 6, 4) and made.unit == "HU"
    for column, row, i in ((0, 0, 0), (4, 2, 3), (1, 5, 2)):
        wanted = np.array([-7 + 0.75 * column, 11 + 0.5 * row, 10.0 * i, 1])
        np.testing.assert_allclose(LPS @ made.affine @ [column, row, i, 1], wanted, atol=1e-9)
    write_nifti(tmp_path / "v.nii.gz", made.values, made.affine)
    for i, image in enumerate(sorted(images, key=lambda each: each.position[2])):
        np.testing.assert_array_equal(read_slice(tmp_path / "v.nii.gz", "axial", i), image.values)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"stored": np.zeros((6, 7), int)}, ["another size", "5x6", "7x6"]),
        ({"PixelSpacing": [0.5, 0.8]}, ["another spacing"]),
        ({"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}, ["another plane"]),
        ({"ImagePositionPatient": None}, ["does not say where"]),
        ({"ImagePositionPatient": [0, 0, 35]}, ["mm apart", "missing or doubled"]),
        ({"ImagePositionPatient": [0, 0, 10]}, ["mm apart", "missing or doubled"]),
    ],
)
def test_slices_that_are_no_series_are_refused(change, words):
    files = [dicom(np.zeros((6, 5), int), ImagePositionPatient=[0, 0, 10 * i]) for i in range(3)]
    stored = change.pop("stored", np.zeros((6, 5), int))
    files.append(dicom(stored, **{"ImagePositionPatient": [0, 0, 30], **change}))
    images = [read_dicom(f, f"{i}.dcm") for i, f in enumerate(files)]
    with pytest.raises(ValueError) as info:
        stack(images, [f"{i}.dcm" for i in range(4)])
    assert all(word in str(info.value) for word in words) and SERIES


def test_what_is_no_volume_is_refused_by_name(tmp_path, refused):
    (tmp_path / "words.nii").write_text("these are words")
    whole = save(tmp_path / "v.nii.gz", np.zeros((4, 4, 4), np.int16), np.eye(4)).read_bytes()
    (tmp_path / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    save(tmp_path / "four.nii", np.zeros((4, 4, 4, 3), np.float32), np.eye(4))
    save(tmp_path / "complex.nii", np.zeros((4, 4, 4), np.complex64), np.eye(4))
    nan = np.zeros((4, 4, 4), np.float32)
    nan[1, 2, 3] = np.nan
    save(tmp_path / "nan.nii", nan, np.eye(4))
    words = {
        "words.nii": "",
        "cut.nii.gz": "",
        "four.nii": "4 x 4 x 4 x 3",
        "complex.nii": "complex64",
        "nan.nii": "NaN",
    }
    for name, word in words.items():
        message = refused(BrokenImageError, read_slice, tmp_path / name, "axial", 3)
        assert str(tmp_path / name) in message and word in message
    assert np.all(read_slice(tmp_path / "nan.nii", "axial", 0) == 0)  # another slice of it


def test_nothing_is_half_written(tmp_path):
    original = save(tmp_path / "v.nii", np.zeros(SHAPE, np.int16), np.eye(4))
    slices = np.zeros((6, 5, 4), np.float32)
    for wrong in (slices[:4], np.full_like(slices, np.nan)):
        with pytest.raises(ValueError):
            write_like(tmp_path / "out.nii.gz", wrong, "axial", original)
    with pytest.raises(ValueError, match=r"\.nii"):
        write_like(tmp_path / "out.png", slices, "axial", original)
    assert [p.name for p in tmp_path.iterdir()] == ["v.nii"]
