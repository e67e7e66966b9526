"""Folders of scans as sets: order, frames, labels, windows, batches, and mistakes by name."""

import json
import pickle
import zipfile

import nibabel
import numpy as np
import pytest
from scans import dicom

from jaxdiff.data import Data, batches, open_source, open_validation
from jaxdiff.data.classes import labels_of
from jaxdiff.data.images import BrokenImageError
from jaxdiff.data.medical.maps import write_maps
from jaxdiff.data.medical.sources import ReadDicom

RNG = np.random.default_rng(0)


def level(value, shape=(8, 8)):
    """An image of one value in units."""
    return np.full(shape, value + 1024)


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def seen(source):
    return [round(float(source[i]["image"][0, 0, 0]), 3) for i in range(len(source))]


@pytest.fixture
def folder(tmp_path):
    """Five images at -1000 ... 1000 HU, two of them frames of one file, one without a suffix."""
    for name, value in {"a/1.dcm": -1000, "a/2.DCM": -500, "b/IM0001": 1000}.items():
        put(tmp_path / "set" / name, dicom(level(value)))
    put(tmp_path / "set" / "b" / "cine.dcm", dicom(np.stack([level(0), level(500)]), NumberOfFrames=2))
    put(tmp_path / "set" / "notes.txt", b"no scan")
    put(tmp_path / "set" / "DICOMDIR", b"\0" * 128 + b"DICM")
    return tmp_path / "set"


def test_a_folder_of_dicom_is_a_set(folder):
    source = open_source(Data(f"dicom:{folder}", 8, 1, window=(-1000.0, 1000.0)))
    assert seen(source) == [-1, -0.5, 1, 0, 0.5] and source.label_names == ()
    assert source[0]["image"].dtype == np.float32 and source[0]["image"].shape == (8, 8, 1)
    again = pickle.loads(pickle.dumps(source))
    assert seen(again) == seen(source)


def test_an_archive_is_the_same_set(folder, tmp_path):
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(folder))
    data = Data(f"dicom:{folder}", 8, 1, window=(-1000.0, 1000.0))
    zipped = Data(f"dicom:{tmp_path / 'set.zip'}", 8, 1, window=(-1000.0, 1000.0))
    assert seen(open_source(zipped)) == seen(open_source(data))


def test_labels_come_from_metadata_alone(folder):
    lines = [{"file_name": "b/cine.dcm", "label": "ill"}, {"file_name": "a/1.dcm", "label": "well"}]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    source = open_source(Data(f"dicom:{folder}", 8, 1, window=(-1000.0, 1000.0)))
    assert seen(source) == [0, 0.5, -1] and [source[i]["label"] for i in range(3)] == [0, 0, 1]
    np.testing.assert_array_equal(labels_of(source), [0, 0, 1])
    assert seen(open_source(Data(f"dicom:{folder}", 8, 1, window=(-1000.0, 1000.0), classes=("well",)))) == [-1]


def test_batches_keep_the_bits(tmp_path):
    """A 16-bit ramp reaches the network with its 4,096 values; the window is the file's where none is said."""
    values = np.arange(4096).reshape(64, 64)
    put(tmp_path / "set" / "1.dcm", dicom(values, WindowCenter=1024, WindowWidth=4096))
    data = Data(f"dicom:{tmp_path / 'set'}", 64, 1)
    batch = next(batches(data, open_source(data), 2, seed=0))
    assert batch["image"].dtype == np.float32 and batch["image"].shape == (2, 64, 64, 1)
    assert len(np.unique(batch["image"][0])) == 4096
    np.testing.assert_allclose((batch["image"][0, ..., 0] + 1) / 2 * 4095, values, atol=1e-3)


def test_black_for_white_is_turned(tmp_path):
    for name in ("MONOCHROME1", "MONOCHROME2"):
        put(tmp_path / name / "1.dcm", dicom(np.arange(64).reshape(8, 8), PhotometricInterpretation=name))
    for window in (None, (-1024.0, -961.0)):
        one, two = (open_source(Data(f"dicom:{tmp_path / f'MONOCHROME{i}'}", 8, 1, window=window)) for i in (1, 2))
        np.testing.assert_allclose(one[0]["image"], -two[0]["image"], atol=1e-6)
        assert two[0]["image"][0, 0, 0] == -1


def test_splits_and_held_out_images(tmp_path):
    for i in range(20):
        put(tmp_path / "set" / ("test" if i < 5 else "train") / f"{i:02d}.dcm", dicom(level(10 * i)))
    data = Data(f"dicom:{tmp_path / 'set'}", 8, 1, window=(0.0, 200.0))
    assert len(open_source(data)) == 15 and len(open_validation(data)) == 5


def nifti(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([-1.0, -1, 1, 1])), path)


