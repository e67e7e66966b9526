"""What a user meets: help, the files that the commands write, and every mistake as one line."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image
from tiny import TRAIN

import sample
import train
from jaxdiff.training.ema import Decay, Power

CLASSES = [
    *("--data.source", "emoji", "--data.holdout", "0.05"),
    *("--network.num-classes", "10", "--drop", "0.1"),
]
"""A run with labels."""


def fails(capsys, main, *args) -> str:
    """Runs a command that must end with one line on standard error and no traceback; returns the line."""
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in args])
    assert stop.value.code not in (0, None)
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("error: ") and sum(line.startswith("error") for line in lines) == 1
    assert "Traceback" not in "".join(lines)
    return lines[-1]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished tiny run with classes."""
    workdir = tmp_path_factory.mktemp("trained") / "run"
    train.main([*TRAIN, *CLASSES, "--workdir", str(workdir), "--validate-every", "12", "--preview-every", "12"])
    return workdir


def test_train_writes_what_it_says(trained):
    names = {p.name for p in trained.iterdir()}
    assert {"config.json", "checkpoints", "logs", "samples", "validation.jsonl"} <= names
    record = json.loads((trained / "validation.jsonl").read_text())
    assert record["step"] == 12 and len(record["loss"]) == 10 and np.all(np.isfinite(record["loss"]))
    assert np.all(np.diff(record["logsnr"]) < 0)


