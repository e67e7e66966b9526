"""What the U-Net knows of a text: tokens to attend to, and a vector that joins the noise embedding.

Leaves of the condition, all of them optional:

    text_tokens [b, n, d]   features of the tokens
    text_mask [b, n]        1 for a token, 0 for none; absent: all ones
    text_pooled [b, d]      one vector for the text
    size [b, 6]             in pixels: height and width of the original, top and left of the crop, height and width

A text that is left out is a text without tokens. Sources: arXiv:2112.10752, Sec. 3.3; arXiv:2307.01952, Sec. 2.2.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxdiff.core.types import Cond
from jaxdiff.networks.layers import dense, sinusoid

SIZES = 6
"""Numbers in the leaf "size"."""


class TextTokens(nn.Module):
    """The tokens of the texts, and which of them may be seen: None for all.

    Raises ValueError for tokens of another width.
    """

    width: int
    """Channels of a token."""
    null: bool = True
    """A learned token before all others, which can always be seen: what attention finds where there is no text."""

    @nn.compact
    def __call__(self, cond: Cond, batch: int) -> tuple[Float[Array, "b m e"], Bool[Array, "b m"] | None]:
        tokens, mask = cond.get("text_tokens"), None
        if tokens is None:
            tokens = jnp.zeros((batch, 0 if self.null else 1, self.width))
        elif "text_mask" in cond:
            mask = cond["text_mask"] > 0.5
        _check("text_tokens", tokens, self.width, "--network.text-width")
        if self.null:
            null = self.param("null", nn.initializers.normal(0.02), (self.width,))
            tokens = jnp.concatenate([jnp.broadcast_to(null, (batch, 1, self.width)), tokens], axis=1)
            if mask is not None:
                mask = jnp.concatenate([jnp.ones((batch, 1), bool), mask], axis=1)
        return tokens, mask


class PooledEmbedding(nn.Module):
    """The text's one vector and the waves of its sizes, as a float32 vector for the noise embedding.

    ``dense(silu(dense([text_pooled, sinusoids of each size])))``. Raises ValueError for a vector of another width.
    """

    width: int
    """Size of the result."""
    text: int = 0
    """Channels of the text's vector; 0 for none."""
    size_features: int = 0
    """Sinusoids of each of the six sizes; 0 for none."""
    cosine_first: bool = False
    """Cosines before sines."""
    gain: float = 1.0
    """Scale of the initial kernels' variance."""

    @nn.compact
    def __call__(self, cond: Cond, batch: int) -> Float[Array, "b width"]:
        parts = []
        if self.text:
            pooled = cond.get("text_pooled", jnp.zeros((batch, self.text)))
            _check("text_pooled", pooled, self.text, "--network.text-pooled")
            parts.append(pooled)
        if self.size_features:
            size = cond.get("size", jnp.zeros((batch, SIZES)))
            _check("size", size, SIZES, "--network.size-features")
            waves = sinusoid(size.reshape(-1), self.size_features, cosine_first=self.cosine_first)
            parts.append(waves.reshape(batch, -1))
        h = nn.silu(dense(self.width, "float32", self.gain, "dense_0")(jnp.concatenate(parts, axis=-1)))
        return dense(self.width, "float32", self.gain, "dense_1")(h)


def _check(name: str, leaf: Array, width: int, flag: str) -> None:
    if leaf.shape[-1] != width:
        raise ValueError(f"{name} of {leaf.shape[-1]} channels are not allowed: this network takes {width} ({flag})")
