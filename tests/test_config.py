"""Configs: every preset survives JSON, builds, and keeps what its paper says about size."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import build, sampler
from jaxdiff.config import Config, from_json, to_json
from jaxdiff.core.gaussian import check_solvable
from jaxdiff.core.grids import pad
from jaxdiff.core.paths import Linear
from jaxdiff.core.types import Level
from jaxdiff.networks.unet import UNet
from jaxdiff.objectives.autoencoder import Autoencoding
from jaxdiff.presets import PRESETS, preset
from jaxdiff.sampling.guidance_rules import CFGPlusPlus, Interval
from jaxdiff.training.optim import optimizer
from jaxdiff.training.step import init_state

PARAMETERS = {
    "cifar10_ddpm": 35_746_307,
    "cifar10_iddpm": 52_546_438,
    "cifar10_edm": 55_733_891,
    "imagenet64_adm": 295_904_454 + 768,
    "imagenet64_edm": 295_899_267 + 768,
}
"""The papers' sizes (tests/networks/test_parameter_counts.py derives them), with a row for the absent label."""


@pytest.mark.parametrize("name", PRESETS)
def test_preset_survives_json(name):
    config = preset(name)
    again = from_json(json.loads(json.dumps(to_json(config))))
    assert again == config
    assert to_json(again) == to_json(config)


@pytest.mark.parametrize("name", PRESETS)
def test_preset_builds(name):
    """By shapes alone: parameters, one step's loss, and the sampler's levels."""
    config = preset(name)
    if isinstance(config.objective, Autoencoding):  # whose weights of LPIPS come from another package
        config = dataclasses.replace(config, objective=dataclasses.replace(config.objective, lpips=""))
    params = jax.eval_shape(lambda: build.init_run(config, jax.random.key(0)))
    count = sum(math.prod(p.shape) for p in jax.tree.leaves(params))
    if name in PARAMETERS:
        assert count == PARAMETERS[name]
    b, shape = 2, build.image_shape(config)
    raw = {"image": jax.ShapeDtypeStruct((b, *shape), jnp.uint8)}
    if config.data.labels and config.network.num_classes:
        raw["label"] = jax.ShapeDtypeStruct((b,), jnp.int32)
    if config.data.augment:
        raw["augment"] = jax.ShapeDtypeStruct((b, 9), jnp.float32)
    row = jax.ShapeDtypeStruct((b,), jnp.int32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    loss, _ = jax.eval_shape(lambda *args: build.loss_fn(config)(*args, b, jnp.int32(0)), params, key, raw, row)
    assert loss.shape == () and loss.dtype == jnp.float32
    losses = jax.eval_shape(build.losses_fn(config), params, key, raw, row, jax.ShapeDtypeStruct((b,), jnp.float32))
    assert losses.shape == (b,)
    jax.eval_shape(lambda p: init_state(p, optimizer(config.optim, config.steps), config.ema), params)


@pytest.mark.parametrize("name", [n for n in PRESETS if not n.endswith(("_vdm", "_vae"))])
def test_preset_samples_where_its_prediction_can_be_solved(name):
    config = preset(name)
    levels = sampler.levels_of(config, config.objective.path_of({}))
    assert levels.alpha.shape == (config.sampling.steps + 1,)
    assert float(levels.alpha[-1]) == 1 and float(levels.sigma[-1]) == 0
    check_solvable(config.objective.prediction, jax.tree.map(lambda a: a[:-1], levels))


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="smileys, emoji"):
        preset("smilies")
    with pytest.raises(ValueError, match="Teapot"):
        from_json({"type": "Teapot"})
    with pytest.raises(TypeError, match="cannot be stored"):
        to_json(jnp.zeros(2))


@pytest.mark.parametrize(
    ("field", "value", "flag"),
    [("steps", 0, "--steps"), ("batch_size", 0, "--batch-size"), ("seed", -1, "--seed"), ("keep", 0, "--keep")],
)
def test_numbers_out_of_range_are_refused(field, value, flag):
    with pytest.raises(ValueError, match=f"{value} is not allowed.*{flag}"):
        dataclasses.replace(preset("smileys"), **{field: value})


def test_batch_that_cannot_be_shared_out_is_refused():
    config = preset("smileys")
    with pytest.raises(ValueError, match=r"32 is not a multiple of 5 .*--batch-size"):
        build.check_devices(config, 5)
    with pytest.raises(ValueError, match=r"num_classes = 0|--network.num-classes"):
        build.check_data(preset("emoji"), ("a", "b"))
    assert isinstance(config, Config)


