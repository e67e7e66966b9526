"""The U-Net of Stable Diffusion's single files, against diffusers' own conversion of their names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra parity")
diffusers = pytest.importorskip("diffusers", reason="needs the extra parity")

from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint  # noqa: E402
from small_unets import SD1, SDXL  # noqa: E402

from jaxdiff.pretrained.unet import dump, dump_original, load_original, unet_config, unet_shapes  # noqa: E402


@pytest.mark.parametrize("config", [SD1, SD1 | {"use_linear_projection": True}, SDXL], ids=["sd1", "sd2", "sdxl"])
def test_the_names_are_those_that_diffusers_converts(config):
    network = unet_config(config)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape, np.float32)), unet_shapes(network, 4)
    )
    single = dump_original(params, network)
    theirs = convert_ldm_unet_checkpoint({name: torch.from_numpy(array) for name, array in single.items()}, config)
    ours = dump(params, network)
    assert theirs.keys() == ours.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(theirs[name].numpy(), array, err_msg=name)

    beside = {"first_stage_model.decoder.conv_in.bias": np.zeros(3), "alphas_cumprod": np.ones(4)}
    again = load_original({**single, **beside}, network)
    jax.tree.map(np.testing.assert_array_equal, again, params)
    missing = dict(single)
    del missing["model.diffusion_model.out.2.bias"]
    with pytest.raises(ValueError, match=r"out\.2\.bias is missing"):
        load_original(missing, network)
