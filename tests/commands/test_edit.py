"""jaxdiff edit: every method from the command line, what lies outside a mask, and every mistake as one line."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from PIL import Image

from jaxdiff import build
from jaxdiff.commands import edit
from jaxdiff.config import Config
from jaxdiff.data.word_pieces import learn
from jaxdiff.models import Checkpoint, write_model
from jaxdiff.names import METHODS
from jaxdiff.networks.text_transformer import TextTransformer
from jaxdiff.networks.unet import UNet
from jaxdiff.presets import preset

SMALL = UNet(
    channels=8,
    channel_mults=(1,),
    blocks_per_level=1,
    attention_resolutions=(),
    middle_attention=False,
    head_channels=4,
)
RNG = np.random.default_rng(0)


def config_of(name: str, network: UNet, **data) -> Config:
    config = preset(name)
    sampling = dataclasses.replace(config.sampling, steps=3)
    data = dataclasses.replace(config.data, size=8, **data)
    return dataclasses.replace(config, data=data, network=network, sampling=sampling)


def write(folder, config, names=(), tokenizer=""):
    """A model with random parameters, so that every input counts."""
    shapes = jax.eval_shape(lambda: build.init_run(config, jax.random.key(0)))
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda s: 0.3 * rng.standard_normal(s.shape).astype(np.float32), shapes)
    write_model(folder, Checkpoint(config, names, 1, params, tokenizer, ("a cat",)))
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Models told words, told classes, told nothing, and of grey pictures."""
    top = tmp_path_factory.mktemp("models")
    encoder = TextTransformer(vocabulary=300, length=8, width=8, depth=1, heads=2)
    reads = SMALL.clone(transformer_depths=(1,), text_width=8, text_pooled=8, text_encoder=encoder)
    return {
        "words": write(top / "words", config_of("emoji_text", reads), tokenizer=learn(["a cat", "a dog"], 300)),
        "classes": write(top / "classes", config_of("emoji", SMALL.clone(num_classes=3)), ("Cat", "Dog", "Heart")),
        "plain": write(top / "plain", config_of("smileys", SMALL)),
        "grey": write(top / "grey", config_of("smileys", SMALL, channels=1)),
    }


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    """(file of a picture, file of a mask, the picture, the mask)."""
    folder = tmp_path_factory.mktemp("pictures")
    image = RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    mask = np.zeros((8, 8), np.uint8)
    mask[2:6, 3:] = 255
    Image.fromarray(image).save(folder / "image.png")
    Image.fromarray(mask).save(folder / "mask.png")
    return folder / "image.png", folder / "mask.png", image, mask > 0


def run(out, model, *args):
    """(images, info.json) of a command."""
    edit.main([str(a) for a in (model, "--out", out, "--steps", 3, *args)])
    info = json.loads((out / "info.json").read_text())
    names = sorted(p.name for p in (out / "images").iterdir())
    return np.stack([np.asarray(Image.open(out / "images" / name)) for name in names]), info


def fails(capsys, *args) -> str:
    with pytest.raises(SystemExit) as stop:
        edit.main([str(a) for a in args])
    assert stop.value.code not in (0, None)
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("error: ") and sum(line.startswith("error") for line in lines) == 1
    return lines[-1]


def test_sdedit_writes_what_it_says(models, picture, tmp_path):
    image, _, before, _ = picture
    args = ("--image", image, "--prompt", "a cat", "--strength", 0.7, "--num", 5, "--batch-size", 2)
    made, info = run(tmp_path / "out", models["words"], *args)
    assert made.shape == (5, 8, 8, 3) and made.dtype == np.uint8
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"grid.png", "before_after.png", "images", "info.json"}
    said = [info[key] for key in ("method", "strength", "prompt", "nfe", "num")]
    assert said == ["sdedit", 0.7, "a cat", 2, 5]
    assert info["image"] == [str(image)] and len(info["image_sha256"][0]) == 64 and info["seconds"] > 0
    sheet = np.asarray(Image.open(tmp_path / "out" / "before_after.png"))
    assert sheet.shape == (12, 6 * 10 + 2, 3) and np.array_equal(sheet[2:10, 2:10], before)
    assert len({m.tobytes() for m in made}) == 5
    # Other batches, other words, another seed.
    again, _ = run(tmp_path / "again", models["words"], *args[:-1], 8)
    assert np.abs(again.astype(int) - made).max() <= 1
    for name, other in (("dog", ("--prompt", "a dog", "--seed", 0)), ("and", ("--and", "a dog:2"))):
        assert np.any(run(tmp_path / name, models["words"], *args, *other)[0] != made)