def test_slices_of_volumes_by_plane(tmp_path):
    a = np.arange(2 * 4 * 6).reshape(4, 2, 6).astype(np.int16)
    nifti(tmp_path / "set" / "a.nii.gz", a)
    nifti(tmp_path / "set" / "p" / "b.nii", np.full((4, 4, 3), 24, np.int16))
    for plane, count in {"axial": 6 + 3, "coronal": 2 + 4, "sagittal": 4 + 4}.items():
        source = open_source(Data(f"nifti:{tmp_path / 'set'}", 4, 1, window=(0.0, 48.0), plane=plane))
        assert len(source) == count
        assert seen(source)[-1] == 0 and source[0]["image"].dtype == np.float32
    single = open_source(Data(f"nifti:{tmp_path / 'set' / 'a.nii.gz'}", 4, 1, window=(0.0, 48.0)))
    # Stored to the left and to the back, as axial images are shown: transposed, and nothing else.
    np.testing.assert_allclose((single[5]["image"][..., 0] + 1) * 24, a[:, :, 5].T, atol=1e-4)


def test_broken_scans_are_named_or_skipped(folder, refused):
    put(folder / "c" / "bad.dcm", dicom(level(0))[:-30])
    data = Data(f"dicom:{folder}", 8, 1, window=(-1000.0, 1000.0))
    message = refused(BrokenImageError, lambda: [open_source(data)[i] for i in range(6)])
    assert "bad.dcm" in message and "--data.skip-broken" in message
    skipping = Data(f"dicom:{folder}", 8, 1, window=(-1000.0, 1000.0), skip_broken=True)
    assert next(batches(skipping, open_source(skipping), 6, seed=0))["image"].shape == (6, 8, 8, 1)


@pytest.mark.parametrize(
    ("source", "fields", "words"),
    [
        ("dicom:no/such/place", {}, ["no/such/place", "--data.source"]),
        ("dicom:EMPTY", {}, ["no DICOM images"]),
        ("nifti:EMPTY", {}, ["no NIfTI volumes"]),
        ("emoji", {"window": (0.0, 1.0)}, ["--data.window", "more than 8 bits"]),
    ],
)
def test_mistakes_are_one_line(tmp_path, refused, source, fields, words):
    (tmp_path / "notes.txt").write_text("no scan")
    data = Data(source.replace("EMPTY", str(tmp_path)), 8, 1, **fields)
    message = refused((ValueError, FileNotFoundError), open_source, data)
    assert all(word in message for word in words)


def test_fields_that_do_not_fit_are_refused():
    for fields, flag in (
        ({"window": (1.0, 1.0)}, "--data.window"),
        ({"window": (0.0, float("nan"))}, "--data.window"),
        ({"augment": 1.1}, "--data.augment"),
    ):
        with pytest.raises(ValueError, match=flag):
            Data("dicom:x", 8, 1, **fields)


def test_maps_of_dicom_are_derived_images_in_units(tmp_path):
    for i in range(3):
        put(tmp_path / "set" / f"{i}.dcm", dicom(RNG.integers(0, 4096, (16, 12))))
    source = open_source(Data(f"dicom:{tmp_path / 'set'}", 8, 1, window=(-160.0, 240.0)))
    maps = RNG.uniform(0, 1, (2, 8, 8)).astype(np.float32)
    names = write_maps(tmp_path / "out" / "scans", source, np.array([0, 2]), maps, "none", "a map", anonymous=True)
    assert names == ["000000.dcm", "000002.dcm"] and [p.name for p in (tmp_path / "out").iterdir()] == ["scans"]
    written = open_source(Data(f"dicom:{tmp_path / 'out' / 'scans'}", 16, 1, window=(0.0, 200.0)))
    files = written.files
    image = ReadDicom(None)(files, 0, 0)
    assert image.shape == (16, 12, 1)
    # Half the window's width, 200 HU, is a difference of 1 for the network.
    back = (written[1]["image"][..., 0] + 1) / 2 * 200
    assert back.shape == (16, 12) and abs(back.mean() - 200 * maps[1].mean()) < 8
    with pytest.raises(ValueError, match="not empty"):
        write_maps(tmp_path / "out" / "scans", source, np.array([0, 2]), maps, "none", "a map", anonymous=True)


def test_maps_of_a_volume_are_a_volume_on_its_grid(tmp_path):
    affine = np.diag([2.0, -3, 4, 1])
    nibabel.save(nibabel.Nifti1Image(RNG.integers(0, 100, (8, 8, 5)).astype(np.int16), affine), tmp_path / "v.nii.gz")
    source = open_source(Data(f"nifti:{tmp_path / 'v.nii.gz'}", 8, 1, window=(0.0, 100.0)))
    maps = RNG.uniform(0, 1, (2, 8, 8)).astype(np.float32)
    assert write_maps(tmp_path / "scans", source, np.array([1, 4]), maps, "center", "a map", False) == ["v.nii.gz"]
    written = nibabel.load(tmp_path / "scans" / "v.nii.gz")
    np.testing.assert_array_equal(written.affine, affine)
    seen = open_source(Data(f"nifti:{tmp_path / 'scans'}", 8, 1, window=(0.0, 50.0)))
    for i, each in ((1, maps[0]), (4, maps[1])):
        np.testing.assert_allclose((seen[i]["image"][..., 0] + 1) / 2, each, atol=1e-5)
    assert all(np.all(seen[i]["image"] == -1) for i in (0, 2, 3))
