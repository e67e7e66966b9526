"""The U-Net of Stable Diffusion's single files, against diffusers' own conversion of their names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra parity")
diffusers = pytest.importorskip("diffusers", reason="needs the extra parity")

from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint  # noqa: E402

from jaxdiff.pretrained.unet import dump, dump_original, load_original, unet_config, unet_shapes  # noqa: E402

SD1 = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 8,
    "block_out_channels": [32, 64],
    "layers_per_block": 2,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "cross_attention_dim": 12,
    "attention_head_dim": 4,
}
SDXL = {
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 2],
    "use_linear_projection": True,
    "attention_head_dim": [2, 4],
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 10 + 6 * 8,
}


@pytest.mark.parametrize("changes", [{}, {"use_linear_projection": True}, SDXL], ids=["sd1", "sd2", "sdxl"])
def test_the_names_are_those_that_diffusers_converts(changes):
    config = SD1 | changes
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
