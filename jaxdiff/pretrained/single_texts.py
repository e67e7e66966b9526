"""Text encoders in single files: their config.json and tensors as transformers has them.

A file holds CLIP in transformers' own names or in those of OpenCLIP, where queries, keys and values are one layer and
the projection multiplies from the right; and T5 in transformers' own names.
"""

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.networks.clip import HEAD_CHANNELS
from jaxdiff.pretrained import t5
from jaxdiff.pretrained.exchange import Shape
from jaxdiff.pretrained.pieces import Piece, pieced

Arrays = Mapping[str, np.ndarray]

PROJECTION = "text_projection.weight"
SILENT = re.compile(r"(.*\.)?(position_ids|logit_scale|attn_mask)")
"""Constants and what belongs to the vision tower, which lie beside the text tower's tensors."""

LAYERS: Mapping[str, str] = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
"""transformers' layers in a block, and OpenCLIP's."""


class TextPart(NamedTuple):
    """An encoder as transformers has it."""

    kind: str
    """Its class."""
    json: Mapping[str, object]
    arrays: Arrays


def clip_part(arrays: Arrays, where: str, activation: str, projected: bool) -> TextPart:
    """CLIP's text tower in transformers' names, with its projection or without; one that is left out is the identity.

    Raises ValueError as `pieced`.
    """
    arrays = {name: array for name, array in arrays.items() if not SILENT.fullmatch(name)}
    blocks = _blocks(arrays, r"text_model\.encoder\.layers\.(\d+)\.")
    tokens = _shape(arrays, where, "text_model.embeddings.token_embedding.weight")
    positions = _shape(arrays, where, "text_model.embeddings.position_embedding.weight")
    json = _json(tokens, positions, blocks, activation, projected)
    if not projected:
        arrays = {name: array for name, array in arrays.items() if name != PROJECTION}
    elif PROJECTION not in arrays:
        arrays = {**arrays, PROJECTION: np.eye(tokens[1], dtype=np.float32)}
    shapes = _shapes(json, blocks, projected)
    return TextPart(_class(projected), json, pieced(arrays, {name: Piece(name) for name in shapes}, shapes, where))


def open_clip_part(arrays: Arrays, where: str, projected: bool) -> TextPart:
    """CLIP's text tower in OpenCLIP's names.

    Where it is not `projected`, as in Stable Diffusion 2, the network reads what the last block is given, and this
    block is left out. Raises ValueError as `pieced`.
    """
    pattern = r"transformer\.resblocks\.(\d+)\."
    arrays = {name: array for name, array in arrays.items() if not SILENT.fullmatch(name)}
    blocks = _blocks(arrays, pattern) - (not projected)
    if not projected:
        last = f"transformer.resblocks.{blocks}."
        arrays = {n: array for n, array in arrays.items() if not n.startswith(last) and n != "text_projection"}
    tokens, positions = (_shape(arrays, where, name) for name in ("token_embedding.weight", "positional_embedding"))
    json = _json(tokens, positions, blocks, "gelu", projected)
    pieces = {
        "text_model.embeddings.token_embedding.weight": Piece("token_embedding.weight"),
        "text_model.embeddings.position_embedding.weight": Piece("positional_embedding"),
        **{f"text_model.final_layer_norm.{kind}": Piece(f"ln_final.{kind}") for kind in ("weight", "bias")},
        PROJECTION: Piece("text_projection", change=np.transpose),
    }
    for i in range(blocks):
        new, old = f"text_model.encoder.layers.{i}.", f"transformer.resblocks.{i}."
        for kind in ("weight", "bias"):
            pieces |= {f"{new}{ours}.{kind}": Piece(f"{old}{theirs}.{kind}") for ours, theirs in LAYERS.items()}
            for part, letter in enumerate("qkv"):
                piece = Piece(f"{old}attn.in_proj_{kind}", part, part + 1, 3)
                pieces[f"{new}self_attn.{letter}_proj.{kind}"] = piece
    return TextPart(_class(projected), json, pieced(arrays, pieces, _shapes(json, blocks, projected), where))


