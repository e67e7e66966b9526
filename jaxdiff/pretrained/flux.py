"""FLUX.1's published transformers, as diffusers saves them (`FluxTransformer2DModel`)."""

from collections.abc import Mapping

import numpy as np

from jaxdiff.core.types import Params
from jaxdiff.networks.flux import PATCH, Flux
from jaxdiff.pretrained import rows as tables
from jaxdiff.pretrained.fields import Json, check, flag, whole, wholes
from jaxdiff.pretrained.mmdit import EMBEDDINGS, ENDS, joint_rows
from jaxdiff.pretrained.rows import Row, channels_of, shapes_of

SINGLE = "single_transformer_blocks.{}."
READ = (
    "attention_head_dim",
    "axes_dims_rope",
    "guidance_embeds",
    "in_channels",
    "joint_attention_dim",
    "num_attention_heads",
    "num_layers",
    "num_single_layers",
    "pooled_projection_dim",
)


def flux_config(json: Json) -> Flux:
    """The network of a published config.json. Raises ValueError that names a field which it cannot honour."""
    inputs = whole(json, "in_channels", 64)
    check(json, READ, {"patch_size": (1,), "out_channels": (None, inputs)})
    axes = wholes(json, "axes_dims_rope", (16, 56, 56))
    if len(axes) != 3:
        raise ValueError(f"config.json: axes_dims_rope = {list(axes)} is not allowed: three numbers of channels")
    heads = whole(json, "num_attention_heads", 24)
    return Flux(
        width=heads * whole(json, "attention_head_dim", 128),
        depth=whole(json, "num_layers", 19),
        single_depth=whole(json, "num_single_layers", 38),
        heads=heads,
        axes=(axes[0], axes[1], axes[2]),
        guidance=flag(json, "guidance_embeds", False),
        text_width=whole(json, "joint_attention_dim", 4096),
        text_pooled=whole(json, "pooled_projection_dim", 768),
    )


def config_json(network: Flux, channels: int) -> dict[str, object]:
    """The config.json with which diffusers reads what `dump` gives: the inverse of `flux_config`.

    `channels` are those of the latents, four of which are one of diffusers' tokens.
    """
    return {
        "_class_name": "FluxTransformer2DModel",
        "attention_head_dim": network.width // network.heads,
        "axes_dims_rope": list(network.axes),
        "guidance_embeds": network.guidance,
        "in_channels": channels * PATCH**2,
        "joint_attention_dim": network.text_width,
        "num_attention_heads": network.heads,
        "num_layers": network.depth,
        "num_single_layers": network.single_depth,
        "patch_size": 1,
        "pooled_projection_dim": network.text_pooled,
    }


def load(arrays: Mapping[str, np.ndarray], network: Flux) -> Params:
    """Parameters from the tensors of a file. Raises ValueError where they are not exactly this network's."""
    channels = max(1, channels_of(arrays, "x_embedder.weight") // PATCH**2)
    return tables.load(arrays, shapes_of(network, channels, PATCH), rows(network))


def dump(params: Params, network: Flux) -> dict[str, np.ndarray]:
    """The tensors of diffusers' file: what `load` was given, bit for bit."""
    return tables.dump(params, rows(network))


def rows(network: Flux) -> tuple[Row, ...]:
    """What diffusers calls the layers of this network."""
    layers = {
        "modulation": ("norm.linear",),
        "qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
        "norm_q": ("attn.norm_q",),
        "norm_k": ("attn.norm_k",),
        "mlp_0": ("proj_mlp",),
        "out": ("proj_out",),
    }
    single = range(network.single_depth)
    return (
        Row("patches", ("x_embedder",)),
        *EMBEDDINGS,
        Row("guidance_0", ("time_text_embed.guidance_embedder.linear_1",)),
        Row("guidance_1", ("time_text_embed.guidance_embedder.linear_2",)),
        *joint_rows("blocks", range(network.depth)),
        *(
            Row(f"single_blocks.{ours}", tuple(SINGLE + name for name in names), single)
            for ours, names in layers.items()
        ),
        *ENDS,
    )
