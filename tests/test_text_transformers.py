"""Runs of SD3's, FLUX's and PixArt's networks: what a config holds and what sampling refuses."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from jaxdiff import build, sampler
from jaxdiff.config import from_json, to_json
from jaxdiff.networks.flux import Flux
from jaxdiff.networks.mmdit import MMDiT
from jaxdiff.networks.pixart import PixArt
from jaxdiff.presets import preset

NETWORKS = {
    "mmdit": MMDiT(width=24, depth=2, heads=2, dual=1, grid=4, text_width=6, text_pooled=5),
    "flux": Flux(width=24, depth=1, single_depth=1, heads=2, axes=(4, 4, 4), text_width=6, text_pooled=5),
    "pixart": PixArt(width=24, depth=1, heads=2, text_width=6, learned_variance=False),
}


def config_of(name):
    config = preset("emoji")
    data = dataclasses.replace(config.data, size=8, labels=False)
    return dataclasses.replace(config, network=NETWORKS[name], data=data)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_config_holds_the_network_and_makes_its_parameters(name):
    config = config_of(name)
    assert from_json(json.loads(json.dumps(to_json(config)))) == config
    params = jax.eval_shape(lambda: build.init_run(config, jax.random.key(0)))
    assert params["network"]["blocks"] if name != "mmdit" else params["network"]["dual_blocks"]
    build.check_data(config, ())
    sampler.check_sampling(config)
    assert sampler.labels_for(config, np.arange(2)) == {}


@pytest.mark.parametrize("name", NETWORKS)
def test_captions_need_a_reader_and_classes_are_none_of_theirs(name):
    config = config_of(name)
    told = dataclasses.replace(config, data=dataclasses.replace(config.data, text=True), text="minilm")
    build.check_data(told, ())
    with pytest.raises(ValueError, match="--text"):
        build.check_data(dataclasses.replace(told, text=""), ())
    with pytest.raises(ValueError, match="words is for one with a text encoder of its own"):
        build.check_data(dataclasses.replace(told, text="words"), ())


@pytest.mark.parametrize("name", NETWORKS)
def test_perturbed_attention_is_refused(name):
    config = config_of(name)
    config = dataclasses.replace(config, sampling=dataclasses.replace(config.sampling, pag_scale=2.0))
    with pytest.raises(ValueError, match=r"pag_scale = 2.0 is not allowed with \w+: .*--pag-scale"):
        sampler.check_sampling(config)
