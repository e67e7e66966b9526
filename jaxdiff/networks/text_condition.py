"""What the U-Net knows of a text: tokens to attend to, and a vector that joins the noise embedding.

Leaves of the condition, all of them optional:

    text_tokens [b, n, d]   features of the tokens
    text_mask [b, n]        1 for a token, 0 for none; absent: all ones
    text_pooled [b, d]      one vector for the text
    size [b, 6]             in pixels: height and width of the original, top and left of the crop, height and width
    text_words [b, n]       of each token, the token of the text half a batch before whose attention map it takes
                            (prompt-to-prompt); -1: its own
    text_pixels [b]         0: the maps between pixels are taken from there as well; -1: its own
    text_until [b, 2]       the sigma/alpha down to which each of the last two holds

A text that is left out is a text without tokens. Sources: arXiv:2112.10752, Sec. 3.3; arXiv:2307.01952, Sec. 2.2;
arXiv:2208.01626, Sec. 3.
"""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdiff.core.types import Cond
from jaxdiff.networks.layers import dense, sinusoid

SIZES = 6
"""Numbers in the leaf "size"."""


class Text(NamedTuple):
    """What transformers attend to; by default nothing."""

    tokens: Float[Array, "b m e"] | None = None
    mask: Bool[Array, "b m"] | None = None
    """The tokens that may be seen; None: all."""
    words: Int[Array, "b m"] | None = None
    """The tokens whose maps are taken, as in ``text_words``; None: their own."""
    pixels: Int[Array, "b"] | None = None
    """Whether the maps between pixels are taken, as in ``text_pixels``; None: their own."""


def taken(cond: Cond, null: bool) -> tuple[Int[Array, "b m"] | None, Int[Array, "b"] | None]:
    """(words, pixels) of a `Text`; `null`: there is a token before all others, which goes with the rest of its text."""
    words = cond.get("text_words")
    if words is not None and null:
        first = jnp.where(jnp.any(words >= 0, axis=1, keepdims=True), 0, -1)
        words = jnp.concatenate([first, jnp.where(words >= 0, words + 1, -1)], axis=1)
    return words, cond.get("text_pixels")


def until(cond: Cond, ratio: Float[Array, "b"]) -> Cond:
    """``text_words`` and ``text_pixels`` as they hold at sigma/alpha = `ratio`, without ``text_until``."""
    if "text_until" not in cond:
        return cond
    holds = ratio[:, None] > cond["text_until"]
    leaves = {name: leaf for name, leaf in cond.items() if name != "text_until"}
    leaves["text_words"] = jnp.where(holds[:, :1], cond["text_words"], -1)
    leaves["text_pixels"] = jnp.where(holds[:, 1], cond["text_pixels"], -1)
    return leaves


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
