"""T5 v1.1's encoders, as transformers publishes them: `T5EncoderModel`, or the encoder of a whole T5.

The embeddings of the tokens stand in a file once or twice, "shared.weight" and "encoder.embed_tokens.weight".
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.core.types import Params
from jaxdiff.networks.t5 import T5
from jaxdiff.pretrained import both_ways, sentencepiece
from jaxdiff.pretrained.both_ways import Pairs, rules
from jaxdiff.pretrained.tokens import Tokenize, from_json, rows_by
from jaxdiff.pretrained.vit import join, rename, stacked_layout
from jaxdiff.pretrained.weights import fill

PAIRS: Pairs = (
    ("shared.", "tokens."),
    ("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.", "positions."),
    ("encoder.final_layer_norm.", "norm_out."),
    ("encoder.block.", "blocks."),
    (".layer.0.layer_norm.", ".norm_0."),
    (".layer.0.SelfAttention.q.", ".q."),
    (".layer.0.SelfAttention.k.", ".k."),
    (".layer.0.SelfAttention.v.", ".v."),
    (".layer.0.SelfAttention.o.", ".out."),
    (".layer.1.layer_norm.", ".norm_1."),
    (".layer.1.DenseReluDense.wi_0.", ".mlp_gate."),
    (".layer.1.DenseReluDense.wi_1.", ".mlp_value."),
    (".layer.1.DenseReluDense.wo.", ".mlp_out."),
)

END, PAD = "</s>", "<pad>"

OTHERS = ((r"^decoder\..*$", ""), (r"^lm_head\..*$", ""))
"""The other half of a whole T5."""

EMBEDDINGS = ("shared.weight", "encoder.embed_tokens.weight")
"""One tensor under two names."""


def t5_config(json: Mapping[str, object], dtype: Literal["float32", "bfloat16"] = "float32") -> T5:
    """The encoder of a published config.json. Raises ValueError that names a field which is missing or not v1.1's."""
    kind = json.get("feed_forward_proj", "relu")
    if kind != "gated-gelu":
        raise ValueError(f"T5's config.json: feed_forward_proj = {kind!r} is not allowed: gated-gelu, of version 1.1")

    def whole(name: str, default: int | None = None) -> int:
        value = json.get(name, default)
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"T5's config.json: {name} = {value!r} is not allowed: a positive integer")
        return value

    eps = json.get("layer_norm_epsilon", 1e-6)
    if not isinstance(eps, float):
        raise ValueError(f"T5's config.json: layer_norm_epsilon = {eps!r} is not allowed: a number")
    return T5(
        width=whole("d_model"),
        depth=whole("num_layers"),
        heads=whole("num_heads"),
        head_channels=whole("d_kv"),
        hidden=whole("d_ff"),
        vocab=whole("vocab_size"),
        buckets=whole("relative_attention_num_buckets", 32),
        distance=whole("relative_attention_max_distance", 128),
        norm_eps=eps,
        dtype=dtype,
    )


def load(arrays: Mapping[str, np.ndarray], network: T5) -> Params:
    """Parameters from the tensors of a file. Raises ValueError where they are not exactly this network's."""
    arrays = dict(arrays)
    first, second = EMBEDDINGS
    if second in arrays:
        twin = arrays.pop(second)
        if not np.array_equal(arrays.setdefault(first, twin), twin):
            raise ValueError(f"weights of another network: {first} and {second} differ")
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    shapes = jax.eval_shape(network.init, jax.random.key(0), tokens)["params"]
    return fill(join(rename(arrays, OTHERS + rules(PAIRS))), shapes, layout=stacked_layout)


def dump(params: Mapping[str, object], network: T5) -> dict[str, np.ndarray]:
    """The tensors of a `T5EncoderModel`'s file, the embeddings once: what `load` was given, bit for bit."""
    del network
    return both_ways.dump(params, PAIRS)


def open_tokenizer(folder: Path, length: int) -> Tokenize:
    """The tokenizer in a folder of transformers', a tokenizer.json or a spiece.model.

    Each text becomes its pieces and the end, and is filled up with pads. Raises FileNotFoundError where there is none,
    ValueError for another kind.
    """
    file = folder / "tokenizer.json"
    if file.is_file():
        tokenizer = from_json(file)
    else:
        file = folder / "spiece.model"
        if not file.is_file():
            raise FileNotFoundError(f"there is no {folder / 'tokenizer.json'}, and no spiece.model beside it")
        tokenizer = sentencepiece.read(file, END)
    end, pad, empty = tokenizer.token_to_id(END), tokenizer.token_to_id(PAD), tokenizer.encode("").ids
    if end is None or pad is None or empty != [end]:
        raise ValueError(f"{file}: an empty text has the tokens {empty}, not the end alone: use T5's tokenizer")
    return rows_by(tokenizer, length, pad)
