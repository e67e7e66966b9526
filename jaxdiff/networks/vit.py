"""The parts of a plain vision (or text) transformer: pre-norm blocks and their stack, patches, positions.

    block    x += s_0 * attention(norm(x))
             x += s_1 * mlp(norm(x))              s = 1, or learned for each channel (layer scale)
    mlp      dense(act(dense(x)))                 or, gated, dense(act(a) * b) with (a, b) = dense(x)

Source: arXiv:2010.11929, Sec. 3.1; layer scale arXiv:2103.17239; gated layers arXiv:2002.05202.
"""

import math
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdiff.networks.frozen import EXACT
from jaxdiff.networks.layers import dense, kernel_init

Activation: TypeAlias = Callable[[Float[Array, "..."]], Float[Array, "..."]]
"""A nonlinearity, channel by channel."""


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """``x Phi(x)`` with the exact normal distribution function. Source: arXiv:1606.08415, Sec. 2."""
    return nn.gelu(x, approximate=False)


def quick_gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """``x sigmoid(1.702 x)``, which is what OpenAI's CLIP was trained with. Source: arXiv:1606.08415, Sec. 2."""
    return x * nn.sigmoid(1.702 * x)


class Hidden(NamedTuple):
    """What the two last blocks of a stack put out, not normalised."""

    last: Float[Array, "b n d"]
    penultimate: Float[Array, "b n d"]


class Block(nn.Module):
    """One pre-norm transformer block: ``[b, n, d] -> [b, n, d]``."""

    heads: int
    """Attention heads."""
    hidden: int
    """Hidden channels of the MLP."""
    activation: Activation = gelu
    """Nonlinearity of the MLP."""
    gated: bool = False
    """A gated MLP; with `nn.silu` it is SwiGLU."""
    layer_scale: float | None = None
    """Initial value of the learned factors on both branches; None for no such factors."""
    causal: bool = False
    """Tokens see themselves and earlier ones only."""
    norm_eps: float = 1e-6
    """Added to the variance in layer norm."""
    dtype: str = "float32"
    """Compute type; norm statistics and softmax are float32."""

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        d = x.shape[-1]
        h = self._attend(layer_norm(self.norm_eps, "norm_0")(x))
        x = x + self._scaled(h, "scale_0")

        h = layer_norm(self.norm_eps, "norm_1")(x)
        h = dense(self.hidden * (2 if self.gated else 1), self.dtype, 1.0, "mlp_0")(h)
        if self.gated:
            gate, value = jnp.split(h, 2, axis=-1)
            h = self.activation(gate) * value
        else:
            h = self.activation(h)
        return x + self._scaled(dense(d, self.dtype, 1.0, "mlp_1")(h), "scale_1")

    def _attend(self, x: Array) -> Array:
        b, n, d = x.shape
        qkv = dense(3 * d, self.dtype, 1.0, "qkv")(x).reshape(b, n, 3, self.heads, d // self.heads)
        h = jax.nn.dot_product_attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], is_causal=self.causal)
        return dense(d, self.dtype, 1.0, "out")(h.reshape(b, n, d))

    def _scaled(self, h: Array, name: str) -> Array:
        if self.layer_scale is None:
            return h
        factor = self.param(name, nn.initializers.constant(self.layer_scale), h.shape[-1:])
        return h * jnp.asarray(factor, h.dtype)


def encode(block: Block, depth: int, x: Float[Array, "b n d"]) -> Hidden:
    """`depth` copies of `block`, each with its own parameters, one after the other; called inside a module.

    The parameters are stacked along a first axis of length `depth`. Raises ValueError for widths that the
    heads do not divide and for a depth below 1.
    """
    if x.shape[-1] % block.heads:
        raise ValueError(f"width {x.shape[-1]} must be a multiple of the number of heads, {block.heads}: change heads")
    if depth < 1:
        raise ValueError(f"depth {depth} must be at least 1: change depth")

    def body(block: Block, hidden: Hidden, _: None) -> tuple[Hidden, None]:
        return Hidden(block(hidden.last), hidden.last), None

    scan = nn.scan(body, variable_axes={"params": 0}, split_rngs={"params": True}, length=depth)
    # Products in full, as in `frozen.py`: attention takes its precision only from here.
    with jax.default_matmul_precision("highest"):
        hidden, _ = scan(block, Hidden(x, x), None)
    return hidden


def layer_norm(eps: float, name: str) -> nn.LayerNorm:
    """Layer norm in float32, whatever its input's type."""
    # The fast variance, mean(x^2) - mean(x)^2, loses digits where a token has a few huge channels, as in CLIP.
    return nn.LayerNorm(epsilon=eps, dtype=jnp.float32, use_fast_variance=False, name=name)


def patch_conv(width: int, patch: int, dtype: str, name: str, use_bias: bool = True) -> nn.Conv:
    """Patches of ``patch x patch`` pixels as `width` channels."""
    return nn.Conv(
        width,
        (patch, patch),
        strides=patch,
        padding="VALID",
        use_bias=use_bias,
        precision=EXACT,
        dtype=jnp.dtype(dtype),
        kernel_init=kernel_init(1.0),
        name=name,
    )


def resize_positions(
    positions: Float[Array, "n d"], rows: int, cols: int, offset: float = 0.0, antialias: bool = False
) -> Float[Array, "n2 d"]:
    """The embeddings of a square grid of positions, row by row, on a grid of ``rows x cols`` (see `cubic_weights`)."""
    side = math.isqrt(positions.shape[0])
    if side * side != positions.shape[0]:
        raise ValueError(f"{positions.shape[0]} positions do not form a square grid: change the grid of the network")
    by_row = jnp.asarray(cubic_weights(side, rows, offset, antialias), positions.dtype)
    by_col = jnp.asarray(cubic_weights(side, cols, offset, antialias), positions.dtype)
    grid = positions.reshape(side, side, -1)
    resized = jnp.einsum("ri,cj,ijd->rcd", by_row, by_col, grid, precision=EXACT)
    return resized.reshape(rows * cols, -1)


def cubic_weights(size: int, new: int, offset: float = 0.0, antialias: bool = False) -> Float[np.ndarray, "new size"]:
    """Bicubic interpolation of `size` samples at `new` places along one axis, as PyTorch does it: a NumPy matrix.

    Place i lies at ``(i + 1/2) r`` for samples at ``j + 1/2``, with ``r = size / (new + offset)``. Without
    `antialias` the kernel is Keys' with a = -3/4, four samples wide, and the edges repeat. With it, a = -1/2,
    the kernel is stretched by r where r > 1, and the weights inside are renormalised. Rows sum to one.
    """
    ratio = size / (new + offset)
    place = (np.arange(new)[:, None] + 0.5) * ratio
    if antialias:
        weights = _cubic((np.arange(size) + 0.5 - place) / max(ratio, 1.0), -0.5)
        return weights / weights.sum(axis=1, keepdims=True)
    taps = np.floor(place - 0.5).astype(int) + np.arange(-1, 3)
    weights = np.zeros((new, size))
    np.add.at(weights, (np.arange(new)[:, None], taps.clip(0, size - 1)), _cubic(taps + 0.5 - place, -0.75))
    return weights


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    """Keys' piecewise cubic kernel, zero from a distance of 2 on."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))