def t5_part(arrays: Arrays, where: str) -> TextPart:
    """T5 v1.1's encoder in transformers' names. Raises ValueError as `pieced`."""
    arrays = {name: array for name, array in arrays.items() if name != t5.EMBEDDINGS[1]}
    first = "encoder.block.0.layer.0.SelfAttention."
    vocab, width = _shape(arrays, where, t5.EMBEDDINGS[0])
    buckets, heads = _shape(arrays, where, f"{first}relative_attention_bias.weight")
    json = {
        "architectures": ["T5EncoderModel"],
        "model_type": "t5",
        "d_ff": _shape(arrays, where, "encoder.block.0.layer.1.DenseReluDense.wi_0.weight")[0],
        "d_kv": _shape(arrays, where, f"{first}q.weight")[0] // heads,
        "d_model": width,
        "feed_forward_proj": "gated-gelu",
        "layer_norm_epsilon": 1e-6,
        "num_heads": heads,
        "num_layers": _blocks(arrays, r"encoder\.block\.(\d+)\."),
        "relative_attention_max_distance": 128,
        "relative_attention_num_buckets": buckets,
        "tie_word_embeddings": False,
        "vocab_size": vocab,
    }
    network = t5.t5_config(json)
    tree = jax.eval_shape(network.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 1), jnp.int32))["params"]
    # One number looked at from everywhere: nothing is allocated.
    empty = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), tree)
    shapes = {name: array.shape for name, array in t5.dump(empty, network).items()}
    return TextPart("T5EncoderModel", json, pieced(arrays, {name: Piece(name) for name in shapes}, shapes, where))


class Reader(NamedTuple):
    """Where an encoder lies in a file, and how it is read."""

    folder: str
    """diffusers' name of the part."""
    read: Callable[[Arrays, str], TextPart]
    pad: str
    """The token that fills texts up; "" for none that is CLIP's."""


START, END, BANG = "<|startoftext|>", "<|endoftext|>", "!"
READERS: Mapping[str, Reader] = {
    # Stable Diffusion 1 and 2.
    "cond_stage_model.transformer.": Reader("text_encoder", lambda a, w: clip_part(a, w, "quick_gelu", False), END),
    "cond_stage_model.model.": Reader("text_encoder", lambda a, w: open_clip_part(a, w, False), BANG),
    # SDXL.
    "conditioner.embedders.0.transformer.": Reader(
        "text_encoder", lambda a, w: clip_part(a, w, "quick_gelu", False), END
    ),
    "conditioner.embedders.1.model.": Reader("text_encoder_2", lambda a, w: open_clip_part(a, w, True), BANG),
    # SD3 and SD3.5.
    "text_encoders.clip_l.transformer.": Reader("text_encoder", lambda a, w: clip_part(a, w, "quick_gelu", True), END),
    "text_encoders.clip_g.transformer.": Reader("text_encoder_2", lambda a, w: clip_part(a, w, "gelu", True), BANG),
    "text_encoders.t5xxl.transformer.": Reader("text_encoder_3", t5_part, ""),
}
"""By what stands before the names of the tensors."""


def _class(projected: bool) -> str:
    return "CLIPTextModelWithProjection" if projected else "CLIPTextModel"


def _json(tokens: Shape, positions: Shape, blocks: int, activation: str, projected: bool) -> dict[str, object]:
    vocab, width = tokens
    return {
        "architectures": [_class(projected)],
        "model_type": "clip_text_model",
        "hidden_act": activation,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": positions[0],
        "num_attention_heads": width // HEAD_CHANNELS,
        "num_hidden_layers": blocks,
        "projection_dim": width,
        "vocab_size": vocab,
        "bos_token_id": 0,
        "eos_token_id": 2,  # what the published ones say, which means the highest token
        "pad_token_id": 1,
    }


def _shapes(json: Mapping[str, object], blocks: int, projected: bool) -> dict[str, Shape]:
    """transformers' tensors of such a tower."""
    vocab, width, length = (int(str(json[key])) for key in ("vocab_size", "hidden_size", "max_position_embeddings"))
    wide = 4 * width
    norm = {"weight": (width,), "bias": (width,)}
    block = {
        **{f"layer_norm{i}.{kind}": shape for i in (1, 2) for kind, shape in norm.items()},
        **{f"self_attn.{name}_proj.bias": (width,) for name in ("q", "k", "v", "out")},
        **{f"self_attn.{name}_proj.weight": (width, width) for name in ("q", "k", "v", "out")},
        "mlp.fc1.weight": (wide, width),
        "mlp.fc1.bias": (wide,),
        "mlp.fc2.weight": (width, wide),
        "mlp.fc2.bias": (width,),
    }
    return {
        "text_model.embeddings.token_embedding.weight": (vocab, width),
        "text_model.embeddings.position_embedding.weight": (length, width),
        **{f"text_model.encoder.layers.{i}.{name}": shape for i in range(blocks) for name, shape in block.items()},
        **{f"text_model.final_layer_norm.{kind}": shape for kind, shape in norm.items()},
        **({PROJECTION: (width, width)} if projected else {}),
    }


def _blocks(arrays: Arrays, pattern: str) -> int:
    return 1 + max((int(found[1]) for name in arrays if (found := re.match(pattern, name))), default=-1)


def _shape(arrays: Arrays, where: str, name: str) -> tuple[int, int]:
    if name not in arrays or arrays[name].ndim != 2:
        raise ValueError(f"weights of another network: {where}{name} is missing, or is no matrix")
    rows, columns = arrays[name].shape
    return rows, columns
