"""EDM2 trained from end to end, at its smallest: weights on their spheres, resumed to the bit, sampled."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tiny import run

import sample
from jaxdiff import build
from jaxdiff.networks.edm2 import EDM2
from jaxdiff.networks.lora import LoRA
from jaxdiff.presets import preset
from jaxdiff.training.optim import optimizer
from jaxdiff.training.restore import read_params
from jaxdiff.training.step import init_state

TRAIN = [
    *("emoji_edm2", "--data.source", "emoji:smileys-emotion", "--data.size", "8", "--network.num-classes", "0"),
    *("--network.channels", "8", "--network.channel-mults", "1", "--network.head-channels", "8"),
    *("--network.attention-levels", "--network.dropout", "0.1", "--batch-size", "8", "--steps", "12"),
    *("--save-every", "4", "--log-every", "2", "--preview-every", "0", "--validate-every", "0"),
    *("--sampling.steps", "2", "--optim.warmup", "2"),
]


def small():
    """The preset with a small network."""
    config = preset("emoji_edm2")
    network = EDM2(channels=8, channel_mults=(1,), blocks_per_level=1, attention_levels=(), head_channels=8)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, size=8), network=network)


def rms(leaf):
    """Root mean square of the weights of each output."""
    return jnp.sqrt(jnp.square(leaf).mean(tuple(range(leaf.ndim - 1))))


def at(tree, path):
    """The leaf there."""
    for key in path:
        tree = tree[key.key]
    return tree


def test_a_step_ends_on_the_spheres_and_moves_along_them():
    config = dataclasses.replace(small(), optim=dataclasses.replace(small().optim, learning_rate=0.1, warmup=0))
    params = build.init_run(config, jax.random.key(0))
    raw = {"image": jax.random.randint(jax.random.key(1), (4, 8, 8, 3), 0, 256).astype(jnp.uint8)}
    state = init_state(params, optimizer(config.optim, config.steps), config.ema)
    step = jax.jit(build.step_fn(config), compiler_options={"xla_backend_optimization_level": 0})
    after, metrics = step(state, raw)
    assert {"loss", "error", "grad_norm/uncertainty/kernel"} <= metrics.keys()
    moved = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(after.params):
        before = at(params, path)
        if path[-1].key == "kernel":
            np.testing.assert_allclose(rms(leaf), 1, atol=1e-3, err_msg=str(path))
            np.testing.assert_allclose(rms(before), 1, atol=1e-3, err_msg=str(path))
            moved += int(bool(jnp.any(leaf != before)))
        else:
            # Adam's first step is the learning rate: a gain is not brought back.
            assert float(jnp.abs(leaf).max()) == pytest.approx(0.1, rel=1e-2) or not leaf.any()
    assert moved >= 2  # out of which the gains, which begin at zero, let gradients


def test_low_rank_changes_are_left_as_they_are():
    config = dataclasses.replace(small(), lora=LoRA(rank=2), start="base")
    part = {"kernel": jnp.full((3, 2), 7.0)}
    jax.tree.map(np.testing.assert_array_equal, build.projection(config)(part), part)
    assert float(build.projection(small())(part)["kernel"][0, 0]) == pytest.approx(1, abs=1e-3)
    plain = preset("emoji")
    jax.tree.map(np.testing.assert_array_equal, build.projection(plain)(part), part)


@pytest.mark.slow
def test_a_stopped_run_ends_with_the_same_bits_and_is_sampled(tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    result = run("train.py", *TRAIN, "--workdir", whole)
    assert result.returncode == 0, result.stderr
    shutil.copytree(whole, stopped)
    shutil.rmtree(stopped / "checkpoints" / "12")  # as if it had been killed before it was saved
    shutil.rmtree(stopped / "ema" / "12")
    result = run("train.py", *TRAIN, "--workdir", stopped)
    assert result.returncode == 0 and "steps 8 to 12" in result.stdout, result.stderr
    for average in (None, 0, 1):
        one, other = (read_params(folder, 12, average) for folder in (whole, stopped))
        jax.tree.map(np.testing.assert_array_equal, one, other)
        assert set(one) == {"network", "uncertainty"}
    sample.main([str(whole), "--out", str(tmp_path / "out"), "--num", "2", "--batch-size", "2"])
    assert np.asarray(Image.open(tmp_path / "out" / "images" / "000001.png")).shape == (8, 8, 3)
