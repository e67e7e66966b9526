"""Models as folders of two files, and the one that ships with the package."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import run

from jaxdiff.commands.reference import reference_data
from jaxdiff.models import (
    SHIPPED,
    Checkpoint,
    find_model,
    is_run,
    is_trained,
    nameless,
    read_model,
    shipped_models,
    write_model,
)
from jaxdiff.presets import preset
from jaxdiff.settings import Settings
from jaxdiff.trained import open_trained


def some_model():
    """A model with parameters that are no network's."""
    config = preset("emoji")
    data = dataclasses.replace(config.data, source="/somewhere/pictures.zip")
    config = dataclasses.replace(config, data=data, text="minilm=/somewhere/model.safetensors")
    params = {"a": {"b": {"kernel": jnp.linspace(-3, 3, 12).reshape(3, 4)}, "scale": jnp.arange(2.0)}}
    return Checkpoint(config, ("cats", "dogs"), 7, params, '{"piece": "é"}', ("a cat",))


@pytest.mark.parametrize(("dtype", "error"), [("float32", 0.0), ("float16", 2.0**-11), ("bfloat16", 2.0**-8)])
def test_what_is_written_is_read_to_the_precision_of_the_file(tmp_path, dtype, error):
    model = some_model()
    write_model(tmp_path / "model", model, dtype)
    found = read_model(tmp_path / "model")
    assert jax.tree.structure(found.params) == jax.tree.structure(model.params)
    for a, b in zip(jax.tree.leaves(found.params), jax.tree.leaves(model.params), strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, rtol=error, atol=0)
    assert found[1:3] == model[1:3] and found[4:] == model[4:]
    assert found.config.network == model.config.network
    assert found.config.data.source == "pictures.zip"  # the rest of the path is nobody's business
    assert found.config.text == "minilm"


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty"):
        write_model(tmp_path, some_model())
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_runs_models_and_other_folders_are_told_apart(tmp_path):
    write_model(tmp_path / "model", some_model())
    for name, content in {"run": {"jaxdiff": "0", "config": {"seed": 0}}, "others": {"_class_name": "UNet"}}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(content))
    names = ("model", "run", "others", "nothing")
    assert [is_run(tmp_path / name) for name in names] == [False, True, False, False]
    assert [is_trained(tmp_path / name) for name in names] == [True, True, False, False]
    # What a model's samples are compared with: its own data, or others fitted alike.
    assert reference_data(tmp_path / "model", None, "train").source == "pictures.zip"
    other = reference_data(tmp_path / "model", "faces.zip", "test")
    assert (other.source, other.split, other.size) == ("faces.zip", "test", some_model().config.data.size)


@pytest.mark.parametrize(
    ("source", "kept"),
    [
        ("/a/b/pictures.zip", "pictures.zip"),
        ("gs://bucket/b/pictures.zip", "pictures.zip"),
        ("records:/a/latents", "records:latents"),
        ("medmnist:a/file.npz", "medmnist:file.npz"),
        ("emoji:smileys-emotion", "emoji:smileys-emotion"),
        ("tfds:eurosat/rgb:/a/b", "tfds:eurosat/rgb"),
        ("fashion_mnist", "fashion_mnist"),
    ],
)
def test_of_the_datas_place_the_last_part_is_kept(source, kept):
    assert nameless(source) == kept


def test_weights_without_a_config_are_refused(tmp_path):
    write_model(tmp_path / "model", some_model())
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"config\.json"):
        read_model(tmp_path / "model")


def test_a_run_of_a_shipped_name_comes_before_the_shipped_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_model("emoji") == SHIPPED / "emoji"
    assert find_model("nothing") is None
    (tmp_path / "emoji").mkdir()
    (tmp_path / "emoji" / "config.json").write_text("{}")
    assert find_model("emoji") is None


@pytest.mark.parametrize("name", shipped_models())
def test_shipped_models_are_small_and_say_what_they_are(name):
    folder = SHIPPED / name
    assert (folder / "model.safetensors").stat().length <= 8_000_000
    card = (folder / "README.md").read_text()
    assert all(f"## {title}" in card for title in ("Data", "Licence", "Limits"))
    assert "/" not in json.loads((folder / "config.json").read_text())["config"]["data"]["source"]


@pytest.mark.slow
def test_the_shipped_emoji_model_draws_what_it_is_told():
    """A heart is red, and a dark hand darker than a light one."""
    settings = Settings(batch_size=8, steps=20)

    def middle(prompt):
        trained = open_trained("emoji", dataclasses.replace(settings, prompt=prompt))
        return trained.images(np.arange(8, dtype=np.int32))[:, 10:22, 10:22].astype(float).mean(axis=(1, 2))

    red, green, blue = middle("red heart").T
    assert (red > np.maximum(green, blue) + 50).mean() >= 0.75
    dark, light = (middle(f"raised hand: {tone} skin tone").mean(axis=1) for tone in ("dark", "light"))
    assert (dark + 60 < light).mean() >= 0.75


def test_models_have_no_steps_or_averages(tmp_path):
    result = run("sample.py", "emoji", "--out", tmp_path / "out", "--ema", "none")
    assert result.returncode == 2 and "--ema" in result.stderr and not (tmp_path / "out").exists()


def test_a_name_of_nothing_is_told_what_there_is(tmp_path):
    result = run("sample.py", "nothing", "--out", tmp_path / "out")
    assert result.returncode == 2 and "emoji" in result.stderr and len(result.stderr.splitlines()) == 1
