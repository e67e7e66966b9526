"""SD3's and SD3.5's published transformers, as diffusers saves them (`SD3Transformer2DModel`)."""

from collections.abc import Mapping

import numpy as np

from jaxdiff.core.types import Params
from jaxdiff.networks.mmdit import MMDiT, groups
from jaxdiff.pretrained import rows as tables
from jaxdiff.pretrained.fields import Json, check, whole, wholes
from jaxdiff.pretrained.rows import IN_ONE, Row, channels_of, patches, shapes_of

BLOCK = "transformer_blocks.{}."
READ = (
    "attention_head_dim",
    "dual_attention_layers",
    "in_channels",
    "joint_attention_dim",
    "num_attention_heads",
    "num_layers",
    "patch_size",
    "pooled_projection_dim",
    "pos_embed_max_size",
    "sample_size",
)


def mmdit_config(json: Json) -> MMDiT:
    """The network of a published config.json. Raises ValueError that names a field which it cannot honour."""
    heads, depth = whole(json, "num_attention_heads", 18), whole(json, "num_layers", 18)
    width, patch = heads * whole(json, "attention_head_dim", 64), whole(json, "patch_size", 2)
    inputs = whole(json, "in_channels", 16)
    only = {"out_channels": (None, inputs), "qk_norm": (None, "rms_norm"), "caption_projection_dim": (width,)}
    check({"caption_projection_dim": 1152, **json}, READ, only)
    layers = wholes(json, "dual_attention_layers", ())
    if layers != tuple(range(len(layers))) or len(layers) >= depth:
        raise ValueError(
            f"config.json: dual_attention_layers = {list(layers)} is not supported: the first ones, and not the last"
        )
    return MMDiT(
        patch=patch,
        width=width,
        depth=depth,
        heads=heads,
        dual=len(layers),
        qk_norm=json.get("qk_norm") is not None,
        grid=whole(json, "pos_embed_max_size", 96),
        extent=float(whole(json, "sample_size", 128) // patch),
        text_width=whole(json, "joint_attention_dim", 4096),
        text_pooled=whole(json, "pooled_projection_dim", 2048),
    )


def config_json(network: MMDiT, channels: int) -> dict[str, object]:
    """The config.json with which diffusers reads what `dump` gives: the inverse of `mmdit_config`."""
    return {
        "_class_name": "SD3Transformer2DModel",
        "attention_head_dim": network.width // network.heads,
        "caption_projection_dim": network.width,
        "dual_attention_layers": list(range(network.dual)),
        "in_channels": channels,
        "joint_attention_dim": network.text_width,
        "num_attention_heads": network.heads,
        "num_layers": network.depth,
        "out_channels": channels,
        "patch_size": network.patch,
        "pooled_projection_dim": network.text_pooled,
        "pos_embed_max_size": network.grid,
        "qk_norm": "rms_norm" if network.qk_norm else None,
        "sample_size": int(network.extent) * network.patch,
    }


def load(arrays: Mapping[str, np.ndarray], network: MMDiT) -> Params:
    """Parameters from the tensors of a file. Raises ValueError where they are not exactly this network's."""
    channels = channels_of(arrays, "pos_embed.proj.weight")
    return tables.load(arrays, shapes_of(network, channels, network.patch), rows(network))


def dump(params: Params, network: MMDiT) -> dict[str, np.ndarray]:
    """The tensors of diffusers' file: what `load` was given, bit for bit."""
    return tables.dump(params, rows(network))


def rows(network: MMDiT) -> tuple[Row, ...]:
    """What diffusers calls the layers of this network."""
    blocks, first = [], 0
    for name, count, _, _ in groups(network):
        blocks += joint_rows(name, range(first, first + count))
        first += count
    return (
        Row("patches", ("pos_embed.proj",), layout=patches(network.patch)),
        Row("positions", ("pos_embed.pos_embed",), layout=IN_ONE),
        *EMBEDDINGS,
        *blocks,
        *ENDS,
    )


EMBEDDINGS = (
    Row("noise_0", ("time_text_embed.timestep_embedder.linear_1",)),
    Row("noise_1", ("time_text_embed.timestep_embedder.linear_2",)),
    Row("pooled_0", ("time_text_embed.text_embedder.linear_1",)),
    Row("pooled_1", ("time_text_embed.text_embedder.linear_2",)),
    Row("text", ("context_embedder",)),
)
"""What FLUX.1 calls the same."""

ENDS = (Row("modulation_out", ("norm_out.linear",)), Row("out", ("proj_out",)))
"""What FLUX.1 calls the same."""


def joint_rows(group: str, blocks: range) -> list[Row]:
    """The rows of a stack of blocks with two streams; diffusers calls those of FLUX.1 the same."""
    layers = {
        "modulation": ("norm1.linear",),
        "qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
        "norm_q": ("attn.norm_q",),
        "norm_k": ("attn.norm_k",),
        "out": ("attn.to_out.0",),
        "mlp_0": ("ff.net.0.proj",),
        "mlp_1": ("ff.net.2",),
        "text_modulation": ("norm1_context.linear",),
        "text_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
        "text_norm_q": ("attn.norm_added_q",),
        "text_norm_k": ("attn.norm_added_k",),
        "text_out": ("attn.to_add_out",),
        "text_mlp_0": ("ff_context.net.0.proj",),
        "text_mlp_1": ("ff_context.net.2",),
        "dual_qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
        "dual_norm_q": ("attn2.norm_q",),
        "dual_norm_k": ("attn2.norm_k",),
        "dual_out": ("attn2.to_out.0",),
    }
    return [Row(f"{group}.{ours}", tuple(BLOCK + name for name in names), blocks) for ours, names in layers.items()]