def test_help_names_every_preset_and_field(capsys):
    with pytest.raises(SystemExit) as stop:
        train.main(["--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0 and "smileys" in text and "cifar10_edm" in text and "--workdir" in text
    with pytest.raises(SystemExit) as stop:
        train.main(["cifar10_edm", "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    flags = ("--workdir", "--path.sigma-max", "--times.mean", "--prediction.sigma-data", "--optim.learning-rate")
    assert all(flag in text for flag in (*flags, "--network.channels", "--grid.rho", "--seed"))
    with pytest.raises(SystemExit) as stop:
        sample.main(["--help"])
    text = capsys.readouterr().out
    flags = ("--out", "--num", "--batch-size", "--seed", "--steps", "--solver", "--label", "--cfg-scale", "--ema")
    assert all(flag in text for flag in (*flags, "--step ", "--trajectory", "--format"))


def test_sample_writes_grid_images_and_info(trained, tmp_path):
    out = tmp_path / "out"
    sample.main([str(trained), "--out", str(out), "--num", "5", "--batch-size", "8", "--steps", "3", "--trajectory"])
    info = json.loads((out / "info.json").read_text())
    assert info["checkpoint_step"] == 12 and info["nfe"] == 3 and info["num"] == 5 and info["seconds"] > 0
    assert info["solver"]["type"] == "DDIM"
    assert sorted(p.name for p in (out / "images").iterdir()) == [f"{i:06d}.png" for i in range(5)]
    first = np.asarray(Image.open(out / "images" / "000000.png"))
    assert first.shape == (8, 8, 3) and first.dtype == np.uint8
    np.testing.assert_array_equal(np.asarray(Image.open(out / "grid.png"))[2:10, 2:10], first)
    assert Image.open(out / "trajectory.png").size == (3 * 10 + 2, 5 * 10 + 2)


def test_image_i_is_the_same_at_any_batch_size_and_format(trained, tmp_path):
    def images(batch: int, num: int):
        out = tmp_path / f"{batch}"
        options = ["--num", num, "--batch-size", batch, "--steps", 3, "--format", "npz", "--seed", 7]
        sample.main([str(trained), "--out", str(out), *map(str, options)])
        return np.load(out / "samples.npz")["images"]

    small, large = images(8, 20), images(24, 24)
    assert small.shape == (20, 8, 8, 3) and small.dtype == np.uint8
    # The same numbers up to the rounding of another batch's float32 sums, that is one grey level.
    assert np.abs(small.astype(int) - large[:20]).max() <= 1
    assert np.abs(small[0].astype(int) - small[1]).max() > 10


def test_label_by_name_guidance_and_averages(trained, tmp_path):
    def images(*options):
        out = tmp_path / "-".join(map(str, options)).replace("/", "")[:40]
        base = [str(trained), "--out", str(out), "--num", "8", "--batch-size", "8", "--steps", "3", "--format", "npz"]
        sample.main([*base, *map(str, options)])
        return np.load(out / "samples.npz")["images"]

    by_name, by_number = images("--label", "flags"), images("--label", 3)
    np.testing.assert_array_equal(by_name, by_number)
    assert np.any(images("--ema", "none") != images("--ema", "0.999"))
    assert images("--solver", "heun", "--step", 8).shape == (8, 8, 8, 3)


def test_guides_and_values_by_name(trained, tmp_path, capsys):
    def images(*options):
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        base = [str(trained), "--out", str(out), "--num", "8", "--batch-size", "8", "--steps", "3", "--format", "npz"]
        sample.main([*base, *map(str, options)])
        return np.load(out / "samples.npz")["images"], json.loads((out / "info.json").read_text())

    weaker = ("--guide", trained, "--guide-ema", "none", "--guide-step", "8")
    plain, _ = images("--cfg-scale", 1)
    same, _ = images(*weaker, "--cfg-scale", 1)
    away, info = images(*weaker, "--cfg-scale", 3, "--guidance", "apg(radius=50)", "--interval", 0.1, 20)
    assert np.abs(plain.astype(int) - same).max() <= 1 and np.any(away != plain)
    assert info["guide"] == [str(trained), 8, "none"] and info["sampling"]["guidance"]["radius"] == 50
    assert info["sampling"]["interval"]["high"] == 20
    rule = "apg(radius=50, momentum=-0.5)"
    held_back, info = images(*weaker, "--cfg-scale", 3, "--guidance", rule, "--interval", 0.1, 20)
    assert np.any(held_back != away) and info["sampling"]["guidance"]["momentum"] == -0.5
    line = fails(capsys, sample.main, trained, "--out", tmp_path / "no", "--solver", "rk45", "--guidance", rule)
    assert "--guidance, --solver" in line
    _, info = images("--solver", "unipc(order=3, corrector=False)", "--grid", "karras(sigma_max=50)")
    assert info["solver"]["order"] == 3 and not info["solver"]["corrector"] and info["grid"]["sigma_max"] == 50
    line = fails(capsys, sample.main, trained, "--out", tmp_path / "no", "--classifier", trained)
    assert "--classifier" in line and "no classifier" in line


def test_any_length_of_average_after_training(capsys, tmp_path):
    run = train.read_command([*TRAIN, "--workdir", str(tmp_path / "run")])
    train.train(dataclasses.replace(run.config, ema=(Decay(0.9), Power(0.05), Power(0.1))), run.workdir)

    def images(length: str):
        sample.main(
            [str(run.workdir), "--out", str(tmp_path / length), "--num", "8", "--batch-size", "8", "--ema", length]
        )
        return np.asarray(Image.open(tmp_path / length / "grid.png")).astype(int)

    short, between, long = images("0.05"), images("0.07"), images("0.1")
    assert np.any(short != between) and np.any(between != long)
    assert np.abs(between - short).mean() < np.abs(long - short).mean()
    assert "0.2887" in fails(capsys, sample.main, run.workdir, "--out", tmp_path / "no", "--ema", "0.5")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["smilies"], ["'smilies'", "smileys", "emoji"]),
        (["smileys"], ["--workdir"]),
        (["smileys", "--workdir", "W", "--steps", "0"], ["steps = 0", "at least 1", "--steps"]),
        (["smileys", "--workdir", "W", "--steps", "many"], ["'many'", "--steps"]),
        (["smileys", "--workdir", "W", "--batch-size", "-4"], ["-4", "--batch-size"]),
        (["smileys", "--workdir", "W", "--flip", "1"], ["--flip"]),
        (["smileys", "--workdir", "W", "--drop", "2"], ["2", "[0, 1)", "--drop"]),
        (["smileys", "--workdir", "W", "--path.shift", "-1"], ["-1", "--path.shift"]),
        (["smileys", "--workdir", "W", "--data.source", "emoji:cats"], ["cats", "smileys-emotion", "--data.source"]),
        (["smileys", "--workdir", "W", "--data.source", "no/such/place"], ["no/such/place", "--data.source"]),
        (["smileys", "--workdir", "W", "--network.num-classes", "7"], ["7", "--network.num-classes"]),
        (["smileys", "--workdir", "W", "--batch-size", "12"], ["12", "8 device(s)", "--batch-size"]),
        (["smileys", "--workdir", "W", "--optim.learning-rate", "inf"], ["inf", "--optim.learning-rate"]),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else v,
)
def test_mistakes_in_train_are_one_line(capsys, tmp_path, args, words):
    workdir = tmp_path / "run"
    line = fails(capsys, train.main, *[workdir if a == "W" else a for a in args])
    for word in words:
        assert word in line
    assert not (workdir / "checkpoints").exists()


def test_empty_folder_is_refused(capsys, tmp_path):
    (tmp_path / "pictures").mkdir()
    line = fails(capsys, train.main, *TRAIN, "--workdir", tmp_path / "run", "--data.source", tmp_path / "pictures")
    assert str(tmp_path / "pictures") in line and "--data.source" in line


def test_foreign_and_unwritable_workdirs_are_refused(capsys, tmp_path):
    (tmp_path / "thesis.tex").write_text("do not touch")
    assert "--workdir" in fails(capsys, train.main, *TRAIN, "--workdir", tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    line = fails(capsys, train.main, *TRAIN, "--workdir", tmp_path / "thesis.tex" / "run")
    assert "--workdir" in line and str(tmp_path / "thesis.tex") in line


def test_a_workdir_of_another_run_is_refused_with_what_differs(capsys, trained):
    before = (trained / "config.json").read_text()
    line = fails(capsys, train.main, *TRAIN, *CLASSES, "--workdir", trained, "--optim.learning-rate", "0.5")
    assert "0.002" in line and "0.5" in line and "--optim.learning-rate" in line
    assert (trained / "config.json").read_text() == before


def test_a_full_disk_is_one_line_and_keeps_the_last_checkpoint(capsys, tmp_path, monkeypatch):
    import orbax.checkpoint as ocp

    original = ocp.CheckpointManager.save

    def full(self, step, *args, **options):
        if step == 8:
            raise OSError(28, "No space left on device")
        return original(self, step, *args, **options)

    monkeypatch.setattr(ocp.CheckpointManager, "save", full)
    line = fails(capsys, train.main, *TRAIN, "--workdir", tmp_path / "run")
    assert "No space left" in line and str(tmp_path / "run") in line
    assert (tmp_path / "run" / "checkpoints" / "4").exists()
    assert not (tmp_path / "run" / "checkpoints" / "8").exists()


def test_divergence_stops_with_a_diagnosis_and_keeps_the_last_checkpoint(capsys, tmp_path):
    run = [*TRAIN, "--workdir", tmp_path / "run", "--optim.learning-rate", "1e9", "--optim.rule.b2", "0.0"]
    line = fails(capsys, train.main, *run, "--optim.clip", "0", "--steps", "400", "--save-every", "1")
    assert "loss at step" in line and "--optim.learning-rate" in line
    diagnosis = json.loads((tmp_path / "run" / "diagnosis.json").read_text())
    kept = [int(p.name) for p in (tmp_path / "run" / "checkpoints").iterdir()]
    assert diagnosis["grad_norm_by_module"] and max(kept) < diagnosis["step"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--num", "0"], ["0", "--num"]),
        (["--steps", "0"], ["0", "1 to", "--steps"]),
        (["--seed", "-1"], ["-1", "--seed"]),
        (["--label", "10"], ["10", "0 to 9", "--label"]),
        (["--label", "cats"], ["cats", "Flags", "--label"]),
        (["--solver", "magic"], ["magic", "ddim", "--solver"]),
        (["--ema", "0.5"], ["0.5", "0.999", "--ema"]),
        (["--step", "5"], ["5", "8, 12", "--step"]),
        (["--format", "gif"], ["gif", "png", "--format"]),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else v,
)
def test_mistakes_in_sample_are_one_line(capsys, trained, tmp_path, args, words):
    line = fails(capsys, sample.main, trained, "--out", tmp_path / "out", *args)
    for word in words:
        assert word in line
    assert not (tmp_path / "out").exists()


def test_sampling_what_is_no_run_is_refused(capsys, tmp_path):
    line = fails(capsys, sample.main, tmp_path / "nothing", "--out", tmp_path / "out")
    assert "nothing" in line and not (tmp_path / "out").exists()
    unlabelled = tmp_path / "plain"
    train.main([*TRAIN, "--workdir", str(unlabelled), "--steps", "4"])
    assert "--label" in fails(capsys, sample.main, unlabelled, "--out", tmp_path / "out", "--label", "1")
    assert "--cfg-scale" in fails(capsys, sample.main, unlabelled, "--out", tmp_path / "out", "--cfg-scale", "2")
    file = tmp_path / "file"
    file.write_text("not a folder")
    assert "--out" in fails(capsys, sample.main, unlabelled, "--out", file / "out")