@pytest.mark.parametrize("method", ["replace", "repaint(jump=1, times=2)", "ddim-inversion", "ddpm-inversion"])
def test_outside_the_mask_nothing_changes(method, models, picture, tmp_path):
    image, mask, before, inside = picture
    args = ("--image", image, "--mask", mask, "--method", method, "--num", 2)
    made, info = run(tmp_path / "out", models["plain"], *args)
    assert np.array_equal(made[:, ~inside], np.stack([before[~inside]] * 2))
    # Told nothing new, the noise maps give the inside back too.
    assert np.any(made[:, inside] != before[inside]) or method == "ddpm-inversion"
    assert info["mask"] == str(mask)
    sheet = np.asarray(Image.open(tmp_path / "out" / "before_after.png"))
    assert sheet.shape[1] == 4 * 10 + 2 and np.array_equal(sheet[2:10, 12:20, 0] > 0, inside)


def test_inversions_give_the_picture_back_where_nothing_else_is_said(models, picture, tmp_path):
    image, _, before, _ = picture
    args = ("--image", image, "--source-prompt", "a cat", "--num", 1, "--threshold", "none", "--cfg-scale", 4)
    for method in ("ddpm-inversion", "ddim-inversion(iterations=40)"):
        back, _ = run(tmp_path / f"{method} back", models["words"], *args, "--method", method)
        assert np.abs(back[0].astype(int) - before).max() <= 2
        other, info = run(tmp_path / method, models["words"], *args, "--method", method, "--prompt", "a dog")
        assert np.any(other != back) and info["source_prompt"] == "a cat"
    mapped, info = run(
        tmp_path / "p2p", models["words"], *args, "--prompt", "a dog", "--method", "prompt-to-prompt(iterations=40)"
    )
    assert np.any(mapped != back) and info["nfe"] == 3 * 41 + 2 * 3


def test_classes(models, picture, tmp_path):
    image = picture[0]
    args = ("--image", image, "--method", "ddpm-inversion", "--source-label", "cat", "--num", 1)
    made = [run(tmp_path / label, models["classes"], *args, "--label", label)[0] for label in ("dog", "heart")]
    assert np.any(made[0] != made[1])
    both, _ = run(tmp_path / "both", models["classes"], "--image", image, "--label", "dog", "--and", "heart:-1")
    assert both.shape[0] == 4


def test_interpolation_canvas_and_texture(models, picture, tmp_path):
    image, _, before, _ = picture
    other = tmp_path / "other.png"
    Image.fromarray(before[::-1].copy()).save(other)
    options = ("--threshold", "none", "--num", 3, "--method", "interpolate(iterations=40)")
    frames, _ = run(tmp_path / "frames", models["plain"], "--image", image, "--image2", other, *options)
    assert np.abs(frames[0].astype(int) - before).max() <= 3 and np.abs(frames[2].astype(int) - before[::-1]).max() <= 3
    wide, info = run(tmp_path / "wide", models["plain"], "--canvas", 8, 20, "--num", 2)
    assert wide.shape == (2, 8, 20, 3) and info["nfe"] == 3 * 4 and info["image"] == []
    assert not (tmp_path / "wide" / "before_after.png").exists()
    tile, info = run(tmp_path / "tile", models["plain"], "--canvas", 8, 16, "--seamless", "--num", 1)
    assert tile.shape == (1, 8, 16, 3) and info["windows"]["torus"] and info["nfe"] == 3 * 2 * 4


def test_outpainting_within_the_network_and_beyond(models, picture, tmp_path):
    image, _, before, _ = picture
    made, _ = run(tmp_path / "in", models["plain"], "--image", image, "--fit", "crop", "--outpaint", 2, 0, 2, 4)
    assert made.shape == (4, 8, 8, 3) and len({m[:4, 2:6].tobytes() for m in made}) == 1
    wide, _ = run(tmp_path / "out", models["plain"], "--image", image, "--fit", "windows", "--outpaint", 0, 0, 6, 0)
    assert wide.shape == (4, 8, 14, 3) and all(np.array_equal(w[:, :8], before) for w in wide)


