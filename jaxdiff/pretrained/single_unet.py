"""The U-Net in a single file of Stable Diffusion 1, 2 or SDXL: its config.json and tensors as diffusers has them.

The shapes of the tensors tell all but the attention heads: 8 in Stable Diffusion 1, 64 channels each in the others,
which are those with linear layers before and after a transformer's blocks.
"""

import re
from collections.abc import Mapping

import numpy as np

from jaxdiff.networks.text_condition import SIZES
from jaxdiff.pretrained import exchange
from jaxdiff.pretrained.fields import Json
from jaxdiff.pretrained.pieces import between, pieced
from jaxdiff.pretrained.unet import unet_shapes
from jaxdiff.pretrained.unet_config import unet_config
from jaxdiff.pretrained.unet_names import diffusers_names, original_names

FIRST = "input_blocks.0.0.weight"
POOLED = "label_emb.0.0.weight"
"""Of SDXL: the first layer after the pooled text and the sizes."""

HEADS, HEAD_CHANNELS = 8, 64
SIZE_WAVES = 256
"""Waves of each size in SDXL."""


def is_linear(arrays: Mapping[str, np.ndarray]) -> bool:
    """Whether the transformers have linear layers at their ends, and not convolutions."""
    return any(name.endswith(".proj_in.weight") and array.ndim == 2 for name, array in arrays.items())


def unet_json(arrays: Mapping[str, np.ndarray], size: int) -> dict[str, object]:
    """The config.json of the network of these tensors. Raises ValueError where one that tells it is missing."""
    levels = _levels(arrays)
    widths, depths = (list(column) for column in zip(*((width, depth) for width, depth, _ in levels), strict=True))
    context = next((a for name, a in arrays.items() if name.endswith(".attn2.to_k.weight")), None)
    if context is None or not any(depths):
        raise ValueError("weights of another network: no attention to texts")
    linear = is_linear(arrays)
    kinds = ["CrossAttn" if depth else "" for depth in depths]
    fields: dict[str, object] = {
        "_class_name": "UNet2DConditionModel",
        "sample_size": size,
        "in_channels": _shape(arrays, FIRST)[1],
        "out_channels": _shape(arrays, "out.2.weight")[0],
        "block_out_channels": widths,
        "layers_per_block": levels[0][2],
        "down_block_types": [f"{kind}DownBlock2D" for kind in kinds],
        "up_block_types": [f"{kind}UpBlock2D" for kind in reversed(kinds)],
        "cross_attention_dim": context.shape[-1],
        "attention_head_dim": [width // HEAD_CHANNELS for width in widths] if linear else HEADS,
        "transformer_layers_per_block": [depth or 1 for depth in depths[:-1]] + [_depth(arrays, "middle_block.1")],
        "use_linear_projection": linear,
    }
    if POOLED in arrays:
        fields["addition_embed_type"] = "text_time"
        fields["addition_time_embed_dim"] = SIZE_WAVES
        fields["projection_class_embeddings_input_dim"] = _shape(arrays, POOLED)[1]
    return fields


def pooled_width(json: Json) -> int:
    """Channels of the pooled text that the network of this config.json reads; 0 for none."""
    inputs = json.get("projection_class_embeddings_input_dim", 0)
    return inputs - SIZES * SIZE_WAVES if isinstance(inputs, int) and inputs else 0


def unet_tensors(arrays: Mapping[str, np.ndarray], json: Json, where: str) -> dict[str, np.ndarray]:
    """The tensors of diffusers' file. Raises ValueError as `pieced`."""
    network = unet_config(json)
    shapes, theirs = unet_shapes(network, _shape(arrays, FIRST)[1]), diffusers_names(network)
    pieces = between(shapes, theirs, original_names(network))
    return pieced(arrays, pieces, exchange.torch_shapes(shapes, theirs), where)


def _levels(arrays: Mapping[str, np.ndarray]) -> list[tuple[int, int, int]]:
    """(channels, blocks of a transformer, residual blocks) of each level of the encoder."""
    numbers = {int(found[1]) for name in arrays if (found := re.match(r"input_blocks\.(\d+)\.", name))}
    levels: list[list[int]] = [[]]
    for number in sorted(numbers - {0}):
        if f"input_blocks.{number}.0.op.weight" in arrays:
            levels.append([])
        else:
            levels[-1].append(number)
    if not all(levels):
        raise ValueError("weights of another network: a level of the encoder has no residual blocks")
    return [
        (
            _shape(arrays, f"input_blocks.{numbers[0]}.0.out_layers.3.weight")[0],
            _depth(arrays, f"input_blocks.{numbers[0]}.1"),
            len(numbers),
        )
        for numbers in levels
    ]


def _depth(arrays: Mapping[str, np.ndarray], module: str) -> int:
    """Blocks of the transformer in this module."""
    pattern = re.compile(re.escape(module) + r"\.transformer_blocks\.(\d+)\.")
    return 1 + max((int(found[1]) for name in arrays if (found := pattern.match(name))), default=-1)


def _shape(arrays: Mapping[str, np.ndarray], name: str) -> tuple[int, ...]:
    if name not in arrays or arrays[name].ndim < 2:
        raise ValueError(f"weights of another network: {name} is missing, or is no layer")
    return arrays[name].shape
