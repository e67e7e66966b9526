"""The diffusion transformer: patches as tokens, blocks modulated by the noise level and the class.

    block    x += gate_1 * attention(norm(x) * (1 + scale_1) + shift_1)
             x += gate_2 * mlp(norm(x) * (1 + scale_2) + shift_2)
    (shift, scale, gate)_{1,2} = dense(silu(emb)), which starts at zero: every block starts as the identity

Source: arXiv:2212.09748, Sec. 3.2 (adaLN-Zero).
"""

from typing import Literal, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdiff.core.types import Cond
from jaxdiff.networks.axes import constrain
from jaxdiff.networks.image_condition import with_image
from jaxdiff.networks.layers import PERTURBED, attention, dense, kernel_init, label_index, sinusoid
from jaxdiff.networks.remat import recomputed
from jaxdiff.networks.resample import depth_to_space, space_to_depth

NOISE_FEATURES = 256
"""Sinusoids of the noise level, in every published size."""

BlockType = TypeVar("BlockType", bound=type[nn.Module])


class DiT(nn.Module):
    """A diffusion transformer: ``(x, noise, cond) -> [b, h, w, c]``, or ``2c`` with `learned_variance`.

    The parameters of the blocks are stacked along a first axis of length `depth`. Published sizes, as
    (depth, width, heads): S 12, 384, 6; B 12, 768, 12; L 24, 1024, 16; XL 28, 1152, 16. Raises ValueError
    where the image or the width does not fit the attributes.
    """

    patch: int = 2
    """Side of the pixel blocks that become tokens."""
    width: int = 384
    """Channels of a token."""
    depth: int = 12
    """Number of transformer blocks."""
    heads: int = 6
    """Attention heads."""
    mlp_ratio: int = 4
    """Hidden channels of the MLP in multiples of `width`."""
    positions: Literal["sincos", "rotary"] = "sincos"
    """Token positions: fixed 2-D sinusoids added once, or 2-D rotations of the queries and keys."""
    qk_norm: bool = False
    """RMS norm of the queries and keys (steadier at high learning rates)."""
    dropout: float = 0.0
    """Drop-out rate of both branches of a block, in training."""
    num_classes: int = 0
    """Number of class labels; 0 for none."""
    image_channels: int = 0
    """Channels of a picture that is seen beside x; 0 for none."""
    learned_variance: bool = False
    """Twice the output channels, for a learned variance."""
    max_period: float = 10000.0
    """Longest period of the noise level's sinusoids, over 2 pi."""
    mlp_norm_eps: float = 1e-6
    """Added to the variance in the norm before each MLP; diffusers' file of DiT-XL/2 has 1e-5."""
    remat: Literal["none", "dots", "full"] = "dots"
    """What the backward pass recomputes: nothing, all but the matrix products and attention, or whole blocks."""
    attention: Literal["auto", "plain"] = "auto"
    """The fastest kernel on the platform, or the plain one, which forward-mode differentiation (likelihoods) needs."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute type; parameters, norm statistics, softmax and output are float32."""

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        noise: Float[Array, "b"],
        cond: Cond,
        train: bool = False,
    ) -> Float[Array, "b h w c_out"]:
        """The output at noise input ``noise`` (``c_noise`` of the prediction), float32."""
        self._check(x)
        b, height, width, c = x.shape
        rows, cols = height // self.patch, width // self.patch
        emb = nn.silu(self._embedding(noise, cond))

        tokens = space_to_depth(with_image(x, cond, self.image_channels), self.patch).reshape(b, rows * cols, -1)
        h = dense(self.width, self.dtype, 1.0, "patches")(tokens)
        if self.positions == "sincos":
            h = h + jnp.asarray(sincos_positions(rows, cols, self.width), h.dtype)
        grid = (rows, cols) if self.positions == "rotary" else None
        fields = (self.heads, self.mlp_ratio, grid, self.qk_norm, self.dropout, train, self.dtype, self.attention)
        fields = (*fields, self.mlp_norm_eps)
        h = constrain(h, "batch", "tokens", None)
        h, _ = stacked(self.depth, self.remat)(*fields, name="blocks")(h, emb)

        mod = dense(2 * self.width, "float32", 0.0, "modulation_out")(emb)
        shift, scale = jnp.split(mod, 2, axis=-1)
        h = modulated_norm(h.astype(jnp.float32), shift, scale)
        out_channels = c * (2 if self.learned_variance else 1)
        h = dense(out_channels * self.patch**2, "float32", 0.0, "out")(h)
        return depth_to_space(h.reshape(b, rows, cols, -1), self.patch)

    def _embedding(self, noise: Array, cond: Cond) -> Float[Array, "b width"]:
        init = nn.initializers.normal(0.02)
        emb = sinusoid(noise, NOISE_FEATURES, self.max_period)
        emb = nn.silu(nn.Dense(self.width, kernel_init=init, name="noise_0")(emb))
        emb = nn.Dense(self.width, kernel_init=init, name="noise_1")(emb)
        if self.num_classes:
            table = nn.Embed(self.num_classes + 1, self.width, embedding_init=init, name="label")
            emb += table(label_index(cond, noise.shape[0], self.num_classes))
        return emb

    def _check(self, x: Array) -> None:
        for side, size in (("height", x.shape[1]), ("width", x.shape[2])):
            if size % self.patch:
                raise ValueError(f"image {side} {size} must be a multiple of {self.patch}: change --network.patch")
        if self.width % self.heads or (self.width // self.heads) % 4 or self.width % 4:
            raise ValueError(
                f"width {self.width} with {self.heads} heads: the channels of a head must be a multiple "
                "of 4: change --network.width or --network.heads"
            )


class Block(nn.Module):
    """One transformer block with adaLN-Zero, in the shape that `nn.scan` takes: ``(x, emb) -> (x, None)``."""

    heads: int
    """Attention heads."""
    mlp_ratio: int
    """Hidden channels of the MLP in multiples of the token's."""
    grid: tuple[int, int] | None
    """Rows and columns of tokens for rotary positions; None for none."""
    qk_norm: bool
    """RMS norm of the queries and keys."""
    dropout: float
    """Drop-out rate of both branches, in training."""
    train: bool
    """Whether drop-out is on."""
    dtype: str
    """Compute type."""
    kernel: str = "auto"
    """How attention is computed, as in `layers.attention`."""
    mlp_norm_eps: float = 1e-6
    """Added to the variance in the norm before the MLP."""

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], emb: Float[Array, "b d"]) -> tuple[Float[Array, "b n d"], None]:
        d = x.shape[-1]
        mod = constrain(dense(6 * d, self.dtype, 0.0, "modulation")(emb), "batch", None)
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = jnp.split(mod, 6, axis=-1)

        h = self._attend(modulated_norm(x, shift_1, scale_1))
        x = x + gate_1[:, None] * self._drop(h)

        h = modulated_norm(x, shift_2, scale_2, self.mlp_norm_eps)
        h = dense(self.mlp_ratio * d, self.dtype, 1.0, "mlp_0")(h)
        h = constrain(h, "batch", "tokens", "hidden")
        h = dense(d, self.dtype, 1.0, "mlp_1")(nn.gelu(h, approximate=True))
        x = x + gate_2[:, None] * self._drop(h)
        return constrain(x, "batch", "tokens", None), None

    def _attend(self, x: Array) -> Array:
        b, n, d = x.shape
        shape = (3, self.heads, d // self.heads)
        qkv = nn.DenseGeneral(shape, dtype=jnp.dtype(self.dtype), kernel_init=kernel_init(1.0), name="qkv")(x)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        if self.qk_norm:
            q = nn.RMSNorm(dtype=x.dtype, name="norm_q")(q)
            k = nn.RMSNorm(dtype=x.dtype, name="norm_k")(k)
        if self.grid is not None:
            q, k = rotate(q, *self.grid), rotate(k, *self.grid)
        # Each part of the sequence asks with its own tokens, and sees the keys and values of all.
        q = constrain(q, "batch", "tokens", "heads", None)
        k, v = (constrain(a, "batch", None, "heads", None) for a in (k, v))
        h = attention(self, q, k, v, self.kernel).reshape(b, n, d)
        return dense(d, self.dtype, 1.0, "out")(h)

    def _drop(self, h: Array) -> Array:
        return nn.Dropout(self.dropout, deterministic=not self.train)(h)


def stacked(depth: int, remat: str) -> type[Block]:
    """`depth` blocks after each other, as in `scanned`."""
    return scanned(Block, depth, remat)


def scanned(block: BlockType, depth: int, remat: str) -> BlockType:
    """`depth` blocks after each other, compiled once: their parameters have a first axis of that length.

    A block is ``(carried, *seen) -> (carried, None)``. `remat` says what the backward pass recomputes, as in `DiT`.
    """
    return nn.scan(
        recomputed(block, remat, in_scan=True),
        variable_axes={"params": 0, PERTURBED: 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=nn.broadcast,  # pyright: ignore[reportArgumentType]
        length=depth,
    )


def modulated_norm(
    x: Float[Array, "b n d"], shift: Float[Array, "b d"], scale: Float[Array, "b d"], eps: float = 1e-6
) -> Float[Array, "b n d"]:
    """``(x - mean) / sqrt(var + eps) * (1 + scale) + shift`` over the last axis, statistics in float32."""
    wide = x.astype(jnp.float32)
    mean = wide.mean(-1, keepdims=True)
    var = jnp.square(wide - mean).mean(-1, keepdims=True)
    normed = (wide - mean) * jax.lax.rsqrt(var + eps)
    return (normed * (1 + scale[:, None]) + shift[:, None]).astype(x.dtype)


def sincos_positions(rows: int, cols: int, width: int, extent: float | None = None) -> Float[np.ndarray, "n width"]:
    """Fixed positions of a grid of tokens, row by row: half the channels tell the column, half the row.

    Each half is the `waves` of that axis, whose positions are 0, 1, 2, ..., or with `extent` divide it evenly: larger
    images then lie closer, as in PixArt. A NumPy constant.
    Source: arXiv:2212.09748, Sec. 3.2, after arXiv:2111.06377, App. A.1.
    """
    by_row, by_col = (waves(n, width // 2, 1.0 if extent is None else extent / n) for n in (rows, cols))
    halves = (np.tile(by_col, (rows, 1)), np.repeat(by_row, cols, axis=0))
    return np.concatenate(halves, axis=-1).astype(np.float32)


def waves(count: int, width: int, step: float = 1.0) -> Float[np.ndarray, "n width"]:
    """``[sin(p w), cos(p w)]`` at p = 0, step, 2 step, ... with ``w_i = 10000 ** (-i / (width / 2))``."""
    w = 10000.0 ** -(np.arange(width // 2) / (width // 2))
    angle = (np.arange(count, dtype=np.float64) * step)[:, None] * w
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=-1)


def rotate(x: Float[Array, "b n heads d"], rows: int, cols: int) -> Float[Array, "b n heads d"]:
    """Rotary 2-D positions: channel pairs turned by angles that grow with the row or the column.

    The product of a rotated query and key depends only on how far apart their tokens are.
    Source: arXiv:2104.09864, Eq. 14, on the two axes of an image (arXiv:2403.13298, Sec. 3.1).
    """
    row, col = np.divmod(np.arange(rows * cols, dtype=np.float64), cols)
    quarter = x.shape[-1] // 4
    w = 100.0 ** -(np.arange(quarter) / quarter)
    angle = np.concatenate([row[:, None] * w, col[:, None] * w], axis=-1)[:, None, :]
    cos, sin = jnp.asarray(np.cos(angle), jnp.float32), jnp.asarray(np.sin(angle), jnp.float32)
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1).astype(x.dtype)
