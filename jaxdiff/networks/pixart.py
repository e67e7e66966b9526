"""PixArt: the diffusion transformer with attention to a text, and one modulation for all of its blocks.

    emb      mlp(noise) + [mlp(height), mlp(width), mlp(height / width)]       the sizes only in PixArt-alpha at 1024
    text     mlp(tokens)
    block    x += gate_1 * attention(norm(x) * (1 + scale_1) + shift_1)
             x += attention(x, text)
             x += gate_2 * mlp(norm(x) * (1 + scale_2) + shift_2)
    (shift, scale, gate)_{1,2} = dense(silu(emb)) + a table of the block: adaLN-single

Sources: arXiv:2310.00426, Sec. 2.3 (alpha); arXiv:2403.04692 (sigma, the same network).
"""

from functools import partial
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxdiff.core.types import Cond
from jaxdiff.networks.axes import constrain
from jaxdiff.networks.dit import NOISE_FEATURES, modulated_norm, scanned, sincos_positions
from jaxdiff.networks.layers import dense, sinusoid
from jaxdiff.networks.mmdit import embedded
from jaxdiff.networks.multihead import MultiHead
from jaxdiff.networks.resample import depth_to_space, space_to_depth
from jaxdiff.networks.text_condition import SIZES, TextTokens

gelu = partial(nn.gelu, approximate=True)


class PixArt(nn.Module):
    """PixArt's network: ``(x, noise, cond) -> [b, h, w, c]``, or ``2c`` with `learned_variance`.

    `cond` may hold text_tokens, text_mask and, with `size_condition`, size. The published size is the default's; the
    parameters of the blocks are stacked along a first axis of length `depth`. Raises ValueError where the image or the
    width does not fit the attributes.
    """

    patch: int = 2
    """Side of the pixel blocks that become tokens."""
    width: int = 1152
    """Channels of a token."""
    depth: int = 28
    """Number of blocks."""
    heads: int = 16
    """Attention heads."""
    mlp_ratio: int = 4
    """Hidden channels of the MLP in multiples of `width`."""
    extent: float = 32.0
    """The positions go from 0 to this on both axes, at any size: tokens of larger images lie closer."""
    text_width: int = 4096
    """Channels of a text token."""
    size_condition: bool = False
    """Whether the network is told the target height and width of the picture, the last two of the leaf "size"."""
    learned_variance: bool = True
    """Twice the output channels, for a learned variance."""
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
    ) -> Float[Array, "b h w c_out"]:
        """The output at noise input ``noise``, float32. `train` changes nothing: there is no drop-out."""
        del train
        self._check(x)
        b, height, width, c = x.shape
        rows, cols = height // self.patch, width // self.patch
        emb = self._embedding(noise, cond)
        mod = nn.Dense(6 * self.width, kernel_init=nn.initializers.normal(0.02), name="modulation")(nn.silu(emb))
        mod = constrain(mod.reshape(b, 6, self.width), "batch", None, None)

        tokens = space_to_depth(x, self.patch).reshape(b, rows * cols, -1)
        h = dense(self.width, self.dtype, 1.0, "patches")(tokens)
        h = h + jnp.asarray(sincos_positions(rows, cols, self.width, self.extent), h.dtype)
        words, mask = TextTokens(self.text_width, null=False)(cond, b)
        text = embedded(words, self.width, "text", gelu, self.dtype)

        h = constrain(h, "batch", "tokens", None)
        fields = (self.heads, self.mlp_ratio, self.dtype, self.attention)
        h, _ = scanned(Block, self.depth, self.remat)(*fields, name="blocks")(h, mod, text, mask)

        table = self.param("table_out", nn.initializers.normal(self.width**-0.5), (2, self.width))
        h = modulated_norm(h.astype(jnp.float32), table[0] + emb, table[1] + emb)
        out_channels = c * (2 if self.learned_variance else 1)
        h = dense(out_channels * self.patch**2, "float32", 0.0, "out")(h)
        return depth_to_space(h.reshape(b, rows, cols, -1), self.patch)

    def _embedding(self, noise: Array, cond: Cond) -> Float[Array, "b width"]:
        emb = embedded(sinusoid(noise, NOISE_FEATURES, cosine_first=True), self.width, "noise")
        if self.size_condition:
            b, third = noise.shape[0], self.width // 3
            target = cond.get("size", jnp.zeros((b, SIZES)))[:, -2:]
            aspect = target[:, 0] / jnp.maximum(target[:, 1], 1)
            sides = sinusoid(target.reshape(-1), NOISE_FEATURES, cosine_first=True)
            sides = embedded(sides, third, "resolution").reshape(b, 2 * third)
            aspect = embedded(sinusoid(aspect, NOISE_FEATURES, cosine_first=True), third, "aspect")
            emb += jnp.concatenate([sides, aspect], axis=-1)
        return emb

    def _check(self, x: Array) -> None:
        for side, size in (("height", x.shape[1]), ("width", x.shape[2])):
            if size % self.patch:
                raise ValueError(f"image {side} {size} must be a multiple of {self.patch}: change --network.patch")
        if self.width % self.heads or self.width % 4:
            raise ValueError(f"width {self.width} must be a multiple of 4 and of heads {self.heads}: --network.heads")
        if self.size_condition and self.width % 3:
            raise ValueError(f"width {self.width} must be a multiple of 3 to hold the sizes: change --network.width")


class Block(nn.Module):
    """One block, in the shape that `nn.scan` takes: ``(x, mod, text, mask) -> (x, None)``."""

    heads: int
    """Attention heads."""
    mlp_ratio: int
    """Hidden channels of the MLP in multiples of the token's."""
    dtype: str
    """Compute type."""
    kernel: str = "auto"
    """How attention is computed, as in `layers.attention`."""

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n d"],
        mod: Float[Array, "b 6 d"],
        text: Float[Array, "b m d"],
        mask: Bool[Array, "b m"] | None,
    ) -> tuple[Float[Array, "b n d"], None]:
        d = x.shape[-1]
        table = self.param("table", nn.initializers.normal(d**-0.5), (6, d))
        changes = jnp.moveaxis(mod + table, 1, 0).astype(x.dtype)
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = changes

        h = self._attention("self_attention", d, 1.0)(modulated_norm(x, shift_1, scale_1))
        x = x + gate_1[:, None] * h
        # Starts at zero, as published: a network trained without texts can go on with them.
        x = x + self._attention("cross_attention", d, 0.0)(x, text, mask)

        h = dense(self.mlp_ratio * d, self.dtype, 1.0, "mlp_0")(modulated_norm(x, shift_2, scale_2))
        h = constrain(h, "batch", "tokens", "hidden")
        x = x + gate_2[:, None] * dense(d, self.dtype, 1.0, "mlp_1")(gelu(h))
        return constrain(x, "batch", "tokens", None), None

    def _attention(self, name: str, features: int, out_gain: float) -> MultiHead:
        channels = features // self.heads
        return MultiHead(self.heads, channels, out_gain=out_gain, dtype=self.dtype, kernel=self.kernel, name=name)
