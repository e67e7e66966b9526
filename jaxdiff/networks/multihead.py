"""Multi-head attention between tokens: of a sequence to itself, or to the tokens of another.

    q = dense(x),  k = dense(y),  v = dense(y)         y = x, or the other sequence
    out = dense(softmax(q k^T / sqrt(d)) v)            for each head of d channels

Source: arXiv:1706.03762, Sec. 3.2.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdiff.networks.axes import constrain
from jaxdiff.networks.layers import attention, dense


class MultiHead(nn.Module):
    """Self- or cross-attention with layers `q`, `k`, `v` and `out`; as wide at the end as its first input."""

    heads: int
    """Number of heads."""
    head_channels: int
    """Channels of a head; `heads` of them need not be as wide as the input."""
    qkv_bias: bool = True
    """Biases in the layers of the queries, keys and values."""
    out_bias: bool = True
    """A bias in the last layer."""
    qk_norm: bool = False
    """RMS norm of the queries and keys over the channels of a head, with learned factors."""
    gain: float = 1.0
    """Scale of the initial kernels' variance."""
    out_gain: float = 1.0
    """The same of the last layer, which starts at zero where it is 0."""
    dtype: str = "float32"
    """Compute type; the softmax is float32."""
    kernel: str = "auto"
    """How attention is computed, as in `layers.attention`."""

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n c"],
        context: Float[Array, "b m e"] | None = None,
        mask: Bool[Array, "b m"] | None = None,
        identity: Bool[Array, ""] | None = None,
        taken: Int[Array, "b m"] | None = None,
    ) -> Float[Array, "b n c"]:
        """What the tokens of `x` gather from those of `context`, or of `x` itself where it is None.

        Of these, `mask` says which may be seen. `identity` puts the identity in place of the attention map, as does
        the variable of that name (see `layers.attention`); it is for self-attention. `taken`: see `attention.borrowed`.
        """
        b, n, c = x.shape
        source = x if context is None else context

        def split(name: str, tokens: Array) -> Array:
            h = dense(self.heads * self.head_channels, self.dtype, self.gain, name, self.qkv_bias)(tokens)
            return h.reshape(b, tokens.shape[1], self.heads, self.head_channels)

        q, k, v = split("q", x), split("k", source), split("v", source)
        if self.qk_norm:
            q = nn.RMSNorm(dtype=q.dtype, name="norm_q")(q)
            k = nn.RMSNorm(dtype=k.dtype, name="norm_k")(k)
        # Each part of the sequence asks with its own tokens, and sees the keys and values of all.
        q = constrain(q, "batch", "tokens", "heads", None)
        k, v = (constrain(a, "batch", None, "heads", None) for a in (k, v))
        h = attention(self, q, k, v, self.kernel, mask, taken)
        if identity is not None:
            h = jnp.where(identity, v, h)
        return dense(c, self.dtype, self.out_gain, "out", self.out_bias)(h.reshape(b, n, -1))
