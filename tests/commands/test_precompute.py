"""jaxdiff precompute: the same shards whoever makes them, and a model trained on latents that samples pictures."""

import dataclasses
import json
import sys

import jax.numpy as jnp
import numpy as np
import pytest
import tiny_codec
from PIL import Image

import sample
import train
from jaxdiff.codecs import open_codec
from jaxdiff.commands import precompute
from jaxdiff.commands.encoding import Encoding, encoded
from jaxdiff.commands.reference import reference_data
from jaxdiff.data import Data, header_of, open_source
from jaxdiff.data.images import fit
from jaxdiff.data.shards import shard_name
from jaxdiff.presets.emoji import smileys
from jaxdiff.pretrained.minilm import TextEncoder, TextFeatures
from jaxdiff.sampler import finish_of

SIZE, SHARDS = 16, 3


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    return tiny_codec.write(tmp_path_factory.mktemp("codec"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Fourteen labelled, captioned pictures that are not square."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    lines = []
    for i in range(14):
        Image.fromarray(rng.integers(0, 256, (20, 26, 3), dtype=np.uint8)).save(folder / f"{i:02}.png")
        lines.append({"file_name": f"{i:02}.png", "text": f"picture {i}", "label": "ab"[i % 2]})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def options(halves, *more):
    wanted = ("--codec", f"taesd={halves[0]}", "--size", SIZE, "--shards", SHARDS, "--batch-size", 8, "--flip", "both")
    return [str(a) for a in (*wanted, *more)]


@pytest.fixture(scope="module")
def made(pictures, halves, tmp_path_factory):
    """The set, made by one process."""
    out = tmp_path_factory.mktemp("made") / "set"
    precompute.main([str(pictures), str(out), *options(halves)])
    return out


def assert_same_files(a, b):
    names = sorted(p.name for p in a.iterdir())
    assert names == sorted(p.name for p in b.iterdir()) and len(names) == 2 * SHARDS + 2
    for name in names:
        assert (a / name).read_bytes() == (b / name).read_bytes(), name


def test_latents_are_the_codecs_in_the_order_of_the_set(made, pictures, halves):
    data = Data(f"records:{made}", SIZE // 8, 4, flip=True)
    source, original, latents = open_source(data), open_source(Data(str(pictures), SIZE)), header_of(data).latents
    assert len(source) == 14 and source.label_names == ("a", "b") and latents.codec == "taesd"
    images = np.stack([fit(original[i]["image"], SIZE, "center") for i in range(14)])
    codec, mean, std = open_codec(f"taesd={halves[0]}").codec, *map(np.float32, (latents.mean, latents.std))
    for key, pixels in (("image", images), ("flipped", images[:, :, ::-1])):
        z = np.asarray(codec.encode(pixels.astype(np.float32) / 127.5 - 1))
        found = np.stack([source[i][key] for i in range(14)])
        np.testing.assert_allclose(found * std + mean, z, atol=3e-3 * np.abs(z).max())
    assert [(source[i]["label"], source[i]["text"]) for i in (0, 5)] == [(0, "picture 0"), (1, "picture 5")]


def test_any_workers_and_parts_make_the_same_bytes(made, pictures, halves, tmp_path, capsys):
    precompute.main([str(pictures), str(tmp_path / "two"), *options(halves, "--workers", 2)])
    assert_same_files(made, tmp_path / "two")
    for part in ("2/2", "1/2"):
        assert not (tmp_path / "parts" / "features.json").exists()
        precompute.main([str(pictures), str(tmp_path / "parts"), *options(halves, "--part", part)])
    assert_same_files(made, tmp_path / "parts")
    assert "2 of 3 shards are still to be made" in capsys.readouterr().out


def test_a_rerun_makes_only_what_is_missing(made, pictures, halves, tmp_path, monkeypatch):
    out = tmp_path / "set"
    out.mkdir()
    for file in made.iterdir():
        (out / file.name).write_bytes(file.read_bytes())
    lost = out / shard_name(1, SHARDS)
    lost.unlink()
    before = {p.name: p.stat().st_mtime_ns for p in out.iterdir() if p.suffix == ".array_record"}
    calls = []
    monkeypatch.setattr("jaxdiff.commands.encoding.encoded", lambda *args: calls.append(1) or encoded(*args))
    precompute.main([str(pictures), str(out), *options(halves)])
    assert_same_files(made, out)
    assert all((out / name).stat().st_mtime_ns == when for name, when in before.items())
    assert len(calls) == 2  # one batch, and its mirror


def test_beam_makes_the_same_bytes(made, pictures, halves, tmp_path):
    pytest.importorskip("apache_beam", reason="needs the extra beam")
    precompute.main([str(pictures), str(tmp_path / "beam"), *options(halves), "--", "--runner=DirectRunner"])
    assert_same_files(made, tmp_path / "beam")


def test_without_a_codec_it_keeps_pixels(pictures, tmp_path):
    precompute.main([str(pictures), str(tmp_path / "set"), "--size", "12", "--shards", "2"])
    source, original = open_source(Data(f"records:{tmp_path / 'set'}", 12)), open_source(Data(str(pictures), 12))
    for i in (0, 13):
        np.testing.assert_array_equal(source[i]["image"], fit(original[i]["image"], 12, "center"))


def test_captions_are_encoded(pictures, tmp_path, monkeypatch):
    def encode(texts):
        number = np.array([int(text.split()[1]) if text else 0 for text in texts], np.float32)
        tokens = np.broadcast_to(number[:, None, None], (len(texts), 5, 2)).astype(np.float32)
        return TextFeatures(tokens, np.ones((len(texts), 5), np.float32), tokens[:, 0])

    encoder = TextEncoder(encode, "ab", 5, 2, lambda texts: np.zeros((len(texts), 5), np.int32))
    monkeypatch.setattr("jaxdiff.commands.encoding.open_minilm", lambda length: encoder)
    out = tmp_path / "set"
    precompute.main([str(pictures), str(out), "--size", "8", "--shards", "2", "--text", "minilm", "--text-length", "5"])
    source = open_source(Data(f"records:{out}", 8, text=True))
    assert source[11]["text_tokens"].tolist() == [[11.0, 11.0]] * 5 and source[11]["text_mask"].tolist() == [1.0] * 5
    assert source[12]["text_pooled"].tolist() == [12.0, 12.0]


def test_a_model_of_latents_is_trained_and_sampled(made, pictures, halves, tmp_path, capsys):
    workdir, out = tmp_path / "run", tmp_path / "out"
    data = ["--data.source", f"records:{made}", "--data.size", str(SIZE // 8), "--data.channels", "4", "--data.flip"]
    network = ["--network.patch", "1", "--network.channels", "8", "--network.channel-mults", "1"]
    network += ["--network.attention-resolutions", "--network.no-middle-attention", "--network.num-classes", "2"]
    steps = ["--steps", "2", "--batch-size", "8", "--sampling.steps", "2", "--log-every", "1", "--preview-every", "0"]
    command = ["smileys", "--workdir", str(workdir), *data, *network, *steps]
    with pytest.raises(SystemExit):
        train.main(command)
    assert "--sampling.threshold none" in capsys.readouterr().err
    train.main([*command, "--sampling.threshold", "none"])

    base = [str(workdir), "--out", str(out), "--num", "8", "--batch-size", "8"]
    with pytest.raises(SystemExit):
        sample.main(base)
    assert "--codec taesd=FILE" in capsys.readouterr().err
    sample.main([*base, "--codec", f"taesd={halves[1]}"])
    image = np.asarray(Image.open(out / "images" / "000003.png"))
    assert image.shape == (SIZE, SIZE, 3) and np.ptp(image) > 0
    # What its samples are compared with are pictures: those behind the latents, or others of their size.
    behind = reference_data(workdir, None, "train")
    assert (behind.source, behind.size, behind.channels) == (str(pictures), SIZE, 3)
    other = reference_data(workdir, "emoji", "train")
    assert (other.source, other.size, other.channels) == ("emoji", SIZE, 3)


def test_samples_are_decoded_batch_by_batch(made, halves):
    latents = header_of(Data(f"records:{made}", SIZE // 8, 4)).latents
    config = dataclasses.replace(smileys(), latents=latents, codec=f"taesd={halves[1]}")
    z = np.random.default_rng(0).standard_normal((3, 2, 2, 2, 4)).astype(np.float32)
    images = finish_of(config)(z)
    assert images.shape == (3, 2, SIZE, SIZE, 3) and images.dtype == np.uint8
    raw = z[1] * np.float32(latents.std) + np.float32(latents.mean)
    wanted = np.asarray(open_codec(config.codec).codec.decode(jnp.asarray(raw)))
    assert np.abs(images[1] - np.clip(127.5 * (wanted + 1), 0, 255)).max() <= 0.51
    pixels = np.zeros((2, 4, 4, 3), np.uint8)
    assert finish_of(smileys())(pixels) is pixels
    for codec in ("", "taesd", "taef2=decoder.safetensors"):
        with pytest.raises(ValueError, match=r"--codec taesd=FILE"):
            finish_of(dataclasses.replace(config, codec=codec))


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--size", "12"], ["12 x 12", "multiple of 8", "--size"]),
        (["--channels", "1"], ["--channels"]),
        (["--codec", "vae=x"], ["taef2", "--codec"]),
        (["--shards", "15"], ["15", "at most 14", "--shards"]),
        (["--shards", "0"], ["shards = 0", "--shards"]),
        (["--part", "3/2"], ["'3/2'", "--part"]),
        (["--workers", "0"], ["workers = 0", "--workers"]),
        (["--split", "test"], ["--split test", "train"]),
        (["--batch-size", "4"], ["batch_size = 8", "--batch-size"]),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else v,
)
def test_mistakes_are_one_line(made, pictures, halves, capsys, args, words):
    with pytest.raises(SystemExit):
        precompute.main([str(pictures), str(made), *options(halves, *args)])
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert all(word in line for word in words)


def test_damaged_weights_are_found(halves):
    codec = open_codec(f"taesd={halves[0]}").codec
    bad = codec._replace(encode=lambda x: codec.encode(x) * np.inf)
    with pytest.raises(ValueError, match=r"damaged.*--codec"):
        encoded(dataclasses.replace(Encoding(), batch_size=8), bad, np.zeros((2, 8, 8, 3), np.uint8))


def test_beam_is_asked_for_only_where_it_is_used(pictures, halves, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(SystemExit):
        precompute.main([str(pictures), str(tmp_path / "set"), *options(halves), "--", "--runner=DirectRunner"])
    assert "pip install 'jaxdiff[beam]'" in capsys.readouterr().err
