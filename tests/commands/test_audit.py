"""jaxdiff audit: copies end with 3, fresh draws with 0, whatever the order, the blocks and the batch."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tiny import TRAIN

import train
from jaxdiff.commands import audit, audit_sets
from jaxdiff.networks.feature_net import FeatureNet


def drawn(seed, n):
    """Images of one smooth random family: real draws of it are what real images are to each other."""
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(np.linspace(-1, 1, 8), np.linspace(-1, 1, 8))
    a, b, c, d = rng.normal(size=(4, n, 1, 1))
    images = 128 + 30 * (a * x + b * y + c * x * y + d * (x**2 - y**2)) + rng.normal(size=(n, 8, 8))
    return np.repeat(np.clip(images, 0, 255).astype(np.uint8)[..., None], 3, axis=-1)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Files of images: 150 trained on, 99 held out, 60 fresh ones, and 60 with 12 copies among them."""
    folder = tmp_path_factory.mktemp("sets")
    images = {"train": drawn(0, 150), "held": drawn(1, 99), "fresh": drawn(2, 60)}
    images["copied"] = np.concatenate([drawn(3, 48), images["train"][::13]])
    for name, value in images.items():
        np.savez(folder / f"{name}.npz", images=value)
    return folder


def run(capsys, folder, *args, code=0):
    """The record, which is the last line of the output, of a command that must end with this code."""
    capsys.readouterr()
    ended = 0
    try:
        audit.main([str(folder), *map(str, args)])
    except SystemExit as stop:
        ended = stop.code
    assert ended == code
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


def against(sets):
    return "--train", sets / "train.npz", "--held-out", sets / "held.npz", "--neighbours", 10


def test_copies_are_found_and_shown(capsys, sets, tmp_path):
    record = run(capsys, sets / "copied.npz", *against(sets), "--out", tmp_path / "out", code=3)
    found = record["figures"]["pixels"]
    assert record["copies"] and found["identical"] == 12 and found["distance"]["p_share"] < 1e-3
    assert record["failed"][-1] == "pixels: 12 identical" and "pixels distance: share flagged" in record["failed"]
    assert [c["distance"] for c in record["closest"]] == [0] * 8
    assert {c["training image"] for c in record["closest"]} <= set(range(0, 150, 13))
    assert all(c["sample"] >= 48 and c["p"] == 0.01 for c in record["closest"])
    kept = np.load(tmp_path / "out" / "audit.npz")
    assert kept["pixels|distance"].shape == (159,) and np.all(kept["pixels|distance|p"][48:] == 0.01)
    np.testing.assert_array_equal(kept["pixels|nearest"][48:60], np.arange(0, 150, 13))
    assert json.loads((tmp_path / "out" / "audit.json").read_text()) == record
    assert Image.open(tmp_path / "out" / "audit.png").size[0] > 300


