"""CLIP: a vision tower and a text tower into one space, for CMMD, the CLIP score and text conditions.

    image   [cls, patches] + positions -> norm -> blocks -> norm of cls -> projection
    text    tokens + positions -> causal blocks -> norm -> the end-of-text token -> projection
    logits  exp(logit_scale) * <image, text>, with both of unit length

Source: arXiv:2103.00020, Sec. 2.4 and Fig. 3.
"""

from typing import Literal, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdiff.networks.frozen import EXACT
from jaxdiff.networks.vit import Activation, Block, encode, gelu, layer_norm, patch_conv, quick_gelu

MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Of the training set's RGB pixels in [0, 1]: what is taken from the images before."""
STD = (0.26862954, 0.26130258, 0.27577711)
"""Of the training set's RGB pixels in [0, 1]: what the images are divided by before."""

NORM_EPS = 1e-5
"""Added to the variance in every layer norm."""

HEAD_CHANNELS = 64
"""Channels of an attention head in every published tower."""

EOS = 49407
"""The end-of-text token of CLIP's vocabulary, its last entry."""


class VisionFeatures(NamedTuple):
    """What the vision tower gives, float32: nothing of it is of unit length."""

    last: Float[Array, "b n d"]
    """The last block's tokens, class token first, not normalised."""
    penultimate: Float[Array, "b n d"]
    """The last block's input."""
    pooled: Float[Array, "b d"]
    """The normalised class token."""
    embedding: Float[Array, "b e"]
    """`pooled`, projected into the common space (or itself, without a projection)."""


class TextFeatures(NamedTuple):
    """What the text tower gives, float32: nothing of it is of unit length."""

    last: Float[Array, "b n d"]
    """The last block's tokens, normalised (the condition of Stable Diffusion 1)."""
    penultimate: Float[Array, "b n d"]
    """The last block's input, not normalised (the condition of SDXL)."""
    pooled: Float[Array, "b d"]
    """`last` at the end-of-text token."""
    embedding: Float[Array, "b e"]
    """`pooled`, projected into the common space (or itself, without a projection)."""


class VisionTower(nn.Module):
    """CLIP's image encoder: ``size x size`` images, normalised with `MEAN` and `STD`, to `VisionFeatures`.

    Images of another size raise ValueError: the position embeddings are not resized.
    """

    width: int = 768
    """Channels of a token."""
    depth: int = 12
    """Number of transformer blocks."""
    heads: int = 12
    """Attention heads."""
    patch: int = 32
    """Side of a patch, in pixels."""
    size: int = 224
    """Side of the images, in pixels."""
    embedding: int = 512
    """Channels of the common space; 0 for no projection."""
    activation: Activation = quick_gelu
    """Nonlinearity of the MLP."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute type; parameters, norm statistics, softmax and output are float32."""

    @nn.compact
    def __call__(self, images: Float[Array, "b h w 3"]) -> VisionFeatures:
        b, height, width, _ = images.shape
        if (height, width) != (self.size, self.size):
            raise ValueError(f"images of {height} x {width}: only {self.size} x {self.size} fit: resize the images")
        init = nn.initializers.normal(0.02)
        patches = patch_conv(self.width, self.patch, self.dtype, "patches", use_bias=False)(images)
        patches = patches.reshape(b, -1, self.width)
        cls = self.param("cls", init, (self.width,))
        cls = jnp.broadcast_to(jnp.asarray(cls, patches.dtype), (b, 1, self.width))
        h = jnp.concatenate([cls, patches], axis=1)
        positions = self.param("positions", init, (h.shape[1], self.width))
        h = layer_norm(NORM_EPS, "norm_in")(h + positions).astype(patches.dtype)

        hidden = encode(_block(self.heads, 4 * self.width, self.activation, False, self.dtype), self.depth, h)
        last, penultimate = (tokens.astype(jnp.float32) for tokens in hidden)
        pooled = layer_norm(NORM_EPS, "norm_out")(last[:, 0])
        return VisionFeatures(last, penultimate, pooled, _projected(pooled, self.embedding))


