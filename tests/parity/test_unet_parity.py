"""The U-Net against diffusers' with the same random weights, and the published networks by their shapes alone."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra parity")
diffusers = pytest.importorskip("diffusers", reason="needs the extra parity")

from small_unets import SD1, SDXL  # noqa: E402

from jaxdiff.pretrained import exchange, single_unet  # noqa: E402
from jaxdiff.pretrained.unet import dump, load, unet_shapes  # noqa: E402
from jaxdiff.pretrained.unet_config import unet_config, unet_json  # noqa: E402
from jaxdiff.pretrained.unet_names import diffusers_names, original_names  # noqa: E402

quickly = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
CLASSES = {"UNet2DModel": diffusers.UNet2DModel, "UNet2DConditionModel": diffusers.UNet2DConditionModel}

SMALL = {
    "sd1": SD1,
    "sd2": SD1 | {"use_linear_projection": True, "attention_head_dim": [2, 4], "upcast_attention": True},
    "sdxl": SDXL,
    "ddpm": {
        "_class_name": "UNet2DModel",
        "sample_size": 8,
        "block_out_channels": [32, 64],
        "layers_per_block": 2,
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
        "norm_num_groups": 8,
        "norm_eps": 1e-6,
        "attention_head_dim": None,
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
    },
    "adm": {
        "_class_name": "UNet2DModel",
        "sample_size": 8,
        "out_channels": 6,
        "block_out_channels": [32, 64],
        "layers_per_block": 1,
        "down_block_types": ["ResnetDownsampleBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "ResnetUpsampleBlock2D"],
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "norm_num_groups": 8,
        "attn_norm_num_groups": 8,
        "attention_head_dim": 16,
        "resnet_time_scale_shift": "scale_shift",
        "num_class_embeds": 5,
    },
}


def torch_model(config):
    return CLASSES[config["_class_name"]].from_config(config).eval()


def in_torch(x):
    return torch.from_numpy(np.asarray(x).transpose(0, 3, 1, 2).copy())


@pytest.mark.parametrize("name", SMALL)
def test_small_networks(name):
    torch.set_num_threads(1)
    config = SMALL[name]
    theirs = torch_model(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    state = {key: value.numpy() for key, value in theirs.state_dict().items()}
    network = unet_config(config)
    params = load(state, network)
    back = dump(params, network)
    assert back.keys() == state.keys()
    for key, value in state.items():
        np.testing.assert_array_equal(back[key], value, err_msg=key)

    rng = np.random.default_rng(1)
    x = rng.standard_normal((2, 8, 16, theirs.config.in_channels), np.float32)
    noise = np.array([7.0, 803.0], np.float32)
    cond, extra = {}, {}
    if network.text_width:
        cond["text_tokens"] = rng.standard_normal((2, 5, network.text_width), np.float32)
        extra["encoder_hidden_states"] = torch.from_numpy(cond["text_tokens"])
    if network.size_features:
        cond["text_pooled"] = rng.standard_normal((2, network.text_pooled), np.float32)
        cond["size"] = np.array([[64, 48, 0, 3, 64, 64], [512, 768, 10, 0, 1024, 1024]], np.float32)
        added = {"text_embeds": cond["text_pooled"], "time_ids": cond["size"]}
        extra["added_cond_kwargs"] = {key: torch.from_numpy(value) for key, value in added.items()}
    if network.num_classes:
        cond["label"] = np.array([3, 0], np.int32)
        extra["class_labels"] = torch.tensor([3, 0])
    with torch.no_grad():
        expected = theirs(in_torch(x), torch.from_numpy(noise), **extra).sample.numpy().transpose(0, 2, 3, 1)
    cond = {key: jnp.asarray(value) for key, value in cond.items()}
    ours = quickly(network.apply)({"params": params}, jnp.asarray(x), jnp.asarray(noise), cond)
    assert ours.shape == expected.shape
    error = np.abs(ours - expected).max() / np.abs(expected).max()
    assert error < 1e-4, error


@pytest.mark.parametrize("name", SMALL)
def test_the_written_config_is_the_same_network(name):
    config = SMALL[name]
    network = unet_config(config)
    written = unet_json(network, dict(torch_model(config).config)["in_channels"], 8)
    assert unet_config(written) == network
    shapes = {key: tuple(value.shape) for key, value in torch_model(config).state_dict().items()}
    assert {key: tuple(value.shape) for key, value in torch_model(written).state_dict().items()} == shapes


SD = {"_class_name": "UNet2DConditionModel", "sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
DDPM_256 = {
    "_class_name": "UNet2DModel",
    "sample_size": 256,
    "block_out_channels": [128, 128, 256, 256, 512, 512],
    "down_block_types": [*["DownBlock2D"] * 4, "AttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "AttnUpBlock2D", *["UpBlock2D"] * 4],
    "norm_eps": 1e-6,
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
}
PUBLISHED = {
    "sd1": (SD, 859_520_964),
    "sd2": (
        SD | {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True},
        865_910_724,
    ),
    "sdxl": (
        SD
        | {
            "sample_size": 128,
            "block_out_channels": [320, 640, 1280],
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            "transformer_layers_per_block": [1, 2, 10],
            "attention_head_dim": [5, 10, 20],
            "cross_attention_dim": 2048,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        2_567_463_684,
    ),
    "ddpm-cifar10-32": (
        DDPM_256
        | {
            "sample_size": 32,
            "block_out_channels": [128, 256, 256, 256],
            "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
        },
        35_746_307,
    ),
    "ddpm-256": (DDPM_256, None),
    "ldm-celebahq-256": (
        {
            "_class_name": "UNet2DModel",
            "sample_size": 64,
            "block_out_channels": [224, 448, 672, 896],
            "down_block_types": ["DownBlock2D", *["AttnDownBlock2D"] * 3],
            "up_block_types": [*["AttnUpBlock2D"] * 3, "UpBlock2D"],
            "attention_head_dim": 32,
        },
        None,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_networks_by_name_and_shape(name):
    config, total = PUBLISHED[name]
    with torch.device("meta"):
        theirs = {key: tuple(value.shape) for key, value in torch_model(config).state_dict().items()}
    network = unet_config(config)
    shapes = unet_shapes(network, 4 if network.text_width else 3)
    ours = exchange.torch_shapes(shapes, diffusers_names(network))
    assert ours == theirs
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    assert count == sum(map(math.prod, theirs.values()))
    assert total is None or count == total
    if network.text_width:  # in a single file, the shapes alone tell which network it is
        names = exchange.torch_shapes(shapes, original_names(network))
        arrays = {key: np.broadcast_to(np.float32(0), shape) for key, shape in names.items()}
        assert unet_config(single_unet.unet_json(arrays, 64)) == network


def test_old_names_of_attention_are_read():
    config = SMALL["ddpm"]
    network = unet_config(config)
    state = {key: value.numpy() for key, value in torch_model(config).state_dict().items()}
    new = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    old = {}
    for key, value in state.items():
        for part, word in new.items():
            key = key.replace(f".{part}.", f".{word}.")
        old[key] = value
    assert old.keys() != state.keys()
    again = dump(load(old, network), network)
    assert again.keys() == state.keys()
    for key, value in state.items():
        np.testing.assert_array_equal(again[key], value)


def test_the_original_names_are_numbered_in_a_row():
    """Some names of Stable Diffusion's single files, as published."""
    network = unet_config(SD)
    shapes = exchange.torch_shapes(unet_shapes(network, 4), original_names(network))
    assert len(shapes) == 686
    for name, shape in {
        "time_embed.2.bias": (1280,),
        "input_blocks.0.0.weight": (320, 4, 3, 3),
        "input_blocks.3.0.op.weight": (320, 320, 3, 3),
        "input_blocks.4.0.skip_connection.weight": (640, 320, 1, 1),
        "input_blocks.11.0.emb_layers.1.weight": (1280, 1280),
        "middle_block.1.transformer_blocks.0.attn2.to_k.weight": (1280, 768),
        "output_blocks.2.1.conv.weight": (1280, 1280, 3, 3),
        "output_blocks.5.2.conv.weight": (1280, 1280, 3, 3),
        "output_blocks.11.1.proj_out.weight": (320, 320, 1, 1),
        "output_blocks.3.1.transformer_blocks.0.ff.net.0.proj.weight": (10240, 1280),
        "out.2.bias": (4,),
    }.items():
        assert shapes[name] == shape


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"act_fn": "gelu"}, "act_fn = 'gelu' is not allowed: 'silu'"),
        ({"dual_cross_attention": True}, "dual_cross_attention = True"),
        ({"encoder_hid_dim": 12}, "encoder_hid_dim = 12"),
        ({"block_out_channels": [32, 48]}, "block_out_channels"),
        ({"in_channels": 9}, "out_channels = 4"),
        ({"up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"]}, "up_block_types"),
        ({"down_block_types": ["AttnDownBlock2D", "SkipDownBlock2D"]}, "SkipDownBlock2D"),
        ({"layers_per_block": [1, 2]}, "layers_per_block"),
    ],
)
def test_configs_that_cannot_be_honoured(change, message):
    with pytest.raises(ValueError, match=message):
        unet_config(SD1 | change)


def test_weights_of_another_network_are_named():
    config = SMALL["sd1"]
    state = {key: value.numpy() for key, value in torch_model(config).state_dict().items()}
    state["more.weight"] = state.pop("conv_out.bias")
    state["time_embedding.linear_1.weight"] = state["time_embedding.linear_1.weight"].T
    with pytest.raises(ValueError, match="another network") as caught:
        load(state, unet_config(config))
    for words in ("conv_out.bias is missing", "more.weight is not known", r"linear_1.weight is [32, 128] and not"):
        assert words in str(caught.value)
