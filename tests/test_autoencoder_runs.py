"""An autoencoder from end to end, at its smallest: trained, resumed, shown, used as a codec, not sampled, and below
a text-to-image run."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tiny import run

import sample
import train
from jaxdiff import autoencoders, build, sampler
from jaxdiff.codecs import open_codec
from jaxdiff.commands import convert, precompute
from jaxdiff.data import Data, open_source
from jaxdiff.data.captions import caption
from jaxdiff.presets import preset
from jaxdiff.settings import Settings
from jaxdiff.trained import open_trained
from jaxdiff.training.restore import read_params

VAE = [
    *("emoji64_vae", "--data.source", "emoji:smileys-emotion", "--data.size", "16", "--data.holdout", "0.1"),
    *("--batch-size", "8", "--steps", "12", "--save-every", "4", "--log-every", "2", "--preview-every", "12"),
    *("--network.widths", "8", "16", "--network.no-middle-attention", "--lpips", "", "--adversary.channels", "8"),
    *("--adversary.layers", "1", "--adversary.start", "4", "--optim.warmup", "0", "--validate-every", "12"),
]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run of twelve steps, the game from the fifth on."""
    workdir = tmp_path_factory.mktemp("vae") / "run"
    result = run("train.py", *VAE, "--workdir", workdir)
    assert result.returncode == 0, result.stderr
    assert "PSNR" in result.stdout
    return workdir


def config_of(*, start=0, weight=0.1):
    """The preset with a small network."""
    config = preset("emoji64_vae")
    adversary = dataclasses.replace(config.objective.adversary, channels=8, layers=1, start=start, weight=weight)
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, size=16),
        network=dataclasses.replace(config.network, widths=(8, 16), middle_attention=False),
        objective=dataclasses.replace(config.objective, lpips="", adversary=adversary),
    )


def test_a_stopped_run_ends_with_the_same_bits(workdir, tmp_path):
    shutil.copytree(workdir, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "12")  # as if it had been killed before it was saved
    result = run("train.py", *VAE, "--workdir", tmp_path / "run")
    assert result.returncode == 0 and "steps 8 to 12" in result.stdout, result.stderr
    jax.tree.map(np.testing.assert_array_equal, read_params(workdir, 12), read_params(tmp_path / "run", 12))
    jax.tree.map(np.testing.assert_array_equal, read_params(workdir, 12, 0), read_params(tmp_path / "run", 12, 0))