def test_a_folder_of_pictures_with_a_mask_for_all(models, picture, tmp_path):
    _, mask, before, inside = picture
    (tmp_path / "many").mkdir()
    for i in range(3):
        Image.fromarray(np.roll(before, i, 0)).save(tmp_path / "many" / f"{i}.png")
    made, info = run(tmp_path / "out", models["plain"], "--image", tmp_path / "many", "--mask", mask, "--num", 2)
    assert made.shape[0] == 6 and len(info["image"]) == 3
    for i in range(6):
        assert np.array_equal(made[i][~inside], np.roll(before, i // 2, 0)[~inside])
    sheet = np.asarray(Image.open(tmp_path / "out" / "before_after.png"))
    assert sheet.shape == (3 * 10 + 2, 4 * 10 + 2, 3) and np.array_equal(sheet[12:20, 2:10], np.roll(before, 1, 0))


def test_every_method_has_a_name_and_the_help_says_them(capsys):
    with pytest.raises(SystemExit) as stop:
        edit.main(["--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0 and all(name in text for name in METHODS)
    assert all(f in text for f in ("--image", "--mask", "--strength", "--source-prompt", "--outpaint", "--seamless"))


@pytest.mark.parametrize(
    ("model", "args", "words"),
    [
        ("plain", ["--image", "I", "--strength", "0"], ["strength = 0", "--strength"]),
        ("plain", ["--image", "I", "--strength", "1.2"], ["strength = 1.2", "--strength"]),
        ("plain", ["--image", "I", "--num", "0"], ["num = 0", "--num"]),
        ("plain", [], ["--image", "--canvas"]),
        ("plain", ["--image", "none.png"], ["none.png", "--image"]),
        ("plain", ["--image", "I", "--method", "magic"], ["magic", "sdedit", "--method"]),
        ("plain", ["--image", "I", "--method", "repaint"], ["repaint needs a mask", "--mask"]),
        ("plain", ["--image", "I", "--mask", "M", "--method", "sdedit"], ["takes no mask", "replace", "--mask"]),
        ("plain", ["--image", "I", "--mask", "BLACK"], ["no white", "--mask"]),
        ("plain", ["--image", "I", "--mask", "LARGE"], ["9 x 9", "8 x 8", "--mask"]),
        ("plain", ["--image", "LARGE"], ["9 x 9", "8 x 8", "--fit"]),
        ("plain", ["--image", "I", "--prompt", "a cat"], ["a cat", "knows no texts", "--prompt"]),
        ("plain", ["--image", "I", "--and", "a cat"], ["a cat", "--and"]),
        ("plain", ["--image", "I", "--label", "1"], ["no classes", "--label"]),
        ("plain", ["--image", "I", "--method", "prompt-to-prompt"], ["does not attend to words", "--method"]),
        ("words", ["--image", "I", "--method", "prompt-to-prompt"], ["--source-prompt", "--method"]),
        ("words", ["--image", "I", "--source-prompt", "a cat"], ["sdedit", "--source-prompt"]),
        ("plain", ["--image", "I", "--method", "interpolate"], ["--image2"]),
        ("plain", ["--image", "I", "--method", "ddim-inversion", "--solver", "heun"], ["heun", "--solver"]),
        ("plain", ["--image", "I", "--mask", "M", "--method", "repaint", "--solver", "unipc"], ["UniPC", "--solver"]),
        ("plain", ["--image", "I", "--method", "ilvr(factor=3)"], ["factor = 3", "--method"]),
        ("plain", ["--canvas", "4", "8"], ["4 8", "--canvas"]),
        ("plain", ["--image", "I", "--outpaint", "1", "0", "0", "0"], ["7 x 8", "--fit"]),
        ("grey", ["--image", "I"], ["colours", "--image"]),
        ("classes", ["--image", "I", "--label", "Bird"], ["Bird", "Heart", "--label"]),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else v,
)
def test_mistakes_are_one_line(model, args, words, models, picture, tmp_path, capsys):
    files = {"I": picture[0], "M": picture[1], "BLACK": tmp_path / "black.png", "LARGE": tmp_path / "large.png"}
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(files["BLACK"])
    Image.fromarray(np.full((9, 9), 255, np.uint8)).save(files["LARGE"])
    line = fails(capsys, models[model], "--out", tmp_path / "out", *[files.get(a, a) for a in args])
    for word in words:
        assert word in line
    assert not (tmp_path / "out").exists()


def test_what_makes_no_pictures_is_refused(models, picture, tmp_path, capsys):
    vae = preset("emoji64_vae")
    network = vae.network.clone(widths=(8, 8), groups=4)
    vae = dataclasses.replace(vae, network=network, data=dataclasses.replace(vae.data, size=8))
    write(tmp_path / "vae", vae)
    line = fails(capsys, tmp_path / "vae", "--out", tmp_path / "out", "--image", picture[0])
    assert "autoencoder" in line
    assert "no folder" in fails(capsys, tmp_path / "none", "--out", tmp_path / "out", "--image", picture[0])
    file = tmp_path / "file"
    file.write_text("not a folder")
    assert "--out" in fails(capsys, models["plain"], "--out", file / "out", "--image", picture[0])
    assert not (tmp_path / "out").exists()


def test_a_mask_in_latents_is_shrunk_and_the_outside_is_the_pixels(picture, tmp_path):
    from tiny_codec import write as write_codec

    from jaxdiff.data import Latents

    encoder, decoder = write_codec(tmp_path)
    latents = Latents("taesd", ("", ""), 8, (0.0,) * 4, (1.0,) * 4)
    config = config_of("smileys", SMALL, channels=4, source="records:none")
    sampling = dataclasses.replace(config.sampling, threshold="none")
    config = dataclasses.replace(config, sampling=sampling, latents=latents)
    write(tmp_path / "model", config)
    image = RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    mask = np.zeros((64, 64), np.uint8)
    mask[9:30, 20:50] = 255
    Image.fromarray(image).save(tmp_path / "image.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    codec = f"taesd={encoder},{decoder}"
    args = ("--image", tmp_path / "image.png", "--mask", tmp_path / "mask.png", "--codec", codec, "--num", 1)
    made, _ = run(tmp_path / "out", tmp_path / "model", *args)
    assert np.array_equal(made[0][mask == 0], image[mask == 0]) and np.any(made[0][mask > 0] != image[mask > 0])
