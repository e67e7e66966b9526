"""T5's encoder, version 1.1: tokens of a text that all see each other, told apart by how far they are.

    block    x += attention(rms(x))             softmax(q k^T + bias[bucket(j - i), head]) v, not divided by sqrt(d)
             x += mlp(rms(x))                   dense(gelu(dense(x)) * dense(x))
    out      rms(x)                             rms(x) = scale * x / sqrt(mean(x^2) + eps)

No layer has a bias, and all blocks share one table of position biases. The gelu is the tanh approximation.
Source: arXiv:1910.10683, Sec. 2.1; gated layers arXiv:2002.05202.
"""

import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxdiff.networks.layers import dense


class T5(nn.Module):
    """The encoder: ``(tokens [b, n], mask [b, n]) -> [b, n, width]``, float32; by default "small".

    Tokens that `mask` leaves out are seen by none; without a mask every token is seen. The parameters of the blocks are
    stacked along a first axis of length `depth`.
    """

    width: int = 512
    """Channels of a token."""
    depth: int = 8
    """Number of blocks."""
    heads: int = 6
    """Attention heads."""
    head_channels: int = 64
    """Channels of a head; `heads` of them need not be as wide as a token."""
    hidden: int = 1024
    """Hidden channels of the MLP."""
    vocab: int = 32128
    """Number of entries of the vocabulary."""
    buckets: int = 32
    """Classes of distances, half of them for tokens before and half for those after."""
    distance: int = 128
    """Distances from here on are one class."""
    norm_eps: float = 1e-6
    """Added to the mean square in every norm."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute type of the layers; sums over blocks, norms, softmax and output are float32."""

    @nn.compact
    def __call__(self, tokens: Int[Array, "b n"], mask: Bool[Array, "b n"] | None = None) -> Float[Array, "b n width"]:
        n = tokens.shape[1]
        h = nn.Embed(self.vocab, self.width, embedding_init=nn.initializers.normal(1.0), name="tokens")(tokens)
        table = nn.Embed(self.buckets, self.heads, name="positions")
        bias = table(jnp.asarray(bucket(n, self.buckets, self.distance))).astype(jnp.float32)
        bias = jnp.moveaxis(bias, -1, 0)[None]
        seen = None if mask is None else mask[:, None, None, :]
        scan = nn.scan(
            Block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,  # pyright: ignore[reportArgumentType]
            length=self.depth,
        )
        block = scan(self.heads, self.head_channels, self.hidden, self.norm_eps, self.dtype, name="blocks")
        # Products in full, as in `frozen.py`: attention takes its precision only from here.
        with jax.default_matmul_precision("highest"):
            h, _ = block(h.astype(jnp.float32), bias, seen)
        return _norm(self.norm_eps, "norm_out")(h)


class Block(nn.Module):
    """One block, in the shape that `nn.scan` takes: ``(x, bias, seen) -> (x, None)``."""

    heads: int
    head_channels: int
    hidden: int
    norm_eps: float
    dtype: str

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n d"], bias: Float[Array, "1 heads n n"], seen: Bool[Array, "b 1 1 n"] | None
    ) -> tuple[Float[Array, "b n d"], None]:
        b, n, d = x.shape
        inner = self.heads * self.head_channels
        # The sums stay float32: in T5 a few channels grow huge, and bfloat16 would lose the others beside them.
        h = dense(3 * inner, self.dtype, 1.0, "qkv", False)(_norm(self.norm_eps, "norm_0")(x))
        h = h.reshape(b, n, 3, self.heads, self.head_channels)
        h = jax.nn.dot_product_attention(h[:, :, 0], h[:, :, 1], h[:, :, 2], bias, seen, scale=1.0)
        x = x + dense(d, self.dtype, 1.0, "out", False)(h.reshape(b, n, inner))
        h = _norm(self.norm_eps, "norm_1")(x)
        gate, value = (dense(self.hidden, self.dtype, 1.0, name, False)(h) for name in ("mlp_gate", "mlp_value"))
        return x + dense(d, self.dtype, 1.0, "mlp_out", False)(nn.gelu(gate, approximate=True) * value), None


def bucket(n: int, buckets: int, distance: int) -> Int[np.ndarray, "n n"]:
    """The class of what token j is to token i, at [i, j].

    The first half of the classes is for j <= i. In each half the small distances are a class each, and the larger ones
    share classes whose borders grow as powers, up to `distance`.
    """
    half, place = buckets // 2, np.arange(n)
    exact = half // 2
    offset = place[None, :] - place[:, None]
    far = np.abs(offset)
    # In float32, as the published networks were trained: at some borders the rounding decides.
    ratio = np.log(np.maximum(far, 1).astype(np.float32) / np.float32(exact)) / np.float32(math.log(distance / exact))
    shared = exact + (ratio * np.float32(half - exact)).astype(np.int32)
    classes = np.where(far < exact, far, np.minimum(shared, half - 1))
    return (classes + half * (offset > 0)).astype(np.int32)


def _norm(eps: float, name: str) -> nn.RMSNorm:
    return nn.RMSNorm(epsilon=eps, dtype=jnp.float32, name=name)


T5_SMALL = T5()
T5_XXL = T5(width=4096, depth=24, heads=64, hidden=10240)
