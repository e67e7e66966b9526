"""The multimodal diffusion transformer: a stream of image tokens and one of text tokens, joined by attention.

    emb      mlp(noise) + mlp(pooled text)
    block    q, k, v = those of the text tokens beside those of the image tokens, each by layers of its own
             s += gate_1 * out(attention(q, k, v))                             s: the tokens of either stream
             s += gate_2 * mlp(norm(s) * (1 + scale_2) + shift_2)

(shift, scale, gate) of each stream are a dense layer of silu(emb), as in `dit.py`. In the last block the text is only
seen. In SD3.5-medium, image tokens of the first blocks attend to each other once more (dual attention).

Source: arXiv:2403.03206, Sec. 4.
"""

from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxdiff.core.types import Cond
from jaxdiff.networks.axes import constrain
from jaxdiff.networks.dit import NOISE_FEATURES, modulated_norm, scanned, waves
from jaxdiff.networks.layers import attention, dense, kernel_init, sinusoid
from jaxdiff.networks.resample import depth_to_space, space_to_depth
from jaxdiff.networks.text_condition import TextTokens
from jaxdiff.networks.vit import Activation


class Streams(NamedTuple):
    """The tokens that the blocks change."""

    image: Float[Array, "b n d"]
    text: Float[Array, "b m d"]


class Surroundings(NamedTuple):
    """What every block sees and none changes."""

    emb: Float[Array, "b d"]
    """silu of the embedding of noise and text."""
    mask: Bool[Array, "b k"] | None
    """Which tokens may be seen, those of the text first; None for all."""
    waves: Float[Array, "2 k half"] | None = None
    """Cosines and sines of the rotary positions, those of the text first; None for none."""


