"""FLUX.1: blocks of two streams, then blocks of one, with rotary positions on three axes.

    emb      mlp(noise) + mlp(pooled text) + mlp(guidance scale)         the last only in guidance-distilled weights
    double   as in `mmdit.py`, queries and keys normalised and turned by their positions
    single   on text and image tokens in one sequence s, attention and mlp side by side:
             h = norm(s) * (1 + scale) + shift
             s += gate * dense([attention(h), gelu(dense(h))])

An image token's position is (0, row, column), a text token's (0, 0, 0): each axis turns channels of its own.

Source: Black Forest Labs, FLUX.1 (2024); the single blocks after arXiv:2302.05442, Sec. 2, rotary positions
arXiv:2104.09864, Sec. 3.2.2.
"""

from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdiff.core.types import Cond
from jaxdiff.networks.axes import constrain
from jaxdiff.networks.dit import NOISE_FEATURES, modulated_norm, scanned
from jaxdiff.networks.layers import dense, kernel_init, sinusoid
from jaxdiff.networks.mmdit import (
    JointBlock,
    Streams,
    Surroundings,
    attended,
    embedded,
    modulated_out,
    pooled_text,
    seen,
)
from jaxdiff.networks.text_condition import TextTokens

PATCH = 2
"""Side of the pixel blocks that become tokens."""

ROTARY_BASE = 10000.0
"""The slowest pair of channels turns about this many times slower than the fastest."""

GUIDANCE_UNIT = 1000.0
"""Sinusoids are told the guidance scale times this."""


class Flux(nn.Module):
    """FLUX.1's network: ``(x, noise, cond) -> [b, h, w, c]``, with ``noise`` = 1000 t in straight-path time t.

    diffusers' network is told t itself and multiplies by 1000. `cond` may hold text_tokens, text_mask, text_pooled and,
    for dev, guidance_scale. The blocks of two streams are stacked in "blocks", those of one in "single_blocks".
    Raises ValueError where the image or the width does not fit the attributes.
    """

    width: int = 3072
    """Channels of a token."""
    depth: int = 19
    """Number of blocks with two streams."""
    single_depth: int = 38
    """Number of blocks with one stream."""
    heads: int = 24
    """Attention heads."""
    mlp_ratio: int = 4
    """Hidden channels of the MLPs in multiples of `width`."""
    axes: tuple[int, int, int] = (16, 56, 56)
    """Channels of a head that are turned by each of the three positions: all of them together."""
    guidance: bool = False
    """Whether the network is told a guidance scale (dev), or has none (schnell)."""
    text_width: int = 4096
    """Channels of a text token."""
    text_pooled: int = 768
    """Channels of the pooled text."""
    remat: Literal["none", "dots", "full"] = "dots"
    """What the backward pass recomputes: nothing, all but the matrix products and attention, or whole blocks."""
    attention: Literal["auto", "plain"] = "auto"
    """The fastest kernel on the platform, or the plain one, which forward-mode differentiation (likelihoods) needs."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute type; parameters, norm statistics, softmax and output are float32."""

    num_classes = 0

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        noise: Float[Array, "b"],
        cond: Cond,
        train: bool = False,
    ) -> Float[Array, "b h w c"]:
        """The output, float32. `train` changes nothing: there is no drop-out."""
        del train
        self._check(x)
        b, height, width, c = x.shape
        rows, cols = height // PATCH, width // PATCH
        emb = nn.silu(self._embedding(noise, cond))

        h = dense(self.width, self.dtype, 1.0, "patches")(packed(x))
        words, mask = TextTokens(self.text_width, null=False)(cond, b)
        text = dense(self.width, self.dtype, 1.0, "text")(words)
        m = text.shape[1]
        around = Surroundings(emb, seen(mask, rows * cols), jnp.asarray(rotations(m, rows, cols, self.axes)))

        streams = Streams(*(constrain(s, "batch", "tokens", None) for s in (h, text)))
        fields = (self.heads, self.mlp_ratio, True, False, True, self.dtype, self.attention)
        streams, _ = scanned(JointBlock, self.depth, self.remat)(*fields, name="blocks")(streams, around)
        h = constrain(jnp.concatenate([streams.text, streams.image], axis=1), "batch", "tokens", None)
        fields = (self.heads, self.mlp_ratio, self.dtype, self.attention)
        h, _ = scanned(SingleBlock, self.single_depth, self.remat)(*fields, name="single_blocks")(h, around)
        return unpacked(modulated_out(h[:, m:], emb, c * PATCH**2), rows, cols)

    def _embedding(self, noise: Array, cond: Cond) -> Float[Array, "b width"]:
        emb = embedded(sinusoid(noise, NOISE_FEATURES, cosine_first=True), self.width, "noise")
        if self.guidance:
            scale = cond.get("guidance_scale", jnp.zeros_like(noise)) * GUIDANCE_UNIT
            emb += embedded(sinusoid(scale, NOISE_FEATURES, cosine_first=True), self.width, "guidance")
        return emb + embedded(pooled_text(cond, noise.shape[0], self.text_pooled), self.width, "pooled")

    def _check(self, x: Array) -> None:
        for side, size in (("height", x.shape[1]), ("width", x.shape[2])):
            if size % PATCH:
                raise ValueError(f"image {side} {size} must be a multiple of {PATCH}: change --data.size")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}: change --network.heads")
        if sum(self.axes) != self.width // self.heads or any(size % 2 for size in self.axes):
            raise ValueError(
                f"axes {self.axes} must be even and add up to {self.width // self.heads}, the channels of a head: "
                "change --network.axes"
            )


