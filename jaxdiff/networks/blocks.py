"""The blocks of the U-Net: residual block, self-attention, plain resampling.

Residual block (arXiv:2006.11239, App. B; with scale and shift arXiv:2105.05233, Sec. 3)::

    h = conv(resample(silu(norm(x))))
    h = conv(dropout(silu(norm(h) * (1 + s) + t)))        or silu(norm(h + t))
    out = skip_scale * (skip(resample(x)) + h)
"""

from collections.abc import Callable
from typing import TypeAlias

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiff.networks.axes import constrain
from jaxdiff.networks.layers import GroupNorm, attention, conv, dense, scaled
from jaxdiff.networks.resample import upsampled_convolution

Resample: TypeAlias = Callable[[Float[Array, "b h w c"]], Float[Array, "b h2 w2 c"]]
"""Changes the size of an image."""


class ResBlock(nn.Module):
    """A residual block conditioned on an embedding; the last convolution starts at zero."""

    features: int
    """Channels of the result."""
    resample: Resample | None = None
    """Up- or downsampling of both branches; None keeps the size."""
    project: bool = False
    """A 1x1 convolution on the skip even where the channels agree."""
    scale_shift: bool = False
    """The embedding scales and shifts the second norm, and is not just added before it."""
    dropout: float = 0.0
    """Drop-out rate before the last convolution, in training."""
    skip_scale: float = 1.0
    """Factor on the sum of the two branches."""
    norm_eps: float = 1e-5
    """Added to the variance in group norm."""
    norm_groups: int = 0
    """Groups of group norm; 0 for `layers.num_groups`."""
    gain: float = 1.0
    """Scale of the initial kernels' variance."""
    dtype: str = "float32"
    """Compute type."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], emb: Float[Array, "b e"], train: bool
    ) -> Float[Array, "b h2 w2 features"]:
        h = nn.silu(GroupNorm(self.norm_eps, self.norm_groups, name="norm_0")(x))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = conv(self.features, 3, self.dtype, self.gain, "conv_0")(h)
        h = constrain(h, "batch", None, None, "hidden")
        size = self.features * (2 if self.scale_shift else 1)
        mod = constrain(dense(size, self.dtype, self.gain, "embedding")(emb), "batch", None)
        norm = GroupNorm(self.norm_eps, self.norm_groups, name="norm_1")
        if self.scale_shift:
            s, t = jnp.split(mod.astype(jnp.float32), 2, axis=-1)
            h = norm(h, (s, t))
        else:
            h = norm(h + mod[:, None, None, :])
        h = nn.Dropout(self.dropout, deterministic=not train)(nn.silu(h))
        h = conv(self.features, 3, self.dtype, 0.0, "conv_1")(h)
        if self.project or x.shape[-1] != self.features:
            x = conv(self.features, 1, self.dtype, self.gain, "skip")(x)
        return constrain(scaled(x + h, self.skip_scale), "batch", None, None, None)


class Attention(nn.Module):
    """Self-attention between the pixels of a feature map, added to it; it starts at zero.

    Source: arXiv:2006.11239, App. B (one head), arXiv:2105.05233, Sec. 3 (64 channels a head).
    """

    heads: int = 1
    """Number of heads."""
    skip_scale: float = 1.0
    """Factor on the sum of the two branches."""
    norm_eps: float = 1e-5
    """Added to the variance in group norm."""
    norm_groups: int = 0
    """Groups of group norm; 0 for `layers.num_groups`."""
    gain: float = 1.0
    """Scale of the initial kernels' variance."""
    dtype: str = "float32"
    """Compute type; the softmax is float32."""
    kernel: str = "auto"
    """How attention is computed, as in `layers.attention`."""

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        b, height, width, c = x.shape
        h = GroupNorm(self.norm_eps, self.norm_groups, name="norm")(x).reshape(b, height * width, c)
        qkv = dense(3 * c, self.dtype, self.gain, "qkv")(h)
        q, k, v = jnp.moveaxis(qkv.reshape(b, -1, 3, self.heads, c // self.heads), 2, 0)
        h = attention(self, q, k, v, self.kernel).reshape(b, height, width, c)
        h = dense(c, self.dtype, 0.0, "out")(h)
        return scaled(x + h, self.skip_scale)


class Downsample(nn.Module):
    """A 3x3 convolution with stride 2. Source: arXiv:2006.11239, App. B."""

    gain: float = 1.0
    """Scale of the initial kernel's variance."""
    symmetric: bool = False
    """Zeros on all sides of the image (PyTorch); False for the right and the bottom alone (TensorFlow)."""
    dtype: str = "float32"
    """Compute type."""

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        padding = 1 if self.symmetric else "SAME"
        return conv(x.shape[-1], 3, self.dtype, self.gain, "conv", stride=2, padding=padding)(x)


class Upsample(nn.Module):
    """Nearest-neighbour interpolation and a 3x3 convolution. Source: arXiv:2006.11239, App. B."""

    gain: float = 1.0
    """Scale of the initial kernel's variance."""
    dtype: str = "float32"
    """Compute type."""

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        return conv(x.shape[-1], 3, self.dtype, self.gain, "conv", operation=upsampled_convolution)(x)
