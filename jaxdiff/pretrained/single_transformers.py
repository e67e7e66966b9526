"""The transformers in single files of SD3, SD3.5 and FLUX.1: their config.json and tensors as diffusers has them.

There queries, keys and values are one layer, in FLUX.1's blocks of one stream with the MLP's first one; the two halves
of the last modulations, and of SD3's last block's for the text, lie the other way round.
"""

import math
import re
from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

import numpy as np

from jaxdiff.networks.flux import PATCH
from jaxdiff.pretrained import flux, mmdit, rows
from jaxdiff.pretrained.exchange import Shape
from jaxdiff.pretrained.fields import Json
from jaxdiff.pretrained.pieces import Piece, Pieces, pieced, swapped

SD3_FIRST, FLUX_FIRST = "joint_blocks.0.x_block.attn.qkv.weight", "double_blocks.0.img_attn.qkv.weight"
GUIDANCE = "guidance_in.in_layer.weight"
"""Of FLUX.1-dev, whose network is told a guidance scale."""

SD3_HEAD = 64
"""Channels of an attention head in all of SD3 and SD3.5."""

SD3: Pieces = {
    "pos_embed.pos_embed": Piece("pos_embed"),
    "pos_embed.proj": Piece("x_embedder.proj"),
    "time_text_embed.timestep_embedder.linear_1": Piece("t_embedder.mlp.0"),
    "time_text_embed.timestep_embedder.linear_2": Piece("t_embedder.mlp.2"),
    "time_text_embed.text_embedder.linear_1": Piece("y_embedder.mlp.0"),
    "time_text_embed.text_embedder.linear_2": Piece("y_embedder.mlp.2"),
    "context_embedder": Piece("context_embedder"),
    "norm_out.linear": Piece("final_layer.adaLN_modulation.1", change=swapped),
    "proj_out": Piece("final_layer.linear"),
}
"""diffusers' layers outside of blocks, and those of the published file."""

FLUX: Pieces = {
    "x_embedder": Piece("img_in"),
    "time_text_embed.timestep_embedder.linear_1": Piece("time_in.in_layer"),
    "time_text_embed.timestep_embedder.linear_2": Piece("time_in.out_layer"),
    "time_text_embed.text_embedder.linear_1": Piece("vector_in.in_layer"),
    "time_text_embed.text_embedder.linear_2": Piece("vector_in.out_layer"),
    "time_text_embed.guidance_embedder.linear_1": Piece("guidance_in.in_layer"),
    "time_text_embed.guidance_embedder.linear_2": Piece("guidance_in.out_layer"),
    "context_embedder": Piece("txt_in"),
    "norm_out.linear": Piece("final_layer.adaLN_modulation.1", change=swapped),
    "proj_out": Piece("final_layer.linear"),
}


def _thirds(theirs: tuple[str, str, str], name: str) -> dict[str, Piece]:
    return {new: Piece(name, i, i + 1, 3) for i, new in enumerate(theirs)}


QKV, TEXT_QKV = ("attn.to_q", "attn.to_k", "attn.to_v"), ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")

LAST_SWAPPED = "norm1_context.linear"
"""The layer whose halves lie the other way round in SD3's last block."""

SD3_BLOCK: Pieces = {
    "norm1.linear": Piece("x_block.adaLN_modulation.1"),
    **_thirds(QKV, "x_block.attn.qkv"),
    "attn.norm_q": Piece("x_block.attn.ln_q"),
    "attn.norm_k": Piece("x_block.attn.ln_k"),
    "attn.to_out.0": Piece("x_block.attn.proj"),
    "ff.net.0.proj": Piece("x_block.mlp.fc1"),
    "ff.net.2": Piece("x_block.mlp.fc2"),
    **_thirds(("attn2.to_q", "attn2.to_k", "attn2.to_v"), "x_block.attn2.qkv"),
    "attn2.norm_q": Piece("x_block.attn2.ln_q"),
    "attn2.norm_k": Piece("x_block.attn2.ln_k"),
    "attn2.to_out.0": Piece("x_block.attn2.proj"),
    "norm1_context.linear": Piece("context_block.adaLN_modulation.1"),
    **_thirds(TEXT_QKV, "context_block.attn.qkv"),
    "attn.norm_added_q": Piece("context_block.attn.ln_q"),
    "attn.norm_added_k": Piece("context_block.attn.ln_k"),
    "attn.to_add_out": Piece("context_block.attn.proj"),
    "ff_context.net.0.proj": Piece("context_block.mlp.fc1"),
    "ff_context.net.2": Piece("context_block.mlp.fc2"),
}