class MMDiT(nn.Module):
    """SD3's network: ``(x, noise, cond) -> [b, h, w, c]``, with ``noise`` = 1000 t in straight-path time t.

    `cond` may hold text_tokens, text_mask and text_pooled. Published sizes, as (depth, width, heads): SD3-medium and
    SD3.5-medium 24, 1536, 24; SD3.5-large 38, 2432, 38. The blocks are stacked in three groups (see `groups`).
    Raises ValueError where the image or the width does not fit the attributes.
    """

    patch: int = 2
    """Side of the pixel blocks that become tokens."""
    width: int = 1536
    """Channels of a token."""
    depth: int = 24
    """Number of blocks."""
    heads: int = 24
    """Attention heads."""
    mlp_ratio: int = 4
    """Hidden channels of the MLPs in multiples of `width`."""
    dual: int = 0
    """Number of first blocks with a second attention among the image tokens; 13 in SD3.5-medium."""
    qk_norm: bool = False
    """RMS norm of the queries and keys (SD3.5)."""
    grid: int = 192
    """Rows and columns of the table of positions, of whose middle an image takes what it needs."""
    extent: float = 64.0
    """The positions of the table go from 0 to this, on both axes."""
    text_width: int = 4096
    """Channels of a text token."""
    text_pooled: int = 2048
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
        rows, cols = height // self.patch, width // self.patch
        emb = embedded(sinusoid(noise, NOISE_FEATURES, cosine_first=True), self.width, "noise")
        emb = nn.silu(emb + embedded(pooled_text(cond, b, self.text_pooled), self.width, "pooled"))

        tokens = space_to_depth(x, self.patch).reshape(b, rows * cols, -1)
        h = dense(self.width, self.dtype, 1.0, "patches")(tokens)
        h = h + self._positions(rows, cols).astype(h.dtype)
        words, mask = TextTokens(self.text_width, null=False)(cond, b)
        text = dense(self.width, self.dtype, 1.0, "text")(words)

        streams = Streams(*(constrain(s, "batch", "tokens", None) for s in (h, text)))
        around = Surroundings(emb, seen(mask, rows * cols))
        for name, count, dual, last in groups(self):
            fields = (self.heads, self.mlp_ratio, self.qk_norm, dual, not last, self.dtype, self.attention)
            streams, _ = scanned(JointBlock, count, self.remat)(*fields, name=name)(streams, around)
        h = modulated_out(streams.image, emb, c * self.patch**2)
        return depth_to_space(h.reshape(b, rows, cols, -1), self.patch)

    def _positions(self, rows: int, cols: int) -> Float[Array, "n width"]:
        # A parameter only so that a published table comes and goes unchanged: it is not trained.
        def table(_: Array) -> Float[Array, "cells width"]:
            shape = (self.grid, self.grid, self.width // 2)
            axis = jnp.asarray(waves(self.grid, self.width // 2, self.extent / self.grid), jnp.float32)
            halves = (jnp.broadcast_to(axis, shape), jnp.broadcast_to(axis[:, None], shape))
            return jnp.concatenate(halves, axis=-1).reshape(self.grid**2, self.width)

        grid = jax.lax.stop_gradient(self.param("positions", table)).reshape(self.grid, self.grid, self.width)
        top, left = (self.grid - rows) // 2, (self.grid - cols) // 2
        return grid[top : top + rows, left : left + cols].reshape(rows * cols, self.width)

    def _check(self, x: Array) -> None:
        for side, size in (("height", x.shape[1]), ("width", x.shape[2])):
            if size % self.patch or size > self.patch * self.grid:
                raise ValueError(
                    f"image {side} {size} must be a multiple of {self.patch} up to {self.patch * self.grid}: "
                    "change --network.patch or --network.grid"
                )
        if self.width % self.heads or self.width % 4:
            raise ValueError(f"width {self.width} must be a multiple of 4 and of heads {self.heads}: --network.heads")
        if not 0 <= self.dual < self.depth:
            raise ValueError(f"dual {self.dual} must be 0 to {self.depth - 1}, one below the depth: --network.dual")


def groups(network: MMDiT) -> tuple[tuple[str, int, bool, bool], ...]:
    """(name, number of blocks, whether they have dual attention, whether it is the last) of each stack of blocks.

    Only blocks with the same parameters can be stacked. Groups without blocks are left out.
    """
    found = (
        ("dual_blocks", network.dual, True, False),
        ("blocks", network.depth - 1 - network.dual, False, False),
        ("last_blocks", 1, False, True),
    )
    return tuple(group for group in found if group[1] > 0)


class JointBlock(nn.Module):
    """One block of two streams, in the shape that `nn.scan` takes: ``(streams, around) -> (streams, None)``."""

    heads: int
    """Attention heads."""
    mlp_ratio: int
    """Hidden channels of the MLPs in multiples of the token's."""
    qk_norm: bool
    """RMS norm of the queries and keys."""
    dual: bool
    """A second attention among the image tokens."""
    text_goes_on: bool
    """False in the last block, after which nothing sees the text tokens: they stay as they are."""
    dtype: str
    """Compute type."""
    kernel: str = "auto"
    """How attention is computed, as in `layers.attention`."""

    @nn.compact
    def __call__(self, streams: Streams, around: Surroundings) -> tuple[Streams, None]:
        x, text = streams
        m = text.shape[1]
        (shift, scale, gate), change, *second = self._modulations("", 3 if self.dual else 2, around.emb)
        text_changes = self._modulations("text_", 2, around.emb) if self.text_goes_on else self._norm_only(around.emb)
        text_shift, text_scale, *text_gate = text_changes[0]

        words = self._qkv("text_", modulated_norm(text, text_shift, text_scale))
        pixels = self._qkv("", modulated_norm(x, shift, scale))
        q, k, v = (jnp.concatenate(pair, axis=1) for pair in zip(words, pixels, strict=True))
        h = attended(self, q, k, v, around, self.kernel)
        new = x + gate[:, None] * self._dense("out", x, h[:, m:])
        for dual_shift, dual_scale, dual_gate in second:
            q, k, v = self._qkv("dual_", modulated_norm(x, dual_shift, dual_scale))
            h_own = attended(self, q, k, v, Surroundings(around.emb, None), self.kernel)
            new = new + dual_gate[:, None] * self._dense("dual_out", x, h_own)
        x = self._mlp("", new, change)
        if self.text_goes_on:
            text = text + text_gate[0][:, None] * self._dense("text_out", text, h[:, :m])
            text = self._mlp("text_", text, text_changes[1])
        return Streams(x, text), None

    def _modulations(self, prefix: str, count: int, emb: Array) -> list[tuple[Array, ...]]:
        """`count` times (shift, scale, gate)."""
        d = emb.shape[-1]
        mod = constrain(dense(3 * count * d, self.dtype, 0.0, f"{prefix}modulation")(emb), "batch", None)
        parts = jnp.split(mod, 3 * count, axis=-1)
        return [tuple(parts[i : i + 3]) for i in range(0, 3 * count, 3)]

    def _norm_only(self, emb: Array) -> list[tuple[Array, ...]]:
        """(shift, scale) of the text in the last block."""
        mod = dense(2 * emb.shape[-1], self.dtype, 0.0, "text_modulation")(emb)
        scale, shift = jnp.split(mod, 2, axis=-1)  # in the published order, which differs from all others
        return [(shift, scale)]

    def _qkv(self, prefix: str, x: Array) -> tuple[Array, Array, Array]:
        shape = (3, self.heads, x.shape[-1] // self.heads)
        init, dtype = kernel_init(1.0), jnp.dtype(self.dtype)
        qkv = nn.DenseGeneral(shape, dtype=dtype, kernel_init=init, name=f"{prefix}qkv")(x)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        if self.qk_norm:
            q = nn.RMSNorm(dtype=x.dtype, name=f"{prefix}norm_q")(q)
            k = nn.RMSNorm(dtype=x.dtype, name=f"{prefix}norm_k")(k)
        return q, k, v

    def _dense(self, name: str, like: Array, h: Array) -> Array:
        return dense(like.shape[-1], self.dtype, 1.0, name)(h)

    def _mlp(self, prefix: str, x: Array, change: tuple[Array, ...]) -> Array:
        shift, scale, gate = change
        h = modulated_norm(x, shift, scale)
        h = dense(self.mlp_ratio * x.shape[-1], self.dtype, 1.0, f"{prefix}mlp_0")(h)
        h = constrain(h, "batch", "tokens", "hidden")
        h = self._dense(f"{prefix}mlp_1", x, nn.gelu(h, approximate=True))
        return constrain(x + gate[:, None] * h, "batch", "tokens", None)


def attended(
    module: nn.Module,
    q: Float[Array, "b n heads d"],
    k: Float[Array, "b n heads d"],
    v: Float[Array, "b n heads d"],
    around: Surroundings,
    kernel: str,
) -> Float[Array, "b n width"]:
    """What the tokens gather from those that may be seen, their heads side by side."""
    if around.waves is not None:
        q, k = turned(q, around.waves), turned(k, around.waves)
    # Each part of the sequence asks with its own tokens, and sees the keys and values of all.
    q = constrain(q, "batch", "tokens", "heads", None)
    k, v = (constrain(a, "batch", None, "heads", None) for a in (k, v))
    h = attention(module, q, k, v, kernel, around.mask)
    return h.reshape(*h.shape[:2], -1)


def turned(x: Float[Array, "b n heads d"], waves: Float[Array, "2 n half"]) -> Float[Array, "b n heads d"]:
    """Each pair of neighbouring channels turned by its angle, of which `waves` are the cosines and the sines."""
    cos, sin = waves[0, :, None], waves[1, :, None]
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    a, b = pairs[..., 0], pairs[..., 1]
    return jnp.stack([a * cos - b * sin, a * sin + b * cos], axis=-1).reshape(x.shape).astype(x.dtype)


def embedded(
    x: Float[Array, "... c"], width: int, name: str, activation: Activation = nn.silu, dtype: str = "float32"
) -> Float[Array, "... width"]:
    """Two dense layers with an activation between them, called inside a module, which holds them."""
    init = nn.initializers.normal(0.02)
    kind = jnp.dtype(dtype)
    h = activation(nn.Dense(width, dtype=kind, kernel_init=init, name=f"{name}_0")(x))
    return nn.Dense(width, dtype=kind, kernel_init=init, name=f"{name}_1")(h)


def pooled_text(cond: Cond, batch: int, width: int) -> Float[Array, "b d"]:
    """The one vector of each text, zeros where there is none. Raises ValueError for vectors of another width."""
    pooled = cond.get("text_pooled", jnp.zeros((batch, width)))
    if pooled.shape[-1] != width:
        raise ValueError(f"text_pooled of {pooled.shape[-1]} channels, not {width}: change --network.text-pooled")
    return pooled


def seen(mask: Bool[Array, "b m"] | None, others: int) -> Bool[Array, "b k"] | None:
    """The mask of the text tokens with that of `others` tokens after them, all of which may be seen."""
    return None if mask is None else jnp.pad(mask, ((0, 0), (0, others)), constant_values=True)


def modulated_out(h: Float[Array, "b n d"], emb: Float[Array, "b d"], features: int) -> Float[Array, "b n features"]:
    """The last norm and the last dense layer, float32, called inside a module, which holds them."""
    mod = dense(2 * h.shape[-1], "float32", 0.0, "modulation_out")(emb)
    scale, shift = jnp.split(mod, 2, axis=-1)  # in the published order, which is not DiT's
    return dense(features, "float32", 0.0, "out")(modulated_norm(h.astype(jnp.float32), shift, scale))
