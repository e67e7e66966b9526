"""jaxdiff evaluate: records, resumption in the middle, references, sweeps, and mistakes as one line."""

import hashlib
import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tiny import TRAIN

import train
from jaxdiff.__main__ import main as jaxdiff_main
from jaxdiff.commands import evaluate, images, perceptual
from jaxdiff.evaluation import moments, store
from jaxdiff.networks.feature_net import FeatureNet

CLASSES = [
    *("--data.source", "emoji", "--data.holdout", "0.05"),
    *("--network.num-classes", "10", "--drop", "0.1"),
]


def projection(name, weights):
    """A feature network of 12 random directions, which needs no weights."""

    def forward(params, pictures):
        flat = pictures.reshape(pictures.shape[0], -1).astype(jnp.float32) / 255
        return {"features": flat @ params["kernel"][: flat.shape[1]], "logits": flat[:, :4]}

    kernel = jnp.asarray(np.random.default_rng(0).normal(size=(8 * 8 * 3, 12)), jnp.float32)
    return FeatureNet(f"test-{name}", "ab" * 32, "none", 8, 12, {"kernel": kernel}, forward)


@pytest.fixture(autouse=True)
def networks(monkeypatch):
    monkeypatch.setattr(evaluate, "open_features", projection)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("trained") / "run"
    train.main([*TRAIN, *CLASSES, "--workdir", str(workdir)])
    return workdir


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    path = tmp_path_factory.mktemp("reference") / "set.npz"
    np.savez(path, images=np.random.default_rng(1).integers(0, 256, (40, 8, 8, 3), np.uint8))
    return path


def run(capsys, folder, *args):
    """The record: the last line of the output."""
    capsys.readouterr()
    evaluate.main([str(folder), "--num", "24", "--bootstrap", "0", "--batch-size", "8", *map(str, args)])
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


def fails(capsys, *args) -> str:
    with pytest.raises(SystemExit) as stop:
        evaluate.main([str(a) for a in args])
    assert stop.value.code not in (0, None)
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("error: ")
    return lines[-1]


def test_a_record_says_all_that_could_move_the_figure(capsys, trained, reference):
    record = run(capsys, trained, "--reference", reference, "--bootstrap", "20", "--cfg-scale", 2, "--steps", 3)
    assert set(record["metrics"]) == {"fd", "kid", "precision", "recall"} and record["n"] == 24
    for figure in record["metrics"].values():
        assert figure["low"] <= figure["high"] and np.isfinite(figure["value"])
    samples = record["samples"]
    assert samples["nfe"] == 3 and samples["seed"] == 0 and samples["checkpoint_step"] == 12
    assert samples["sampling"]["cfg_scale"] == 2 and samples["solver"]["type"] == "DDIM" and samples["grid"]
    assert samples["ema"]["decay"] and len(samples["sha256"]) == len(samples["weights_sha256"]) == 64
    net = record["networks"]["efficientnet-lite0"]
    assert net == {"name": "test-efficientnet-lite0", "weights_sha256": "ab" * 32, "resize": "none", "size": 8}
    assert record["reference"]["n"] == 40 and record["reference"]["data"]["source"] == str(reference)
    pictures = np.load(reference)["images"]
    hashes = b"".join(hashlib.sha256(p.tobytes()).digest() for p in pictures)
    assert record["reference"]["sha256"] == hashlib.sha256(hashes).hexdigest()
    stored = [json.loads(p.read_text()) for p in (trained / "evaluations").glob("*.json")]
    assert record in stored
    assert run(capsys, trained, "--reference", reference, "--seed", 1)["samples"]["sha256"] != samples["sha256"]


def test_fid_is_said_of_inception_alone(capsys, trained, reference):
    record = run(capsys, trained, "--reference", reference, "--metrics", "fid,is,fd")
    assert set(record["networks"]) == {"inception", "efficientnet-lite0"}
    assert record["metrics"]["is"]["value"] >= 1
    assert evaluate.METRICS["fid"].network == evaluate.METRICS["sfid"].network == "inception"