def test_validation_and_preview(workdir):
    lines = [json.loads(line) for line in (workdir / "validation.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [12] and 3 < lines[0]["psnr"] < 40 and lines[0]["images"] == 17
    sheet = np.asarray(Image.open(workdir / "samples" / "step_0000012.png"))
    assert sheet.shape[0] > 16 * 6  # three rows of pictures, and below each what was rebuilt


def test_a_run_is_a_codec(workdir):
    opened = open_codec(f"run={workdir}")
    assert (opened.name, opened.factor, opened.channels) == ("run", 2, 4)
    x = jnp.linspace(-1, 1, 2 * 16 * 16 * 3).reshape(2, 16, 16, 3)
    latents = opened.codec.encode(x)
    assert latents.shape == (2, 8, 8, 4) and opened.codec.decode(latents).shape == x.shape
    with pytest.raises(FileNotFoundError, match="--codec run=DIR"):
        open_codec(f"run={workdir / 'nothing'}")


def test_autoencoders_are_not_sampled(workdir, tmp_path):
    result = run("sample.py", workdir, "--out", tmp_path / "out")
    assert result.returncode == 2 and "--codec run=DIR" in result.stderr and not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="autoencoder"):
        sampler.sampler(config_of())


def test_players_must_belong_together():
    config = dataclasses.replace(config_of(), objective=preset("emoji").objective)
    with pytest.raises(ValueError, match="choose another preset"):
        autoencoders.is_autoencoder(config)


@pytest.mark.parametrize(("step", "moves"), [(3, False), (4, True)])
def test_the_game_begins_with_its_step(step, moves):
    config = config_of(start=4)
    params = build.init_run(config, jax.random.key(0))
    raw = {"image": jnp.arange(2 * 16 * 16 * 3, dtype=jnp.uint8).reshape(2, 16, 16, 3)}
    row = jnp.arange(2, dtype=jnp.int32)

    def value(params):
        return build.loss_fn(config)(params, jax.random.key(1), raw, row, 2, jnp.int32(step))[0]

    found = jax.grad(value)(params)
    assert any(bool(jnp.any(leaf != 0)) for leaf in jax.tree.leaves(found["discriminator"])) == moves
    assert any(bool(jnp.any(leaf != 0)) for leaf in jax.tree.leaves(found["network"]))


def test_without_a_game_there_is_no_judge():
    params = jax.eval_shape(lambda: build.init_run(config_of(weight=0.0), jax.random.key(0)))
    assert set(params) == {"network"}


def test_weights_that_are_not_there_are_named():
    config = config_of()
    config = dataclasses.replace(config, objective=dataclasses.replace(config.objective, lpips="nothing.safetensors"))
    with pytest.raises(FileNotFoundError, match="--lpips"):
        autoencoders.players(config)


LATENT = [
    *("emoji_text_latent", "--data.size", "8", "--batch-size", "8", "--steps", "2", "--save-every", "2"),
    *("--network.channels", "8", "--network.channel-mults", "1", "--network.transformer-depths", "1"),
    *("--network.middle-transformer", "0", "--network.no-middle-attention", "--network.head-channels", "4"),
    *("--network.text-width", "8", "--network.text-pooled", "8", "--network.text-encoder.width", "8"),
    *("--network.text-encoder.heads", "2", "--network.text-encoder.depth", "1", "--network.text-encoder.vocabulary"),
    *("300", "--sampling.steps", "2", "--optim.warmup", "0", "--log-every", "1"),
]


def test_text_to_image_in_its_latents(workdir, tmp_path):
    """Captions and keywords come through the latents, and only the autoencoder that made them decodes."""
    pictures, made = tmp_path / "pictures", tmp_path / "made"
    pictures.mkdir()
    lines = []
    for i in range(8):
        Image.fromarray(np.full((16, 16, 3), 30 * i, np.uint8)).save(pictures / f"{i}.png")
        lines.append({"file_name": f"{i}.png", "text": f"grey {i}", "keywords": [f"shade {i}", "dull"] if i else []})
    (pictures / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    precompute.main([str(pictures), str(made), "--codec", f"run={workdir}", "--size", "16", "--shards", "2"])
    source = open_source(Data(f"records:{made}", 8, 4))
    assert [caption(source, i) for i in (0, 5)] == [("grey 0", ()), ("grey 5", ("shade 5", "dull"))]

    latent_run, out = tmp_path / "run", tmp_path / "out"
    train.main([*LATENT, "--data.source", f"records:{made}", "--workdir", str(latent_run)])
    wanted = [str(latent_run), "--out", str(out), "--num", "2", "--batch-size", "2", "--prompt", "grey 3"]
    sample.main([*wanted, "--codec", f"run={workdir}", "--tile", "4"])
    assert np.asarray(Image.open(out / "images" / "000001.png")).shape == (16, 16, 3)
    config = open_trained(latent_run, Settings(codec=f"run={workdir}")).config
    convert.main([str(latent_run), str(tmp_path / "model"), "--codec", f"run={workdir}"])
    (tmp_path / "model").rename(tmp_path / "moved")
    again = tmp_path / "again"
    wanted = [str(tmp_path / "moved"), "--out", str(again), "--num", "2", "--batch-size", "2", "--prompt", "grey 3"]
    sample.main([*wanted, "--tile", "4"])  # what decodes has come along
    assert (again / "images" / "000001.png").read_bytes() == (out / "images" / "000001.png").read_bytes()
    other = dataclasses.replace(config, latents=dataclasses.replace(config.latents, sha256=("0" * 64,)))
    with pytest.raises(ValueError, match=r"other weights made the latents \(--codec\)"):
        sampler.finish_of(other)