class SingleBlock(nn.Module):
    """One block of one stream, in the shape that `nn.scan` takes: ``(tokens, around) -> (tokens, None)``."""

    heads: int
    """Attention heads."""
    mlp_ratio: int
    """Hidden channels of the MLP in multiples of the token's."""
    dtype: str
    """Compute type."""
    kernel: str = "auto"
    """How attention is computed, as in `layers.attention`."""

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], around: Surroundings) -> tuple[Float[Array, "b n d"], None]:
        d = x.shape[-1]
        mod = constrain(dense(3 * d, self.dtype, 0.0, "modulation")(around.emb), "batch", None)
        shift, scale, gate = jnp.split(mod, 3, axis=-1)
        h = modulated_norm(x, shift, scale)

        shape = (3, self.heads, d // self.heads)
        qkv = nn.DenseGeneral(shape, dtype=jnp.dtype(self.dtype), kernel_init=kernel_init(1.0), name="qkv")(h)
        q = nn.RMSNorm(dtype=x.dtype, name="norm_q")(qkv[:, :, 0])
        k = nn.RMSNorm(dtype=x.dtype, name="norm_k")(qkv[:, :, 1])
        seen_there = attended(self, q, k, qkv[:, :, 2], around, self.kernel)
        hidden = nn.gelu(dense(self.mlp_ratio * d, self.dtype, 1.0, "mlp_0")(h), approximate=True)
        both = jnp.concatenate([seen_there, constrain(hidden, "batch", "tokens", "hidden")], axis=-1)
        x = x + gate[:, None] * dense(d, self.dtype, 1.0, "out")(both)
        return constrain(x, "batch", "tokens", None), None


def packed(x: Float[Array, "b h w c"]) -> Float[Array, "b n c4"]:
    """Patches of 2x2 pixels as tokens, row by row, in the published order: channel by channel, its four pixels."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // PATCH, PATCH, w // PATCH, PATCH, c)
    return x.transpose(0, 1, 3, 5, 2, 4).reshape(b, (h // PATCH) * (w // PATCH), c * PATCH**2)


def unpacked(tokens: Float[Array, "b n c4"], rows: int, cols: int) -> Float[Array, "b h w c"]:
    """The inverse of `packed` for ``rows x cols`` patches."""
    b, _, features = tokens.shape
    x = tokens.reshape(b, rows, cols, features // PATCH**2, PATCH, PATCH)
    return x.transpose(0, 1, 4, 2, 5, 3).reshape(b, rows * PATCH, cols * PATCH, features // PATCH**2)


def rotations(text: int, rows: int, cols: int, axes: tuple[int, int, int]) -> Float[np.ndarray, "2 n half"]:
    """Cosines and sines of the angles of `text` tokens at (0, 0, 0), then of those of the image: a NumPy constant.

    On an axis of d channels, pair i of them turns by position times ``10000 ** (-2 i / d)``.
    """
    row, col = np.divmod(np.arange(rows * cols), cols)
    places = np.concatenate([np.zeros((text, 3)), np.stack([np.zeros_like(row), row, col], axis=-1)])
    speeds = [ROTARY_BASE ** -(np.arange(0, d, 2) / d) for d in axes]
    angles = np.concatenate([places[:, [i]] * speed for i, speed in enumerate(speeds)], axis=-1)
    return np.stack([np.cos(angles), np.sin(angles)]).astype(np.float32)