FLUX_BLOCK: Pieces = {
    "norm1.linear": Piece("img_mod.lin"),
    **_thirds(QKV, "img_attn.qkv"),
    "attn.norm_q": Piece("img_attn.norm.query_norm"),
    "attn.norm_k": Piece("img_attn.norm.key_norm"),
    "attn.to_out.0": Piece("img_attn.proj"),
    "ff.net.0.proj": Piece("img_mlp.0"),
    "ff.net.2": Piece("img_mlp.2"),
    "norm1_context.linear": Piece("txt_mod.lin"),
    **_thirds(TEXT_QKV, "txt_attn.qkv"),
    "attn.norm_added_q": Piece("txt_attn.norm.query_norm"),
    "attn.norm_added_k": Piece("txt_attn.norm.key_norm"),
    "attn.to_add_out": Piece("txt_attn.proj"),
    "ff_context.net.0.proj": Piece("txt_mlp.0"),
    "ff_context.net.2": Piece("txt_mlp.2"),
}

FLUX_SINGLE: Pieces = {
    "norm.linear": Piece("modulation.lin"),
    **{new: Piece("linear1", i, i + 1, 7) for i, new in enumerate(QKV)},
    "proj_mlp": Piece("linear1", 3, 7, 7),  # four times as wide
    "attn.norm_q": Piece("norm.query_norm"),
    "attn.norm_k": Piece("norm.key_norm"),
    "proj_out": Piece("linear2"),
}


class Group(NamedTuple):
    """A stack of equal blocks, by diffusers' name of it."""

    name: str
    """Of the stack in the published file."""
    layers: Pieces
    """In a block."""


Groups: TypeAlias = Mapping[str, Group]

SD3_GROUPS: Groups = {"transformer_blocks": Group("joint_blocks", SD3_BLOCK)}
FLUX_GROUPS: Groups = {
    "transformer_blocks": Group("double_blocks", FLUX_BLOCK),
    "single_transformer_blocks": Group("single_blocks", FLUX_SINGLE),
}


def layers_of(outside: Pieces, groups: Groups) -> dict[str, tuple[str, ...]]:
    """Of each published layer the diffusers' layers that lie in it, with "{}" in place of the number of a block.

    Layers are left out whose halves are the other way round there, in SD3 those of one block among them.
    """
    tables = [("", "", outside)]
    tables += [(f"{new}.{{}}.", f"{group.name}.{{}}.", group.layers) for new, group in groups.items()]
    found: dict[str, tuple[str, ...]] = {}
    for new, old, pieces in tables:
        for name, piece in pieces.items():
            if piece.change is None and not (pieces is SD3_BLOCK and name == LAST_SWAPPED):
                found[old + piece.name] = (*found.get(old + piece.name, ()), new + name)
    return found


def sd3_json(arrays: Mapping[str, np.ndarray], size: int) -> dict[str, object]:
    """The config.json of the network of these tensors. Raises ValueError where one that tells it is missing."""
    width, channels, patch = _shape(arrays, "x_embedder.proj.weight", 4)[:3]
    return {
        "_class_name": "SD3Transformer2DModel",
        "attention_head_dim": SD3_HEAD,
        "caption_projection_dim": width,
        "dual_attention_layers": sorted(_numbers(arrays, r"joint_blocks\.(\d+)\.x_block\.attn2\.")),
        "in_channels": channels,
        "joint_attention_dim": _shape(arrays, "context_embedder.weight")[1],
        "num_attention_heads": width // SD3_HEAD,
        "num_layers": 1 + max(_numbers(arrays, r"joint_blocks\.(\d+)\.")),
        "out_channels": channels,
        "patch_size": patch,
        "pooled_projection_dim": _shape(arrays, "y_embedder.mlp.0.weight")[1],
        "pos_embed_max_size": math.isqrt(_shape(arrays, "pos_embed", 3)[1]),
        "qk_norm": "rms_norm" if any(name.endswith(".ln_q.weight") for name in arrays) else None,
        "sample_size": size,
    }