def small_run(**sampling):
    """A tiny network with ten classes, and its parameters."""
    small = UNet(
        channels=8, channel_mults=(1,), blocks_per_level=1, attention_resolutions=(), head_channels=4, num_classes=10
    )
    config = preset("emoji")
    config = dataclasses.replace(config, network=small, data=dataclasses.replace(config.data, size=4))
    config = dataclasses.replace(config, sampling=dataclasses.replace(config.sampling, steps=3, **sampling))
    return config, not_zero(build.init_run(config, jax.random.key(0)))


def not_zero(params, seed=0):
    """Parameters whose last layer is not zero, as it is before training."""
    keys = jax.random.split(jax.random.key(seed), len(jax.tree.leaves(params)))
    noise = jax.tree.unflatten(jax.tree.structure(params), list(keys))
    return jax.tree.map(lambda p, key: p + 0.2 * jax.random.normal(key, p.shape), params, noise)


def test_one_compilation_serves_every_sweep():
    config, params = small_run(cfg_scale=2.0, pag_scale=1.0)
    run = sampler.sampler(config)

    def images(seed=0, label=None, scale=2.0, pag=1.0, steps=3):
        here = dataclasses.replace(config, sampling=dataclasses.replace(config.sampling, steps=steps))
        levels = pad(sampler.levels_of(here, Linear()), 8)
        indices = np.arange(2)
        cond = sampler.labels_for(config, indices, label)
        scales = sampler.Scales(jnp.float32(scale), jnp.float32(pag), jnp.float32(0.0))
        return np.asarray(run(sampler.Weights(params), jnp.int32(seed), jnp.asarray(indices), levels, cond, scales))

    base = images()
    assert base.shape == (2, 4, 4, 3) and base.dtype == np.uint8
    for other in (images(seed=1), images(steps=8), images(steps=5)):
        assert np.any(other != base)
    for _ in (images(label=3), images(scale=7.0), images(pag=0.0)):
        pass
    assert run._cache_size() == 1
    # Padding with clean levels is no change.
    alone = sampler.sampler(config)(
        sampler.Weights(params),
        jnp.int32(0),
        jnp.arange(2),
        sampler.levels_of(config, Linear()),
        sampler.labels_for(config, np.arange(2)),
        sampler.scales_of(config),
    )
    assert np.abs(base.astype(int) - np.asarray(alone)).max() <= 1


def test_guides_change_the_belief_as_their_rules_say():
    config, params = small_run(cfg_scale=3.0)
    other = not_zero(params, 1)
    x, at = jnp.ones((2, 4, 4, 3)), Level(jnp.float32(0.6), jnp.float32(0.8))
    cond = sampler.labels_for(config, np.arange(2))

    def belief(config, guides=sampler.Guides(), weaker=None, label=None):
        weights = sampler.Weights(params, weaker)
        ask = jax.jit(lambda: sampler.denoise_of(config, guides, weights, cond, sampler.scales_of(config))(x, at, at))
        return ask().x0

    def with_sampling(**changes):
        return dataclasses.replace(config, sampling=dataclasses.replace(config.sampling, **changes))

    plain, none = with_sampling(cfg_scale=1.0, threshold="none"), with_sampling(threshold="none")
    weak = sampler.Weights(other)
    ask = jax.jit(lambda: sampler.denoise_of(plain, sampler.Guides(), weak, cond, sampler.scales_of(plain))(x, at, at))
    main, ref = belief(plain), ask().x0
    guided = belief(none, sampler.Guides(weaker=config), other)
    np.testing.assert_allclose(guided, ref + 3 * (main - ref), rtol=1e-3, atol=1e-4)
    # Outside its interval there is no guidance, and inside there is.
    away = with_sampling(threshold="none", interval=Interval(2.0, 3.0))
    np.testing.assert_allclose(belief(away), main, rtol=1e-4, atol=1e-5)
    assert not np.allclose(belief(none), main, atol=1e-3)


def test_what_makes_no_sense_together_is_refused():
    config, _ = small_run(cfg_scale=0.6, guidance=CFGPlusPlus())
    with pytest.raises(ValueError, match="--threshold none"):
        sampler.sampler(config)
    with pytest.raises(ValueError, match="--classifier"):
        sampler.sampler(preset("fashion_mnist_classifier"))
    with pytest.raises(ValueError, match="no classifier"):
        sampler.sampler(preset("emoji"), sampler.Guides(classifier=preset("emoji")))
