"""jaxdiff anomaly: the files, the figures, the same maps at any batch size, scans in and out, mistakes as one line."""

import json

import numpy as np
import pydicom
import pytest
from PIL import Image
from scans import dicom
from tiny import TRAIN

import train
from jaxdiff.commands import anomaly

FEW = ("--steps", "4", "--seeds", "2", "--batch-size", "8")


@pytest.fixture(scope="module")
def chest(tmp_path_factory):
    """A file of MedMNIST's kind: normal images are dark, ill ones bright in a corner."""
    rng, arrays = np.random.default_rng(0), {}
    for split, n in (("train", 40), ("val", 8), ("test", 22)):
        images = rng.integers(60, 90, (n, 8, 8, 3))
        label = np.arange(n) % 2
        images[label == 1, :3, :3] += 120
        arrays |= {f"{split}_images": images.astype(np.uint8), f"{split}_labels": label[:, None].astype(np.uint8)}
    path = tmp_path_factory.mktemp("chest") / "pneumoniamnist.npz"
    np.savez(path, **arrays)
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory, chest):
    workdir = tmp_path_factory.mktemp("trained") / "run"
    data = ("--data.source", f"medmnist:{chest}", "--data.classes", "normal", "--data.no-labels")
    train.main([*TRAIN, *data, "--workdir", str(workdir)])
    return workdir


def run(capsys, *args):
    """The record: the last line of the output."""
    capsys.readouterr()
    anomaly.main([str(a) for a in args])
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


def test_files_and_figures(capsys, trained, tmp_path):
    record = run(capsys, trained, "--out", tmp_path / "out", "--normal", "normal", "--bootstrap", 50, *FEW)
    assert record["num"] == 22 and record["abnormal"] == 11 and record["nfe"] == 4 and record["seeds"] == 2
    assert record["images"]["split"] == "test" and record["images"]["classes"] == []
    assert {"diffusion/mae", "diffusion/mse", "diffusion/brighter", "pca/mae", "mean/mse", "nearest/mse"} <= set(
        record["auc"]
    )
    # Bright corners are far from all normal images, which the methods that know these see at once.
    for name in ("pca/mae", "nearest/mse", "mean/brighter"):
        assert record["auc"][name]["value"] == 1
    for each in record["auc"].values():
        assert each["low"] <= each["value"] <= each["high"]
    kept = np.load(tmp_path / "out" / "maps.npz")
    assert kept["maps"].shape == (22, 8, 8) and kept["reconstructions"].shape == (22, 8, 8, 3)
    assert kept["label"].tolist() == [0, 1] * 11 and kept["place"].tolist() == list(range(22))
    np.testing.assert_allclose(kept["maps"].mean(axis=(1, 2)), kept["diffusion|mae"], rtol=1e-4)
    assert json.loads((tmp_path / "out" / "info.json").read_text()) == record
    assert len(list((tmp_path / "out" / "images").iterdir())) == 22
    assert Image.open(tmp_path / "out" / "rows.png").size[0] > 500 and (tmp_path / "out" / "grid.png").exists()


def test_maps_do_not_depend_on_the_batch_but_on_the_seed(capsys, trained, tmp_path):
    def maps(name, *more):
        run(capsys, trained, "--out", tmp_path / name, "--no-baselines", *FEW, *more)
        return np.load(tmp_path / name / "maps.npz")["maps"]

    one = maps("a")
    np.testing.assert_allclose(maps("b", "--batch-size", 24), one, atol=2e-3)
    assert np.abs(maps("c", "--seed", 9) - one).max() > 0.01
    few = maps("d", "--num", 3)
    np.testing.assert_allclose(few[0], one[0], atol=2e-3)


def test_encoding_needs_no_seeds(capsys, trained, tmp_path):
    record = run(capsys, trained, "--out", tmp_path / "out", "--method", "encode", "--no-baselines", *FEW)
    assert record["seeds"] == 1 and "auc" not in record and record["mean_scores"]["diffusion/mae"] >= 0
    # Four levels above the clean one: three steps up, four down, without fresh noise.
    assert record["nfe"] == 7 and record["solver"]["eta"] == 0


def test_scans_in_and_out(capsys, trained, tmp_path):
    rng = np.random.default_rng(0)
    for i in range(3):
        (tmp_path / "set").mkdir(exist_ok=True)
        (tmp_path / "set" / f"{i}.dcm").write_bytes(dicom(rng.integers(900, 1300, (16, 16))))
    args = (trained, "--images", f"dicom:{tmp_path / 'set'}", "--no-baselines", *FEW)
    record = run(capsys, *args, "--out", tmp_path / "out", "--scans", "anonymous")
    assert record["num"] == 3 and record["images"]["split"] == "train"
    made = sorted((tmp_path / "out" / "scans").iterdir())
    assert [p.name for p in made] == [f"{i:06d}.dcm" for i in range(3)]
    first = pydicom.dcmread(made[0])
    assert (first.Rows, first.Columns) == (16, 16) and first.PatientName == "Anonymous" and first.BitsStored == 16
    assert len({str(pydicom.dcmread(p).SeriesInstanceUID) for p in made}) == 1


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--normal", "healthy"], ["'healthy'", "normal, pneumonia", "--normal"]),
        (["--images", "no/such/place"], ["no/such/place", "--images"]),
        (["--split", "half"], ["half", "train, val, test", "--split"]),
        (["--noise", "0"], ["noise = 0", "--noise"]),
        (["--seeds", "0"], ["seeds = 0", "--seeds"]),
        (["--variance", "0"], ["variance = 0", "--variance"]),
        (["--scans", "keep"], ["no scans", "--scans"]),
        (["--num", "1", "--normal", "0"], ["all 1 images are normal", "--normal"]),
    ],
    ids=lambda v: " ".join(v),
)
def test_mistakes_are_one_line_and_leave_nothing(capsys, trained, tmp_path, args, words):
    with pytest.raises(SystemExit) as stop:
        anomaly.main([str(trained), "--out", str(tmp_path / "out"), *FEW, *args])
    assert stop.value.code == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: ") and all(word in line for word in words)
    assert not (tmp_path / "out").exists()