def test_an_interrupted_evaluation_goes_on(capsys, trained, reference, monkeypatch):
    monkeypatch.setattr(store, "CHUNK", 8)
    made = []
    read = images.images_of_run

    def counted(trained):
        found = read(trained)

        def count(indices):
            if len(made) == 2:
                made.append(None)
                raise OSError("power cut")
            made.append(indices.tolist())
            return found.read(indices)

        return found._replace(read=count)

    monkeypatch.setattr(evaluate, "images_of_run", counted)
    arguments = [trained, "--reference", reference, "--num", 24, "--bootstrap", 0, "--batch-size", 8, "--seed", 5]
    assert "power cut" in fails(capsys, *arguments)
    record = run(capsys, trained, "--reference", reference, "--seed", 5)
    numbers = [m for m in made if m is not None]
    assert numbers == [list(range(8)), list(range(8, 16)), list(range(16, 24))]
    monkeypatch.setattr(store, "CHUNK", 256)
    monkeypatch.undo()
    monkeypatch.setattr(evaluate, "open_features", projection)
    for path in (trained / "evaluations").glob("samples-*/*.npz"):
        path.unlink()
    again = run(capsys, trained, "--reference", reference, "--seed", 5)
    assert again["samples"]["sha256"] == record["samples"]["sha256"]
    assert again["metrics"]["fd"]["value"] == pytest.approx(record["metrics"]["fd"]["value"], rel=1e-4)


def test_a_damaged_chunk_is_made_again(tmp_path):
    calls = []

    def make(indices):
        calls.append(indices)
        return {"a/b": indices.astype(np.float32)[:, None]}

    first = store.gather(tmp_path, ["a/b"], 300, make)
    assert len(calls) == 2 and first["a/b"].shape == (300, 1)
    (chunk,) = tmp_path.glob("00000256.npz")
    chunk.write_bytes(b"no zip")
    assert np.array_equal(store.gather(tmp_path, ["a/b"], 300, make)["a/b"], first["a/b"]) and len(calls) == 3
    # More of them: only the chunk that was short is made again.
    assert len(store.gather(tmp_path, ["a/b"], 310, make)["a/b"]) == 310 and len(calls) == 4


def test_statistics_replace_the_reference(capsys, trained, reference, tmp_path):
    kept = tmp_path / "reference.npz"
    whole = run(capsys, trained, "--reference", reference, "--metrics", "fd", "--save-statistics", kept)
    assert moments.load(kept).n == 40
    short = run(capsys, trained, "--reference", kept, "--metrics", "fd")
    assert short["metrics"]["fd"]["value"] == pytest.approx(whole["metrics"]["fd"]["value"], rel=1e-6)
    assert short["reference"]["dataset_sha256"] == whole["reference"]["sha256"]
    line = fails(capsys, trained, "--reference", kept, "--metrics", "kid", "--num", 24, "--bootstrap", 0)
    assert "--reference" in line
    line = fails(capsys, trained, "--reference", kept, "--metrics", "fid", "--num", 24, "--bootstrap", 0)
    assert "test-efficientnet-lite0" in line and "test-inception" in line


def test_folders_of_images_are_compared(capsys, tmp_path):
    for name, shift in (("a", 0), ("b", 10)):
        (tmp_path / name).mkdir()
        for i in range(6):
            picture = np.random.default_rng(i).integers(20, 200, (16, 16, 3), np.uint8) + np.uint8(shift)
            Image.fromarray(picture).save(tmp_path / name / f"{i}.png")
    record = run(capsys, tmp_path / "a", "--reference", tmp_path / "b", "--metrics", "psnr,ssim")
    assert record["n"] == 6
    assert record["metrics"]["psnr"]["value"] == pytest.approx(20 * np.log10(255 / 10), abs=1e-3)
    assert 0.9 < record["metrics"]["ssim"]["value"] < 1
    assert "no run" in fails(capsys, tmp_path / "a", "--metrics", "psnr")


