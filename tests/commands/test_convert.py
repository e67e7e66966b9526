"""jaxdiff convert: folders that sample.py takes, whole or not there, and mistakes as one line."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.commands import convert
from jaxdiff.models import read_model, write_model
from jaxdiff.networks.unet import UNet
from jaxdiff.pretrained import adm, safetensors
from jaxdiff.pretrained.unet import unet_shapes
from jaxdiff.settings import Settings
from jaxdiff.trained import open_trained

WAYS = ("--head-channels", "16", "--no-heads-first", "--cosine", "--chain", "100", "--size", "8")


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """(an original file of a small network with classes, the network's parameters)."""
    network = UNet(
        channels=32,
        channel_mults=(1, 2),
        blocks_per_level=1,
        attention_resolutions=(),
        attention_levels=(1,),
        head_channels=16,
        scale_shift=True,
        num_classes=3,
        learned_variance=True,
    )
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(0.05 * rng.standard_normal(leaf.shape), jnp.float32), unet_shapes(network, 3)
    )
    (labels,) = (layers["label"] for layers in params.values() if "label" in layers)
    labels["embedding"] = labels["embedding"].at[-1].set(0.0)  # no label
    file = tmp_path_factory.mktemp("original") / "model.safetensors"
    safetensors.write(file, adm.dump(params, network, heads_first=False))
    return file, params


def fails(capsys, *args) -> str:
    with pytest.raises(SystemExit) as stop:
        convert.main([str(a) for a in args])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    return line


def test_an_original_file_becomes_a_model_that_is_sampled(original, tmp_path):
    file, params = original
    convert.main([str(file), str(tmp_path / "model"), *WAYS])
    model = read_model(tmp_path / "model")
    jax.tree.map(np.testing.assert_array_equal, dict(model.params["network"]), dict(params))
    assert model.label_names == ("0", "1", "2") and model.config.objective.path.num_steps == 100
    trained = open_trained(tmp_path / "model", Settings(batch_size=8, steps=3, label="1"))
    images = trained.images(np.arange(8, dtype=np.int32))
    assert images.shape == (8, 8, 8, 3) and np.ptp(images[0]) > 20 and trained.label == 1


def test_the_numbers_may_be_halved(original, tmp_path):
    convert.main([str(original[0]), str(tmp_path / "model"), *WAYS, "--dtype", "bfloat16"])
    assert (tmp_path / "model" / "model.safetensors").stat().st_size < 0.6 * original[0].stat().st_size


def test_mistakes_are_one_line_and_leave_nothing(capsys, original, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "broken.pt").write_bytes(b"nothing of the kind")
    before = sorted(tmp_path.rglob("*"))
    assert "not empty" in fails(capsys, original[0], tmp_path / "full", *WAYS)
    assert "no published network" in fails(capsys, original[0], tmp_path / "new")
    assert "broken.pt" in fails(capsys, tmp_path / "broken.pt", tmp_path / "new")
    assert "SRC" in fails(capsys, tmp_path / "absent.pt", tmp_path / "new")
    assert "--heads" in fails(capsys, original[0], tmp_path / "new", "--heads", 0)
    assert "no run" in fails(capsys, original[0], tmp_path / "new", *WAYS, "--ema", "0.05")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_model_is_whole_or_not_there(original, tmp_path):
    convert.main([str(original[0]), str(tmp_path / "model"), *WAYS])
    model = read_model(tmp_path / "model")
    with pytest.raises(FileNotFoundError):
        write_model(tmp_path / "other", model, files={"codec/config.json": tmp_path / "absent"})
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_what_lies_in_the_folder_is_found_wherever_it_is(original, tmp_path):
    convert.main([str(original[0]), str(tmp_path / "model"), *WAYS])
    model = read_model(tmp_path / "model")
    inside = dataclasses.replace(model.config, codec="kl=codec", text="minilm=elsewhere")
    (tmp_path / "a.json").write_text("{}")
    write_model(tmp_path / "first", model._replace(config=inside), files={"codec/config.json": tmp_path / "a.json"})
    (tmp_path / "first").rename(tmp_path / "second")
    found = read_model(tmp_path / "second").config
    assert found.codec == f"kl={tmp_path / 'second' / 'codec'}" and found.text == "minilm=elsewhere"