def test_fresh_draws_pass(capsys, sets, tmp_path):
    record = run(capsys, sets / "fresh.npz", *against(sets), "--no-page", "--out", tmp_path / "out")
    found = record["figures"]["pixels"]["distance"]
    assert (
        not record["copies"] and found["expected"] == 0.05 and found["p_share"] > 0.01 and found["share"]["low"] < 0.05
    )
    assert found["closer"]["low"] < 0.5 < found["closer"]["high"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["audit.json", "audit.npz"]


def test_a_single_copy_is_enough(capsys, sets, tmp_path):
    images = np.load(sets / "fresh.npz")["images"]
    images[7] = np.load(sets / "train.npz")["images"][99]
    np.savez(tmp_path / "one.npz", images=images)
    record = run(capsys, tmp_path / "one.npz", *against(sets), "--out", tmp_path / "out", code=3)
    assert record["failed"] == ["pixels: 1 identical"]
    assert (record["closest"][0]["sample"], record["closest"][0]["training image"]) == (7, 99)


def test_order_blocks_and_batches_do_not_matter(capsys, sets, tmp_path, monkeypatch):
    plain = run(capsys, sets / "copied.npz", *against(sets), "--out", tmp_path / "a", code=3)
    order = np.random.default_rng(0).permutation(60)
    np.savez(tmp_path / "mixed.npz", images=np.load(sets / "copied.npz")["images"][order])
    monkeypatch.setattr(audit, "BLOCK", 7)
    monkeypatch.setattr(audit, "FLOATS", 192 * 11)
    monkeypatch.setattr(audit_sets, "BLOCK", 13)
    mixed = run(capsys, tmp_path / "mixed.npz", *against(sets), "--batch-size", 8, "--out", tmp_path / "b", code=3)
    one, other = (np.load(tmp_path / name / "audit.npz") for name in "ab")
    for key in ("pixels|distance", "pixels|relative"):
        np.testing.assert_array_equal(one[key][:60][order], other[key][:60])
        np.testing.assert_array_equal(one[key][60:], other[key][60:])
    for name in ("distance", "relative"):
        for key in ("flagged", "p_share", "z", "p_closer"):
            assert plain["figures"]["pixels"][name][key] == pytest.approx(mixed["figures"]["pixels"][name][key])
    assert plain["train"]["sha256"] == mixed["train"]["sha256"]


def test_without_held_out_images_each_training_image_meets_the_others(capsys, sets, tmp_path):
    args = ("--train", sets / "train.npz", "--held-out", "none", "--neighbours", 10, "--out", tmp_path / "out")
    assert not run(capsys, sets / "fresh.npz", *args)["copies"]
    record = run(capsys, sets / "copied.npz", *args, code=3)
    assert record["held_out"] == {"training images, each without itself": 150}
    assert np.load(tmp_path / "out" / "audit.npz")["pixels|distance"][60:].min() > 0


def test_in_the_features_of_a_network(capsys, sets, tmp_path, monkeypatch):
    def means(name, weights):
        def forward(params, pictures):
            return {"features": jnp.mean(pictures.astype(jnp.float32), axis=(1, 3))}

        return FeatureNet("means", "cd" * 32, "none", 8, 8, {}, forward)

    monkeypatch.setattr(audit_sets, "open_features", means)
    args = (*against(sets), "--features", "pixels,efficientnet-lite0", "--out", tmp_path / "out")
    record = run(capsys, sets / "copied.npz", *args, code=3)
    assert list(record["figures"]) == ["pixels", "means@cdcdcdcd"]
    assert record["figures"]["means@cdcdcdcd"]["identical"] == 12


def test_a_run_is_sampled_and_compared_with_its_own_set(capsys, tmp_path, sets):
    workdir = tmp_path / "run"
    data = ("--data.source", str(sets / "train.npz"), "--data.holdout", "0.4", "--data.flip")
    train.main([*TRAIN, *data, "--workdir", str(workdir)])
    args = (workdir, "--num", 16, "--batch-size", 8, "--steps", 3, "--neighbours", 10)
    record = run(capsys, *args)  # after twelve steps there is nothing but noise
    assert record["train"]["n"] == 90 and record["held_out"]["n"] == 60 and record["train"]["mirrored"]
    assert record["samples"]["checkpoint_step"] == 12 and (workdir / "audit" / "audit.png").exists()
    # Samples that were made are kept, mirrored copies count as copies, and a copy of a copy is one.
    chunk = next((workdir / "evaluations").glob("audit-*/*.npz"))
    kept = dict(np.load(chunk))
    learned = np.array(record["closest"][0]["training image"])
    from jaxdiff.commands.images import images_of_data
    from jaxdiff.data import Data

    own = images_of_data(Data(str(sets / "train.npz"), 8, holdout=0.4)).read(learned[None])
    kept["images"][:9] = own[:, :, ::-1]
    np.savez(chunk, **kept)
    again = run(capsys, *args, code=3)
    assert again["figures"]["pixels"]["identical"] == 9


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--train", "T", "--held-out", "H", "--quantile", "0.001"], ["0.001", "99 held-out", "--quantile"]),
        ([], ["--train"]),
        (["--train", "T", "--held-out", "T"], ["what was trained on", "--held-out"]),
        (["--train", "no.npz"], ["no.npz", "--train"]),
        (["--train", "T", "--held-out", "H", "--features", "inceptive"], ["inceptive", "--features"]),
        (["--train", "T", "--held-out", "H", "--features", ","], ["--features"]),
        (["--num", "0"], ["num = 0", "--num"]),
        (["--level", "1"], ["level = 1", "--level"]),
    ],
    ids=lambda v: " ".join(v),
)
def test_mistakes_are_one_line(capsys, sets, args, words):
    places = {"T": str(sets / "train.npz"), "H": str(sets / "held.npz")}
    with pytest.raises(SystemExit) as stop:
        audit.main([str(sets / "fresh.npz"), *[places.get(a, a) for a in args]])
    assert stop.value.code == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: ") and all(word in line for word in words)
    assert not (sets / "fresh.npz.audit").exists()
