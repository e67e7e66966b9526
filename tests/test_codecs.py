"""Codecs by name: a folder in diffusers' layout, a single file, and what is refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxdiff.codecs import open_codec
from jaxdiff.pretrained.autoencoder import dump, load
from jaxdiff.pretrained.autoencoder_config import autoencoder_config

CONFIG = {
    "block_out_channels": [8, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "latent_channels": 3,
    "norm_num_groups": 4,
    "layers_per_block": 1,
    "in_channels": 3,
    "out_channels": 3,
    "scaling_factor": 0.5,
    "shift_factor": 0.25,
}
FILE = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(folder of a whole model, the network, its parameters)."""
    folder = tmp_path_factory.mktemp("model")
    network = autoencoder_config(CONFIG)
    params = jax.jit(network.init)(jax.random.key(0), jnp.zeros((1, 4, 4, 3)))["params"]
    (folder / "vae").mkdir()
    (folder / "vae" / "config.json").write_text(json.dumps(CONFIG))
    save_file(dump(params, network), folder / "vae" / FILE)
    return folder, network, params


def test_a_folder_is_scaled_as_its_config_says(saved):
    folder, network, params = saved
    x = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
    opened = open_codec(f"kl={folder}")
    assert (opened.name, opened.factor, opened.channels) == ("kl", 2, 3)
    mean = network.apply({"params": params}, x, method="encode").mean
    z = opened.codec.encode(x)
    np.testing.assert_allclose(z, (mean - 0.25) * 0.5, atol=1e-5)
    wanted = network.apply({"params": params}, mean, method="decode")
    np.testing.assert_allclose(opened.codec.decode(z), wanted, atol=1e-4)
    inner = open_codec(f"kl={folder / 'vae'}")
    assert inner.sha256 == opened.sha256
    np.testing.assert_array_equal(inner.codec.encode(x), z)


def test_what_is_stored_comes_back(saved):
    _, network, params = saved
    jax.tree.map(np.testing.assert_array_equal, load(dump(params, network), network), params)


@pytest.mark.parametrize("spec", ["kl", "kl=", "vae=x", "run", ""])
def test_other_words_are_refused(spec):
    with pytest.raises(ValueError, match=r"is not allowed.*\(--codec\)"):
        open_codec(spec)


@pytest.mark.parametrize("name", ["kl", "sd", "flux", "run"])
def test_what_is_not_there_is_named(name, tmp_path):
    with pytest.raises(FileNotFoundError, match=f"--codec {name}="):
        open_codec(f"{name}={tmp_path / 'nothing'}")