def test_a_sweep_makes_a_table_and_a_plot(capsys, trained, reference):
    record = run(
        capsys, trained, "--reference", reference, "--metrics", "fd", "--sweep", "ema=none:default,cfg_scale=1:2"
    )
    points = [r["point"] for r in record["records"]]
    assert points == [{"ema": e, "cfg_scale": s} for e in ("none", "default") for s in ("1", "2")]
    values = [r["metrics"]["fd"]["value"] for r in record["records"]]
    assert len(set(values)) == 4
    text = (trained / "evaluations" / "sweep-ema-cfg_scale.md").read_text()
    assert text.splitlines()[0] == "| ema | cfg_scale | fd |" and f"{values[3]:.4g}" in text.splitlines()[-1]
    assert Image.open(record["files"]["plot"]).size[0] > 300


@pytest.mark.parametrize("name", ["nll", "vlb"])
def test_bits_per_dimension_of_held_out_images(capsys, trained, name):
    record = run(capsys, trained, "--metrics", name, "--num", "8")
    figure = record["metrics"][name]
    assert figure["n"] == 8 and figure["held_out"] and 0 < figure["value"] < 20
    if name == "vlb":
        parts = figure["prior"] + sum(figure["by_logsnr"]) + figure["decoder"]
        assert parts == pytest.approx(figure["value"], rel=1e-5) and len(figure["by_logsnr"]) == 10


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--metrics", "fidd"], ["'fidd'", "fid, sfid", "--metrics"]),
        (["--num", "2"], ["num = 2", "--num"]),
        (["--bootstrap", "7"], ["bootstrap = 7", "--bootstrap"]),
        (["--sweep", "size"], ["'size'", "cfg_scale", "--sweep"]),
        (["--sweep", "steps=4:many"], ["'many'", "--sweep"]),
        (["--weights", "inception"], ["NETWORK=PATH", "--weights"]),
        (["--solver", "heun(chern=1)"], ["'chern'", "churn", "--solver"]),
        (["--reference", "no/such/place"], ["no/such/place", "--reference"]),
        (["--grid", "optimised", "--steps", "5"], ["jaxdiff grid", "5"]),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else v,
)
def test_mistakes_are_one_line(capsys, trained, args, words):
    line = fails(capsys, trained, *args)
    assert all(word in line for word in words)


def test_commands_are_listed(capsys, monkeypatch):
    for arguments, code in ([], 2), (["--help"], 0), (["valuate"], 2):
        monkeypatch.setattr("sys.argv", ["jaxdiff", *arguments])
        with pytest.raises(SystemExit) as stop:
            jaxdiff_main()
        assert stop.value.code == code
        said = capsys.readouterr()
        assert "evaluate" in said.out + said.err


def test_captions_are_compared_with_their_own_images():
    images = np.array([[1.0, 0.0], [0.0, 2.0], [-1.0, 0.0], [3.0, 3.0]])
    towers = {"a cat": [2.0, 0.0], "a dog": [0.0, 1.0]}
    scores = perceptual.caption_scores(
        images, ["a cat", "a dog", "a cat", "a dog"], lambda texts: np.array([towers[t] for t in texts])
    )
    np.testing.assert_allclose(scores, [100, 100, 0, 50 * 2**0.5])


def test_pairs_are_of_one_class_and_disjoint():
    one, other = perceptual.same_class_pairs(47, 10)
    assert np.array_equal(one % 10, other % 10) and len({*one, *other}) == 2 * len(one) == 40
    with pytest.raises(ValueError, match="at least 20"):
        perceptual.same_class_pairs(19, 10)


def test_the_clip_score_asks_for_what_it_needs(capsys, trained):
    line = fails(capsys, trained, "--metrics", "clip-score", "--num", 8, "--bootstrap", 0, "--batch-size", 8)
    assert "--tokenizer" in line
