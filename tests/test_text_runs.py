"""Text to image from end to end, at its smallest: captions in, prompts out."""

import dataclasses
import json
import re

import numpy as np
import pytest
from PIL import Image
from tiny import run
from tiny_text import TEXT

from jaxdiff import build
from jaxdiff.data import Data
from jaxdiff.presets import preset


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run that reads captions with pieces of words it has learned."""
    workdir = tmp_path_factory.mktemp("text") / "run"
    result = run("train.py", *TEXT, "--workdir", workdir)
    assert result.returncode == 0, result.stderr
    return workdir


def images(out, count):
    """uint8 [count, h, w, c]."""
    return np.stack([np.asarray(Image.open(out / "images" / f"{i:06d}.png")) for i in range(count)])


def sample(workdir, out, *args):
    """sample.py with two images; its folder."""
    result = run(
        "sample.py",
        workdir,
        "--out",
        out,
        "--num",
        "2",
        "--batch-size",
        "2",
        "--cfg-scale",
        "20",
        "--ema",
        "none",
        *args,
    )
    assert result.returncode == 0, result.stderr
    return out


def test_prompts_make_the_pictures(workdir, tmp_path):
    cat, again = (sample(workdir, tmp_path / name, "--prompt", "a grinning cat") for name in ("cat", "again"))
    np.testing.assert_array_equal(images(cat, 2), images(again, 2))
    heart = sample(workdir, tmp_path / "heart", "--prompt", "red heart")
    less = sample(workdir, tmp_path / "less", "--prompt", "red heart", "--negative-prompt", "a grinning cat")
    assert np.any(images(cat, 2) != images(heart, 2)) and np.any(images(heart, 2) != images(less, 2))
    info = json.loads((less / "info.json").read_text())
    assert (info["prompt"], info["negative_prompt"]) == ("red heart", "a grinning cat")


def test_a_file_of_prompts_is_a_folder_each_and_goes_on(workdir, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a grinning cat\n\nred heart\n")
    out = sample(workdir, tmp_path / "out", "--prompts", prompts)
    assert sorted(p.name for p in out.iterdir()) == ["0000", "0001"]
    alone = sample(workdir, tmp_path / "alone", "--prompt", "red heart")
    np.testing.assert_array_equal(images(out / "0001", 2), images(alone, 2))
    (out / "0001" / "info.json").unlink()
    before = (out / "0000" / "info.json").stat().st_mtime_ns
    sample(workdir, out, "--prompts", prompts)
    assert (out / "0000" / "info.json").stat().st_mtime_ns == before and (out / "0001" / "info.json").exists()
    other = run("sample.py", workdir, "--out", out, "--num", "3", "--batch-size", "2", "--prompts", prompts)
    assert other.returncode != 0 and "--out" in other.stderr and other.stderr.count("\n") == 1


def test_a_run_without_texts_refuses_a_prompt(tmp_path):
    from tiny import TRAIN

    result = run("train.py", *TRAIN, "--steps", "4", "--workdir", tmp_path / "run")
    assert result.returncode == 0, result.stderr
    refused = run("sample.py", tmp_path / "run", "--out", tmp_path / "out", "--prompt", "a cat")
    assert refused.returncode == 2 and "--prompt" in refused.stderr and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("config", "flag"),
    [
        (dataclasses.replace(preset("emoji_text"), text=""), "--data.text"),
        (dataclasses.replace(preset("emoji"), text="minilm"), "--data.text"),
        (dataclasses.replace(preset("emoji"), data=Data("emoji", 32, text=True), text="minilm"), "--no-data.text"),
        (dataclasses.replace(preset("emoji_text"), text="minilm"), "--text"),
    ],
)
def test_captions_that_nobody_reads_are_refused(config, flag):
    with pytest.raises(ValueError, match=re.escape(f"({flag}")) as refused:
        build.check_text(config)
    assert "\n" not in str(refused.value)


def test_the_preset_reads_captions():
    build.check_text(preset("emoji_text"))
