"""Super-resolution from end to end at its smallest: trained, refused alone, and shown a picture."""

import json

import numpy as np
import pytest
from PIL import Image

import sample
import train
from jaxdiff import build
from jaxdiff.commands import edit
from jaxdiff.presets import preset

RUN = [
    *("emoji_sr", "--data.source", "emoji:smileys-emotion", "--data.size", "8", "--data.low", "4"),
    *("--batch-size", "8", "--steps", "60", "--save-every", "60", "--log-every", "20", "--preview-every", "60"),
    *("--network.channels", "8", "--network.channel-mults", "1", "--network.attention-resolutions"),
    *("--network.no-middle-attention", "--network.head-channels", "4", "--network.patch", "1"),
    *("--sampling.steps", "5", "--validate-every", "60"),
]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("shown") / "run"
    train.main([*RUN, "--workdir", str(workdir)])
    return workdir


def fails(capsys, main, *args):
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in args])
    assert stop.value.code not in (0, None)
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_it_shows_itself_with_pictures(workdir):
    assert list((workdir / "samples").iterdir()) and (workdir / "validation.jsonl").exists()


def test_the_small_picture_makes_the_large_one(workdir, tmp_path, capsys):
    for name, value in (("white", 255), ("black", 0)):
        Image.fromarray(np.full((4, 4, 3), value, np.uint8)).save(tmp_path / f"{name}.png")
        args = (workdir, "--out", tmp_path / name, "--image", tmp_path / f"{name}.png", "--num", 2, "--ema", "none")
        edit.main([str(a) for a in args])
        info = json.loads((tmp_path / name / "info.json").read_text())
        assert info["method"] == "generate" and info["nfe"] == 5
    first = [Image.open(tmp_path / name / "images" / "000000.png") for name in ("white", "black")]
    white, black = (np.asarray(image).mean() for image in first)
    assert white > black + 10  # sixty steps have taught it at least to look
    assert np.asarray(Image.open(tmp_path / "white" / "before_after.png")).shape == (12, 3 * 10 + 2, 3)
    large = tmp_path / "large.png"
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(large)
    line = fails(capsys, edit.main, workdir, "--out", tmp_path / "no", "--image", large)
    assert "4 x 4" in line and "--fit" in line
    line = fails(capsys, edit.main, workdir, "--out", tmp_path / "no", "--image", large, "--method", "sdedit")
    assert "generate" in line
    line = fails(capsys, edit.main, workdir, "--out", tmp_path / "no", "--canvas", 8, 16)
    assert "--image" in line and not (tmp_path / "no").exists()


def test_alone_it_makes_nothing(workdir, tmp_path, capsys):
    line = fails(capsys, sample.main, workdir, "--out", tmp_path / "out")
    assert "jaxdiff edit" in line and not (tmp_path / "out").exists()


def test_networks_and_data_must_agree():
    config = preset("emoji_sr")
    build.check_data(config, ())
    import dataclasses

    for other in (
        dataclasses.replace(config, data=dataclasses.replace(config.data, low=0)),
        dataclasses.replace(config, network=config.network.clone(image_channels=1)),
        dataclasses.replace(preset("smileys"), data=dataclasses.replace(preset("smileys").data, pairs=True)),
    ):
        with pytest.raises(ValueError, match=r"--network\.image-channels"):
            build.check_data(other, ())
