"""PixArt-alpha's and PixArt-sigma's published transformers, as diffusers saves them (`PixArtTransformer2DModel`)."""

from collections.abc import Mapping

import numpy as np

from jaxdiff.core.types import Params
from jaxdiff.networks.pixart import PixArt
from jaxdiff.pretrained import rows as tables
from jaxdiff.pretrained.fields import Json, check, doubled, flag, real, whole
from jaxdiff.pretrained.rows import AS_IT_IS, Row, channels_of, patches, shapes_of

BLOCK = "transformer_blocks.{}."
READ = (
    "attention_head_dim",
    "caption_channels",
    "in_channels",
    "interpolation_scale",
    "num_attention_heads",
    "num_layers",
    "out_channels",
    "patch_size",
    "sample_size",
    "use_additional_conditions",
    "norm_num_groups",  # of another kind of input
    "num_embeds_ada_norm",  # of another kind of norm
)
ONLY = {
    "activation_fn": ("gelu-approximate",),
    "attention_bias": (True,),
    "attention_type": (None, "default"),
    "double_self_attention": (False,),
    "dropout": (0,),
    "norm_elementwise_affine": (False,),
    "norm_eps": (1e-6,),
    "norm_type": ("ada_norm_single",),
    "num_vector_embeds": (None,),
    "only_cross_attention": (False,),
    "upcast_attention": (False,),
    "use_linear_projection": (False,),
}

UNUSED = "caption_projection.y_embedding"
"""What training put in place of a text that was left out: in some files, for nothing."""


def pixart_config(json: Json) -> PixArt:
    """The network of a published config.json. Raises ValueError that names a field which it cannot honour."""
    heads = whole(json, "num_attention_heads", 16)
    width = heads * whole(json, "attention_head_dim", 72)
    check({"cross_attention_dim": 1152, **json}, READ, {**ONLY, "cross_attention_dim": (width,)})
    size, patch = whole(json, "sample_size", 128), whole(json, "patch_size", 2)
    scale = real(json, "interpolation_scale", float(max(size // 64, 1)))
    return PixArt(
        patch=patch,
        width=width,
        depth=whole(json, "num_layers", 28),
        heads=heads,
        extent=size // patch / scale,
        text_width=whole({"caption_channels": None, **json}, "caption_channels", 1),
        size_condition=flag(json, "use_additional_conditions", size == 128),
        learned_variance=doubled({"out_channels": 8, **json}, whole(json, "in_channels", 4)),
    )


def config_json(network: PixArt, channels: int, size: int = 128) -> dict[str, object]:
    """The config.json with which diffusers reads what `dump` gives: the inverse of `pixart_config`.

    `channels` are those of the latents, and `size` their height and width.
    """
    return {
        "_class_name": "PixArtTransformer2DModel",
        "attention_head_dim": network.width // network.heads,
        "caption_channels": network.text_width,
        "cross_attention_dim": network.width,
        "in_channels": channels,
        "interpolation_scale": size // network.patch / network.extent,
        "num_attention_heads": network.heads,
        "num_layers": network.depth,
        "out_channels": channels * (2 if network.learned_variance else 1),
        "patch_size": network.patch,
        "sample_size": size,
        "use_additional_conditions": network.size_condition,
    }


def load(arrays: Mapping[str, np.ndarray], network: PixArt) -> Params:
    """Parameters from the tensors of a file. Raises ValueError where they are not exactly this network's."""
    arrays = {name: array for name, array in arrays.items() if name != UNUSED}
    channels = channels_of(arrays, "pos_embed.proj.weight")
    return tables.load(arrays, shapes_of(network, channels, network.patch), rows(network))


def dump(params: Params, network: PixArt) -> dict[str, np.ndarray]:
    """The tensors of diffusers' file: what `load` was given, bit for bit."""
    return tables.dump(params, rows(network))


def rows(network: PixArt) -> tuple[Row, ...]:
    """What diffusers calls the layers of this network."""
    embedder = "adaln_single.emb."
    layers = {"mlp_0": "ff.net.0.proj", "mlp_1": "ff.net.2"}
    for ours, theirs in (("self_attention", "attn1"), ("cross_attention", "attn2")):
        layers |= {f"{ours}.{letter}": f"{theirs}.to_{letter}" for letter in "qkv"}
        layers[f"{ours}.out"] = f"{theirs}.to_out.0"
    blocks = range(network.depth)
    return (
        Row("patches", ("pos_embed.proj",), layout=patches(network.patch)),
        *_two_layers("noise", f"{embedder}timestep_embedder"),
        *_two_layers("resolution", f"{embedder}resolution_embedder"),
        *_two_layers("aspect", f"{embedder}aspect_ratio_embedder"),
        *_two_layers("text", "caption_projection"),
        Row("modulation", ("adaln_single.linear",)),
        Row("blocks.table", (BLOCK + "scale_shift_table",), blocks, AS_IT_IS),
        *(Row(f"blocks.{ours}", (BLOCK + theirs,), blocks) for ours, theirs in layers.items()),
        Row("table_out", ("scale_shift_table",), layout=AS_IT_IS),
        Row("out", ("proj_out",)),
    )


def _two_layers(ours: str, theirs: str) -> tuple[Row, Row]:
    return Row(f"{ours}_0", (f"{theirs}.linear_1",)), Row(f"{ours}_1", (f"{theirs}.linear_2",))
