"""jaxdiff restore: what it writes, how it measures itself, and every mistake as one line with nothing written."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from PIL import Image
from tiny import TRAIN

import train
from jaxdiff.commands import restore
from jaxdiff.config import from_json
from jaxdiff.measurements import inside, intensities, outside
from jaxdiff.names import OPERATORS, value_of
from jaxdiff.restoration import check_run, nominal, statistics
from jaxdiff.settings import Settings
from jaxdiff.training.workdir import read_config

CLASSES = [
    *("--data.source", "emoji", "--data.holdout", "0.05"),
    *("--network.num-classes", "10"),
]
QUICK = ["--num", "4", "--batch-size", "4", "--steps", "3"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("trained") / "run"
    train.main([*TRAIN, *CLASSES, "--drop", "0.1", "--workdir", str(workdir)])
    return workdir


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Files: a clean picture, a mask, grey and colour measurements, arrays."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    clean = np.asarray(Image.fromarray(rng.integers(0, 256, (2, 2, 3), np.uint8)).resize((8, 8)))
    Image.fromarray(clean).save(folder / "clean.png")
    mask = np.zeros((8, 8), np.uint8)
    mask[2:5, 3:7] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    Image.fromarray(mask[:6]).save(folder / "small_mask.png")
    Image.fromarray(clean[::2, ::2]).save(folder / "half.png")
    Image.fromarray(np.array([[0, 1234], [40_000, 65_535]], np.uint16)).save(folder / "deep.png")
    np.save(folder / "half.npy", clean[::2, ::2] / 255)
    holes = clean[::2, ::2] / 255
    holes[0, 0, 0] = np.nan
    np.save(folder / "nan.npy", holes)
    np.savez(folder / "other.npz", something=holes)
    (folder / "broken.npz").write_bytes(b"PK nothing")
    return folder


def run(folder, out, *args):
    restore.main([str(folder), "--out", str(out), *QUICK, *map(str, args)])
    return json.loads((out / "info.json").read_text())


def test_a_picture_is_measured_restored_and_compared(trained, pictures, tmp_path):
    out = tmp_path / "out"
    args = ("--operator", "downsample(factor=2)", "--noise", 0.05, "--method", "ddrm", "--credible", 0.5)
    info = run(trained, out, *args, "--simulate", pictures / "clean.png")
    assert info["operator"] == {"type": "Downsample", "factor": 2} and info["noise"] == pytest.approx(0.05)
    assert info["nfe"] == 3 and info["seconds"] > 0 and info["method"]["eta"] == 0.85 and info["simulated"]
    assert info["psnr"] > info["psnr_of_draws"] and 0 <= info["coverage"] <= 1 and "ssim" not in info
    assert info["credible"] == 0.5 and info["nominal"] == 0.5
    assert sorted(p.name for p in (out / "images").iterdir()) == [f"{i:06d}.png" for i in range(4)]
    panels = np.asarray(Image.open(out / "restored.png"))
    assert panels.shape == (12, 4 * 10 + 2, 3)
    clean = np.asarray(Image.open(pictures / "clean.png"))
    np.testing.assert_array_equal(panels[2:10, 32:40], clean)
    held = np.load(out / "posterior.npz")
    assert np.all(held["low"] <= held["high"]) and held["mean"].shape == (8, 8, 3)
    np.testing.assert_array_equal(panels[2:10, 12:20], np.round(np.clip(255 * held["mean"], 0, 255)))
    images = np.stack([np.asarray(Image.open(out / "images" / f"{i:06d}.png")) for i in range(4)]) / 255
    np.testing.assert_allclose(np.clip(held["mean"], 0, 1), images.mean(0), atol=0.1)
    # The measurement that was made is one that the command takes.
    again = run(trained, tmp_path / "again", *args, "--measurement", out / "measurement.npz")
    assert "psnr" not in again and not again["simulated"]
    first, second = (np.load(folder / "posterior.npz")["mean"] for folder in (out, tmp_path / "again"))
    np.testing.assert_allclose(first, second, atol=1e-5)


def test_pictures_and_arrays_are_the_same_measurement(trained, pictures, tmp_path):
    args = ("--operator", "downsample(factor=2)", "--method", "ddnm", "--num", 1)
    found = []
    for name in ("half.png", "half.npy"):
        run(trained, tmp_path / name, *args, "--measurement", pictures / name)
        found.append(np.load(tmp_path / name / "posterior.npz"))
    np.testing.assert_allclose(found[0]["mean"], found[1]["mean"], atol=1e-5)
    # Without noise the measurement is met exactly.
    blocks = found[0]["mean"].reshape(4, 2, 4, 2, 3).mean((1, 3))
    np.testing.assert_allclose(blocks, np.load(pictures / "half.npy"), atol=1e-4)
    assert np.all(found[0]["std"] == 0)


def test_a_mask_is_white_where_the_picture_is_made_anew(trained, pictures, tmp_path):
    out = tmp_path / "out"
    args = ("--operator", "mask", "--mask", pictures / "mask.png", "--method", "ddnm")
    info = run(trained, out, *args, "--measurement", pictures / "clean.png", "--label", "flags")
    assert info["told"] and info["arrays"] == {"mask": [8, 8]}
    clean, std = np.asarray(Image.open(pictures / "clean.png")), np.load(out / "posterior.npz")["std"]
    hidden = np.asarray(Image.open(pictures / "mask.png")) == 255
    for i in range(4):
        image = np.asarray(Image.open(out / "images" / f"{i:06d}.png"))
        np.testing.assert_array_equal(image[~hidden], clean[~hidden])
    assert std[~hidden].max() < 1e-4 < std[hidden].max()


@pytest.mark.parametrize(
    "operator, method, options",
    [
        ("mri(acceleration=2.0, centre=0.2)", "diffpir", ("--noise", 0.02)),
        ("ct(views=6, photons=1000.0)", "pigdm", ()),
        ("jpeg(quality=20)", "daps(langevin=5)", ("--noise", 0.02)),
        ("grey", "tds(particles=8)", ("--noise", 0.1, "--solver", "ddim")),
    ],
)
def test_other_measurements(trained, pictures, tmp_path, operator, method, options, capsys):
    out = tmp_path / "out"
    args = ("--operator", operator, "--method", method, "--simulate", pictures / "clean.png", *options)
    if "--solver" in options:
        with pytest.raises(SystemExit):
            run(trained, out, *args)
        assert "--solver" in capsys.readouterr().err and not out.exists()
        args = args[: args.index("--solver")]
    info = run(trained, out, *args)
    assert np.isfinite(info["psnr"])
    assert ("log_evidence" in info) == method.startswith("tds")
    if "photons" in operator:
        assert 0.005 < info["noise"] < 0.1
    if method.startswith("tds"):
        assert len(info["log_evidence"]) == 1 and 1 <= info["least_effective_size"] <= 8


def test_classes_must_be_told_where_they_were_never_dropped(trained):
    config = from_json(read_config(trained)["config"])
    check_run(config, Settings())
    never = dataclasses.replace(config, objective=dataclasses.replace(config.objective, drop=0.0))
    check_run(never, Settings(label="3"))
    with pytest.raises(ValueError, match="--label"):
        check_run(never, Settings())


@pytest.mark.parametrize(
    "args, words",
    [
        (["--operator", "blurr", "--simulate", "clean.png"], ["blurr", "downsample", "--operator"]),
        (["--operator", "grey", "--method", "magic", "--simulate", "clean.png"], ["magic", "ddrm", "--method"]),
        (["--operator", "grey"], ["--measurement", "--simulate"]),
        (["--operator", "grey", "--simulate", "clean.png", "--measurement", "half.png"], ["--measurement"]),
        (["--operator", "downsample", "--measurement", "half.png"], ["(4, 4, 3)", "(2, 2, 3)", "--operator"]),
        (["--operator", "downsample(factor=2)", "--measurement", "nan.npy"], ["1 values", "--measurement"]),
        (["--operator", "downsample(factor=2)", "--measurement", "other.npz"], ["something", "--measurement"]),
        (["--operator", "downsample(factor=2)", "--measurement", "broken.npz"], ["cannot be read", "--measurement"]),
        (["--operator", "downsample(factor=2)", "--measurement", "gone.png"], ["no file", "--measurement"]),
        (["--operator", "mri", "--measurement", "half.png"], ["picture", "--measurement"]),
        (["--operator", "mask", "--mask", "small_mask.png", "--simulate", "clean.png"], ["8x6", "8x8", "--mask"]),
        (["--operator", "grey", "--mask", "mask.png", "--simulate", "clean.png"], ["grey", "--mask"]),
        (["--operator", "grey", "--arrays", "half.npy", "--simulate", "clean.png"], ["--arrays"]),
        (["--operator", "grey", "--simulate", "half.png"], ["4 x 4", "8 x 8", "--simulate"]),
        (["--operator", "grey", "--simulate", "clean.png", "--noise", "-1"], ["noise = -1", "--noise"]),
        (["--operator", "ct(photons=10.0)", "--simulate", "clean.png", "--noise", "0.1"], ["photons", "--noise"]),
        (["--operator", "phase", "--simulate", "clean.png", "--method", "ddrm"], ["not linear", "--method"]),
        (["--operator", "grey", "--simulate", "clean.png", "--num", "0"], ["num = 0", "--num"]),
        (["--operator", "grey", "--simulate", "clean.png", "--credible", "1.5"], ["credible", "--credible"]),
        (["--operator", "grey", "--measurement", "half.png", "--lpips", "lpips-alexnet"], ["--lpips"]),
        (["--operator", "grey", "--simulate", "clean.png", "--guidance", "apg(momentum=0.5)"], ["momentum"]),
    ],
    ids=lambda v: " ".join(v),
)
def test_mistakes_are_one_line_and_nothing_is_written(capsys, trained, pictures, tmp_path, args, words):
    args = [str(pictures / a) if "." in a and (pictures / a).suffix in (".png", ".npy", ".npz") else a for a in args]
    out = tmp_path / "out"
    with pytest.raises(SystemExit):
        restore.main([str(trained), "--out", str(out), *QUICK, *args])
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("error: ") and all(word in lines[-1] for word in words), lines[-1]
    assert not out.exists()


# The parts.


def test_sixteen_bits_are_kept(pictures):
    found = intensities(epath.Path(pictures / "deep.png"), "--measurement")
    np.testing.assert_allclose(found[..., 0], np.array([[0, 1234], [40_000, 65_535]]) / 65_535)


@pytest.mark.parametrize("text", ["mask", "blur(circular=False)", "mri", "ct(views=4)", "jpeg", "phase"])
def test_measurements_go_out_and_in(text):
    shape = (8, 8, 1)
    operator = value_of(text, OPERATORS, "--operator").on(shape, {})
    y = np.asarray(operator.forward(jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (1, *shape)), jnp.float32)))[0]
    np.testing.assert_allclose(inside(operator, outside(operator, y)), y, atol=1e-5)
    if text in ("mask", "blur(circular=False)", "ct(views=4)", "phase"):
        # Black measures nothing.
        black = np.asarray(operator.forward(-jnp.ones((1, *shape))))[0]
        np.testing.assert_allclose(outside(operator, black), 0, atol=1e-5)


def test_intervals_hold_one_more_draw_as_often_as_they_say():
    rng = np.random.default_rng(0)
    for num, credible in ((19, 0.9), (40, 0.8), (4, 0.9)):
        draws = rng.normal(size=(num, 200, 100, 1))
        found = statistics(draws, credible)
        new = rng.normal(size=(200, 100, 1))
        share = np.mean((found["low"] <= new) & (new <= found["high"]))
        assert share == pytest.approx(nominal(num, credible), abs=0.01)
    assert nominal(4, 0.9) == 0.6 and nominal(19, 0.9) == 0.9