def flux_json(arrays: Mapping[str, np.ndarray], size: int) -> dict[str, object]:
    """The same of FLUX.1; its network has no size."""
    del size
    head = "double_blocks.0.img_attn.norm.query_norm.scale"
    width, inputs = _shape(arrays, "img_in.weight")
    (channels,) = _shape(arrays, head, 1)
    return {
        "_class_name": "FluxTransformer2DModel",
        "attention_head_dim": channels,
        "guidance_embeds": GUIDANCE in arrays,
        "in_channels": inputs,
        "joint_attention_dim": _shape(arrays, "txt_in.weight")[1],
        "num_attention_heads": width // channels,
        "num_layers": 1 + max(_numbers(arrays, r"double_blocks\.(\d+)\.")),
        "num_single_layers": 1 + max(_numbers(arrays, r"single_blocks\.(\d+)\."), default=-1),
        "patch_size": 1,
        "pooled_projection_dim": _shape(arrays, "vector_in.in_layer.weight")[1],
    }


def sd3_tensors(arrays: Mapping[str, np.ndarray], json: Json, where: str) -> dict[str, np.ndarray]:
    """The tensors of diffusers' file. Raises ValueError as `pieced`."""
    network = mmdit.mmdit_config(json)
    channels = _shape(arrays, "x_embedder.proj.weight", 4)[1]
    shapes = rows.published(rows.shapes_of(network, channels, network.patch), mmdit.rows(network))
    last = f"transformer_blocks.{network.depth - 1}.{LAST_SWAPPED}"
    pieces = {
        name: piece._replace(change=swapped) if name.startswith(last) else piece
        for name, piece in _pieces(shapes, SD3, SD3_GROUPS).items()
    }
    return pieced(arrays, pieces, shapes, where)


def flux_tensors(arrays: Mapping[str, np.ndarray], json: Json, where: str) -> dict[str, np.ndarray]:
    """The tensors of diffusers' file. Raises ValueError as `pieced`."""
    network = flux.flux_config(json)
    channels = max(1, _shape(arrays, "img_in.weight")[1] // PATCH**2)
    shapes = rows.published(rows.shapes_of(network, channels, PATCH), flux.rows(network))
    return pieced(arrays, _pieces(shapes, FLUX, FLUX_GROUPS), shapes, where)


def _pieces(shapes: Mapping[str, Shape], outside: Pieces, groups: Groups) -> dict[str, Piece]:
    """The pieces of diffusers' tensors, from tables of layers."""
    found = {}
    for name in shapes:
        layer, _, kind = name.rpartition(".")
        match = re.fullmatch(r"(\w+)\.(\d+)\.(.+)", layer)
        if match and match[1] in groups:
            group = groups[match[1]]
            piece, place = group.layers[match[3]], f"{group.name}.{match[2]}."
        elif name in outside:  # a parameter outside of layers
            found[name] = outside[name]
            continue
        else:
            piece, place = outside[layer], ""
        kind = "scale" if piece.name.endswith("_norm") else kind  # FLUX.1's norms have a scale
        found[name] = piece._replace(name=f"{place}{piece.name}.{kind}")
    return found


def _numbers(arrays: Mapping[str, np.ndarray], pattern: str) -> set[int]:
    return {int(found[1]) for name in arrays if (found := re.match(pattern, name))}


def _shape(arrays: Mapping[str, np.ndarray], name: str, ndim: int = 2) -> tuple[int, ...]:
    if name not in arrays or arrays[name].ndim != ndim:
        raise ValueError(f"weights of another network: {name} is missing, or has other axes than {ndim}")
    return arrays[name].shape
