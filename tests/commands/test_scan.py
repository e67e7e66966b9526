"""jaxdiff scan: what scans are, in words, and a series as a volume."""

import json

import nibabel
import numpy as np
import pytest
from scans import SERIES, dicom

from jaxdiff.commands import scan


def run(capsys, *args):
    capsys.readouterr()
    scan.main([str(a) for a in args])
    return [json.loads(line) for line in capsys.readouterr().out.strip().splitlines()]


def fails(capsys, *args):
    with pytest.raises(SystemExit) as stop:
        scan.main([str(a) for a in args])
    assert stop.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.fixture
def series(tmp_path):
    """Three slices 2 mm apart, out of order, and one image of another series."""
    (tmp_path / "set").mkdir()
    for i, z in enumerate((4, 0, 2)):
        stored = np.full((6, 5), 1024 + z)
        (tmp_path / "set" / f"{i}.dcm").write_bytes(dicom(stored, ImagePositionPatient=[0, 0, z]))
    (tmp_path / "set" / "x.dcm").write_bytes(dicom(np.zeros((4, 4), int), SeriesInstanceUID="1.2.3"))
    return tmp_path / "set"


def test_a_series_in_words_and_as_a_volume(capsys, series, tmp_path):
    first, other, volume = run(capsys, series, "--out", tmp_path / "v.nii.gz", "--series", SERIES)
    assert (first["series"], first["images"], first["size"], first["unit"]) == (SERIES, 3, [5, 6], "HU")
    assert other["series"] == "1.2.3" and other["values"] == [-1024, -1024]
    assert volume["size"] == [5, 6, 3] and volume["spacing"] == [0.75, 0.5, 2.0] and volume["values"] == [0, 4]
    made = nibabel.load(tmp_path / "v.nii.gz")
    assert made.get_fdata()[0, 0].tolist() == [0, 2, 4]
    (again,) = run(capsys, tmp_path / "v.nii.gz")
    assert again["size"] == [5, 6, 3] and again["values"] == [0, 4]


def test_mistakes_are_one_line_and_write_nothing(capsys, series, tmp_path):
    out = tmp_path / "v.nii.gz"
    assert "2 series" in fails(capsys, series, "--out", out)
    assert "9.9" in fails(capsys, series, "--out", out, "--series", "9.9")
    assert "no/such" in fails(capsys, "no/such")
    (series / "0.dcm").write_bytes(dicom(np.full((7, 5), 0), ImagePositionPatient=[0, 0, 4]))
    line = fails(capsys, series, "--out", out, "--series", SERIES)
    assert "another size" in line and "1.dcm" in line
    assert not out.exists()