class TextTower(nn.Module):
    """CLIP's text encoder: tokens, at most `length` of them, to `TextFeatures`; longer texts raise ValueError.

    Tokens after the end of the text change neither `pooled` nor `embedding`.
    """

    width: int = 512
    """Channels of a token."""
    depth: int = 12
    """Number of transformer blocks."""
    heads: int = 8
    """Attention heads."""
    vocab: int = 49408
    """Number of entries of the vocabulary."""
    length: int = 77
    """Most tokens of a text, its start and end among them."""
    hidden: int = 0
    """Hidden channels of the MLP; 0 for four times `width`."""
    embedding: int = 512
    """Channels of the common space; 0 for no projection."""
    eos: int | None = EOS
    """The end of a text is the first token of this value; None: the first of its highest value (the original
    rule, the same unless the vocabulary was extended)."""
    activation: Activation = quick_gelu
    """Nonlinearity of the MLP."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute type; parameters, norm statistics, softmax and output are float32."""

    @nn.compact
    def __call__(self, tokens: Int[Array, "b n"]) -> TextFeatures:
        n = tokens.shape[1]
        if n > self.length:
            raise ValueError(f"texts of {n} tokens: at most {self.length} fit: truncate the texts")
        init = nn.initializers.normal(0.02)
        table = nn.Embed(self.vocab, self.width, embedding_init=init, name="tokens")
        positions = self.param("positions", init, (self.length, self.width))
        h = (table(tokens) + positions[:n]).astype(self.dtype)

        block = _block(self.heads, self.hidden or 4 * self.width, self.activation, True, self.dtype)
        hidden = encode(block, self.depth, h)
        last = layer_norm(NORM_EPS, "norm_out")(hidden.last)
        end = tokens if self.eos is None else tokens == self.eos
        pooled = jnp.take_along_axis(last, jnp.argmax(end, axis=1)[:, None, None], axis=1)[:, 0]
        penultimate = hidden.penultimate.astype(jnp.float32)
        return TextFeatures(last, penultimate, pooled, _projected(pooled, self.embedding))


class CLIP(nn.Module):
    """Both towers: ``(images, tokens) -> logits [b_images, b_texts]``, cosine similarities times a learned scale.

    Parameters: those of the towers under ``"vision"`` and ``"text"``, and ``"logit_scale"``.
    """

    vision: VisionTower = VisionTower()
    """The image encoder."""
    text: TextTower = TextTower()
    """The text encoder."""

    @nn.compact
    def __call__(self, images: Float[Array, "b h w 3"], tokens: Int[Array, "c n"]) -> Float[Array, "b c"]:
        scale = self.param("logit_scale", nn.initializers.constant(2.6592), ())
        image, text = self.vision(images).embedding, self.text(tokens).embedding
        return jnp.exp(scale) * jnp.matmul(unit(image), unit(text).T, precision=EXACT)


def unit(x: Float[Array, "*b e"]) -> Float[Array, "*b e"]:
    """``x / |x|`` along the last axis."""
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def _block(heads: int, hidden: int, activation: Activation, causal: bool, dtype: str) -> Block:
    return Block(
        heads=heads,
        hidden=hidden,
        activation=activation,
        causal=causal,
        norm_eps=NORM_EPS,
        dtype=dtype,
        name="blocks",
    )


def _projected(pooled: Float[Array, "b d"], channels: int) -> Float[Array, "b e"]:
    if not channels:
        return pooled
    return nn.Dense(channels, use_bias=False, precision=EXACT, name="projection")(pooled)


_L14 = VisionTower(width=1024, depth=24, heads=16, patch=14, embedding=768)
_L14_TEXT = TextTower(width=768, heads=12, embedding=768)

CLIP_B32 = CLIP()
CLIP_B16 = CLIP(vision=VisionTower(patch=16))
CLIP_L14 = CLIP(vision=_L14, text=_L14_TEXT)
CLIP_L14_336 = CLIP(vision=_L14.clone(size=336), text=_L14_TEXT)

OPENCLIP_H_TEXT = TextTower(width=1024, depth=23, heads=16, embedding=0, eos=None, activation=gelu)
"""Of Stable Diffusion 2, which was trained on the last layer but one: what follows it is not published."""
OPENCLIP_BIGG_TEXT = TextTower(width=1280, depth=32, heads=20, embedding=1280, eos=None, activation=gelu)
"""Of SDXL and Stable Diffusion 3."""
