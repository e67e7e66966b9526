"""A small transformer that reads captions, learned together with the network that makes the pictures.

    ids -> embeddings + positions -> blocks x + attention(norm(x)), x + mlp(norm(x)) -> norm -> features of the tokens

Every token sees every other one. The vector of a whole text is the mean of its tokens.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdiff.core.types import Cond
from jaxdiff.networks.layers import attention, dense


class TextTransformer(nn.Module):
    """``ids -> (features of the tokens, 1 for a token and 0 for none, mean)``; an id below 0 is no token."""

    vocabulary: int = 2048
    """Different tokens."""
    length: int = 32
    """Most tokens of a text; longer ones are cut."""
    width: int = 128
    """Channels of a token."""
    depth: int = 2
    """Number of blocks."""
    heads: int = 4
    """Attention heads."""

    @nn.compact
    def __call__(
        self, ids: Int[Array, "b n"]
    ) -> tuple[Float[Array, "b n width"], Float[Array, "b n"], Float[Array, "b width"]]:
        if self.width % self.heads:
            raise ValueError(
                f"width {self.width} with {self.heads} heads: --network.text-encoder.heads must divide "
                "--network.text-encoder.width"
            )
        init, n = nn.initializers.normal(0.02), ids.shape[1]
        there = ids >= 0
        mask = there.astype(jnp.float32)
        x = nn.Embed(self.vocabulary, self.width, embedding_init=init, name="tokens")(jnp.maximum(ids, 0))
        x = x + self.param("positions", init, (self.length, self.width))[:n]
        # A text of no tokens looks at its first place, whose features the mask takes out below.
        seen = there.at[:, 0].set(True)
        for i in range(self.depth):
            x = x + self._attend(f"attention_{i}", nn.LayerNorm(name=f"norm_{i}_0")(x), seen)
            h = dense(4 * self.width, "float32", 1.0, f"mlp_{i}_0")(nn.LayerNorm(name=f"norm_{i}_1")(x))
            x = x + dense(self.width, "float32", 1.0, f"mlp_{i}_1")(nn.gelu(h, approximate=True))
        x = nn.LayerNorm(name="norm_out")(x) * mask[..., None]
        return x, mask, x.sum(1) / jnp.maximum(mask.sum(1, keepdims=True), 1)

    def _attend(self, name: str, x: Array, seen: Array) -> Array:
        shape = (3, self.heads, self.width // self.heads)
        qkv = nn.DenseGeneral(shape, name=f"{name}_qkv")(x)
        h = attention(self, qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], mask=seen)
        return dense(self.width, "float32", 1.0, f"{name}_out")(h.reshape(x.shape))


def read_text(encoder: TextTransformer | None, cond: Cond, batch: int) -> Cond:
    """`cond` with the features of its ``text_ids`` in their place, as other encoders give them; without an encoder,
    `cond` itself.

    Where there are no ids every text is absent.
    """
    if encoder is None:
        return cond
    ids = cond.get("text_ids", jnp.full((batch, 1), -1, jnp.int32))
    tokens, mask, pooled = encoder(ids)
    rest = {name: leaf for name, leaf in cond.items() if name != "text_ids"}
    return rest | {"text_tokens": tokens, "text_mask": mask, "text_pooled": pooled}
