"""BERT: tokens of a text that all see each other, the encoder under many sentence embeddings.

    embed    norm(token + position + type 0)
    block    x = norm_0(x + attention(x))
             x = norm_1(x + mlp(x))                 mlp = dense(gelu(dense(x)))

The norms come after the sums, unlike in `vit.py`. Tokens that only fill a text up are seen by none.
Source: arXiv:1810.04805, Sec. 3, with the block of arXiv:1706.03762, Sec. 3.1.
"""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdiff.networks.layers import dense
from jaxdiff.networks.vit import gelu, layer_norm

NORM_EPS = 1e-12
"""Added to the variance in every layer norm."""


class Bert(nn.Module):
    """The encoder: ``(tokens [b, n], mask [b, n]) -> [b, n, width]``, float32.

    The parameters of the blocks are stacked along a first axis of length `depth`. Raises ValueError for a text of more
    than `length` tokens.
    """

    width: int = 384
    """Channels of a token."""
    depth: int = 6
    """Number of blocks."""
    heads: int = 12
    """Attention heads."""
    hidden: int = 1536
    """Hidden channels of the MLP."""
    vocab: int = 30522
    """Number of entries of the vocabulary."""
    length: int = 512
    """Most tokens of a text."""
    types: int = 2
    """Kinds of texts that were told apart in training; all tokens are of the first."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute type; parameters, norm statistics, softmax and output are float32."""

    @nn.compact
    def __call__(self, tokens: Int[Array, "b n"], mask: Bool[Array, "b n"]) -> Float[Array, "b n width"]:
        n = tokens.shape[1]
        if n > self.length:
            raise ValueError(f"texts of {n} tokens are not allowed: at most {self.length} (--text-length)")
        init = nn.initializers.normal(0.02)
        h = nn.Embed(self.vocab, self.width, embedding_init=init, name="tokens")(tokens)
        h += self.param("positions", init, (self.length, self.width))[:n]
        h += self.param("types", init, (self.types, self.width))[0]
        h = layer_norm(NORM_EPS, "norm_in")(h).astype(self.dtype)
        scan = nn.scan(
            Block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,  # pyright: ignore[reportArgumentType]
            length=self.depth,
        )
        # Products in full, as in `frozen.py`: attention takes its precision only from here.
        with jax.default_matmul_precision("highest"):
            h, _ = scan(self.heads, self.hidden, self.dtype, name="blocks")(h, mask)
        return h.astype(jnp.float32)


class Block(nn.Module):
    """One block, in the shape that `nn.scan` takes: ``(x, mask) -> (x, None)``."""

    heads: int
    hidden: int
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], mask: Bool[Array, "b n"]) -> tuple[Float[Array, "b n d"], None]:
        b, n, d = x.shape
        qkv = dense(3 * d, self.dtype, 1.0, "qkv")(x).reshape(b, n, 3, self.heads, d // self.heads)
        h = jax.nn.dot_product_attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], mask=mask[:, None, None, :])
        h = dense(d, self.dtype, 1.0, "out")(h.reshape(b, n, d))
        x = layer_norm(NORM_EPS, "norm_0")(x + h).astype(x.dtype)
        h = dense(d, self.dtype, 1.0, "mlp_1")(gelu(dense(self.hidden, self.dtype, 1.0, "mlp_0")(x)))
        return layer_norm(NORM_EPS, "norm_1")(x + h).astype(x.dtype), None
