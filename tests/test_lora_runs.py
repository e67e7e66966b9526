"""LoRA from end to end at its smallest: trained on top of a run, resumed, sampled, written for others, merged again."""

import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image
from tiny import run
from tiny_text import TEXT

import sample
import train
from jaxdiff.checkpoints import read_checkpoint
from jaxdiff.pretrained import safetensors
from jaxdiff.training.restore import read_params, steps

LORA = ["--lora.rank", "2", "--lora.alpha", "3", "--lora.targets", "all", "--steps", "8", "--save-every", "4"]
PROMPT = ["--num", "2", "--batch-size", "2", "--prompt", "a grinning cat"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run, and another one that trained a LoRA on top of it."""
    folder = tmp_path_factory.mktemp("lora")
    train.main([*TEXT, "--steps", "4", "--workdir", str(folder / "base")])
    train.main([str(folder / "base"), *LORA, "--workdir", str(folder / "lora")])
    return folder


def images(workdir, out, *args):
    """uint8 [2, h, w, c] from sample.py."""
    sample.main([str(workdir), "--out", str(out), *PROMPT, *map(str, args)])
    return np.stack([np.asarray(Image.open(out / "images" / f"{i:06d}.png")) for i in range(2)])


def flat(tree):
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def test_only_factors_are_trained_and_stored(runs):
    base, part = (flat(read_params(runs / name, steps(runs / name)[-1], 0)) for name in ("base", "lora"))
    assert all(path.endswith(("['down']", "['up']")) for path in part)
    assert {path.rsplit("[", 1)[0] for path in part} == {path for path in base if path.endswith("['kernel']")}
    assert all(np.any(value) for path, value in part.items() if path.endswith("['up']"))
    whole = flat(read_checkpoint(runs / "lora", None, None).params)
    assert whole.keys() == base.keys()
    for path, value in whole.items():
        if path + "['down']" not in part:
            np.testing.assert_array_equal(value, base[path])
            continue
        inner = (-1, part[path + "['down']"].shape[-1])
        if "blocks" not in path:
            change = part[path + "['down']"].reshape(inner) @ part[path + "['up']"].reshape(inner[1], -1) * 3 / 2
            np.testing.assert_allclose(value, base[path] + change.reshape(value.shape), atol=1e-5)


def test_resumed_is_uninterrupted_bit_for_bit(runs, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(runs / "lora", again)
    shutil.rmtree(again / "checkpoints" / "8")
    train.main([str(runs / "base"), *LORA, "--workdir", str(again)])
    for average in (None, 0):
        first, second = (flat(read_params(folder, 8, average)) for folder in (runs / "lora", again))
        assert all(first[path].tobytes() == second[path].tobytes() for path in first)


def test_it_samples_and_needs_what_it_started_from(runs, tmp_path):
    before = images(runs / "lora", tmp_path / "before")
    assert np.any(before != images(runs / "base", tmp_path / "base"))
    moved, lora = tmp_path / "moved", tmp_path / "lora"
    shutil.copytree(runs / "base", moved)
    shutil.copytree(runs / "lora", lora)
    record = lora / "checkpoints" / "8" / "record" / "metadata"
    record.write_text(record.read_text().replace(str(runs / "base"), str(tmp_path / "gone")))
    (lora / "checkpoints" / "8" / "files.json").unlink()
    refused = run("sample.py", lora, "--out", tmp_path / "out", *PROMPT)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1, refused.stderr
    assert "gone" in refused.stderr and "--base" in refused.stderr
    np.testing.assert_array_equal(before, images(lora, tmp_path / "found", "--base", moved))
    with pytest.raises(ValueError, match=r"parameters differ \(--base\)"):
        read_checkpoint(runs / "lora", None, None, runs / "lora")


def test_written_for_others_it_changes_the_base_alike(runs, tmp_path):
    from jaxdiff.commands import lora

    file = tmp_path / "lora.safetensors"
    lora.main([str(runs / "lora"), str(file)])
    names = set(safetensors.read(file))
    assert {"unet.conv_in.lora_A.weight", "unet.text_encoder.attention_0_qkv.lora_B.weight"} <= names
    merged = images(runs / "base", tmp_path / "merged", "--lora", file)
    # The same sums in another order: a rounding may tip.
    assert np.abs(merged.astype(int) - images(runs / "lora", tmp_path / "trained")).max() <= 1
    halves = images(runs / "base", tmp_path / "halves", "--lora", f"{file}:0.25", "--lora", f"{file}:0.75")
    assert np.abs(merged.astype(int) - halves).max() <= 1
    assert json.loads((tmp_path / "halves" / "info.json").read_text())["lora"] == [f"{file}:0.25", f"{file}:0.75"]
    np.testing.assert_array_equal(
        images(runs / "base", tmp_path / "none", "--lora", f"{file}:0"), images(runs / "base", tmp_path / "plain")
    )


def test_what_cannot_be_started_from_is_refused(runs, tmp_path, capsys):
    for args, said in (
        ([*TEXT, "--lora.rank", "2"], "--start"),
        ([*TEXT, "--network.channels", "16", "--start", str(runs / "base")], "another network"),
        ([*TEXT, "--start", str(tmp_path / "nothing")], "nothing"),
        ([str(runs / "base"), "--lora.rank", "2", "--word.text", "<toy>"], "--word.text"),
    ):
        with pytest.raises(SystemExit) as stopped:
            train.main([*args, "--workdir", str(tmp_path / "run")])
        assert stopped.value.code == 2
        err = capsys.readouterr().err
        assert said in err and err.count("\n") == 1
        assert not (tmp_path / "run").exists()


def test_another_run_goes_on_with_all_parameters(runs, tmp_path):
    train.main([str(runs / "base"), "--steps", "1", "--optim.learning-rate", "0", "--workdir", str(tmp_path / "run")])
    first, second = (flat(read_checkpoint(folder, None, None).params) for folder in (runs / "base", tmp_path / "run"))
    for path, value in first.items():
        np.testing.assert_array_equal(value, second[path])
