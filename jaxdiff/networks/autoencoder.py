"""AutoencoderKL: between pictures and normal distributions over latents (Stable Diffusion 1 and 2, SDXL, SD3, FLUX.1).

    block     x = skip(x) + conv(silu(norm(conv(silu(norm(x))))))
    middle    block, attention between all pixels, block
    encoder   conv, at each size: blocks, then half the size; middle; norm, silu, conv; quant
    decoder   quant, conv, middle; at each size: blocks, one more than there, then twice the size; norm, silu, conv

The encoder gives mean and log variance, which is kept in [-30, 20]. `quant` is a 1x1 convolution that SD3 and FLUX.1
have not. The strided convolutions see zeros at the right and below only, as "SAME" means for even sizes.
Sources: arXiv:2112.10752, Sec. 3.1; arXiv:2012.09841 (the networks); arXiv:1312.6114 (the distribution).
"""

import dataclasses
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiff.core.codec import Posterior
from jaxdiff.networks.axes import constrain
from jaxdiff.networks.blocks import Downsample, Upsample
from jaxdiff.networks.layers import GroupNorm, conv
from jaxdiff.networks.multihead import MultiHead
from jaxdiff.networks.remat import recomputed

EPS = 1e-6
"""Added to the variance in group norm."""

LOGVAR = (-30.0, 20.0)
"""The range of the log variance."""


class Block(nn.Module):
    """A residual block without a condition; its second convolution starts at zero."""

    features: int
    """Channels of the result."""
    groups: int
    """Groups of the norms."""
    dtype: str = "float32"
    """Compute type."""

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w features"]:
        h = nn.silu(GroupNorm(EPS, self.groups, name="norm_0")(x))
        h = constrain(conv(self.features, 3, self.dtype, 1.0, "conv_0")(h), "batch", None, None, "hidden")
        h = nn.silu(GroupNorm(EPS, self.groups, name="norm_1")(h))
        h = conv(self.features, 3, self.dtype, 0.0, "conv_1")(h)
        if x.shape[-1] != self.features:
            x = conv(self.features, 1, self.dtype, 1.0, "skip")(x)
        return constrain(x + h, "batch", None, None, None)


class Attention(nn.Module):
    """Attention between all pixels with one head, added to its input; it starts at zero."""

    groups: int
    """Groups of the norm."""
    dtype: str = "float32"
    """Compute type; the softmax is float32."""
    kernel: str = "auto"
    """How attention is computed, as in `layers.attention`."""

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        b, height, width, c = x.shape
        h = GroupNorm(EPS, self.groups, name="norm")(x).reshape(b, height * width, c)
        heads = MultiHead(1, c, out_gain=0.0, dtype=self.dtype, kernel=self.kernel, name="heads")
        return x + heads(h).reshape(x.shape)


@dataclasses.dataclass(frozen=True)
class Parts:
    """What both halves are made of; to be called inside a compact method."""

    groups: int
    middle_attention: bool
    remat: str
    kernel: str
    dtype: str

    def block(self, features: int, name: str) -> Block:
        """A residual block."""
        return recomputed(Block, self.remat)(features, self.groups, self.dtype, name=name)

    def middle(self, h: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """`h` after the middle."""
        h = self.block(h.shape[-1], "middle_0")(h)
        if self.middle_attention:
            h = recomputed(Attention, self.remat)(self.groups, self.dtype, self.kernel, name="middle_attention")(h)
        return self.block(h.shape[-1], "middle_1")(h)

    def end(self, h: Float[Array, "b h w c"], features: int) -> Float[Array, "b h w features"]:
        """The last norm and convolution, float32."""
        h = nn.silu(GroupNorm(EPS, self.groups, name="norm_out")(h.astype(jnp.float32)))
        return conv(features, 3, "float32", 1.0, "conv_out")(h)


class Encoder(nn.Module):
    """Pictures to what is known of their latents."""

    parts: Parts
    widths: tuple[int, ...]
    blocks_per_level: int
    outputs: int
    """Channels of the last convolution."""
    quant: int
    """Channels of a 1x1 convolution behind it; 0 for none."""

    @nn.compact
    def __call__(self, x: Float[Array, "b height width c"]) -> Float[Array, "b h w c2"]:
        dtype = self.parts.dtype
        h = conv(self.widths[0], 3, dtype, 1.0, "conv_in")(x.astype(dtype))
        for level, width in enumerate(self.widths):
            if level:
                h = Downsample(dtype=dtype, name=f"down_{level - 1}_half")(h)
            for i in range(self.blocks_per_level):
                h = self.parts.block(width, f"down_{level}_{i}")(h)
        h = self.parts.end(self.parts.middle(h), self.outputs)
        return conv(self.quant, 1, "float32", 1.0, "quant")(h) if self.quant else h


class Decoder(nn.Module):
    """Latents to pictures."""

    parts: Parts
    widths: tuple[int, ...]
    blocks_per_level: int
    channels: int
    quant: int
    """Channels of a 1x1 convolution before all else; 0 for none."""

    @nn.compact
    def __call__(self, z: Float[Array, "b h w c2"]) -> Float[Array, "b height width c"]:
        dtype = self.parts.dtype
        h = conv(self.quant, 1, "float32", 1.0, "quant")(z) if self.quant else z
        h = conv(self.widths[-1], 3, dtype, 1.0, "conv_in")(h.astype(dtype))
        h = self.parts.middle(h)
        for level, width in enumerate(reversed(self.widths)):
            if level:
                h = Upsample(dtype=dtype, name=f"up_{level - 1}_twice")(h)
            for i in range(self.blocks_per_level + 1):
                h = self.parts.block(width, f"up_{level}_{i}")(h)
        return self.parts.end(h, self.channels)


class AutoencoderKL(nn.Module):
    """Encoder and decoder; called, the picture that the mean of the encoder's distribution stands for.

    Its parameters are {"encoder": ..., "decoder": ...}. Raises ValueError where a width or a picture does not fit.
    """

    latents: int = 4
    """Channels of a latent pixel."""
    widths: tuple[int, ...] = (128, 256, 512, 512)
    """Channels at each size of the features; the first is the picture's, and each further one half the one before."""
    blocks_per_level: int = 2
    """Residual blocks of the encoder at each size; the decoder has one more."""
    channels: int = 3
    """Channels of a picture."""
    groups: int = 32
    """Groups of the norms, which divide all widths."""
    quant: bool = True
    """A 1x1 convolution behind the encoder and one before the decoder."""
    middle_attention: bool = True
    """Attention between all pixels of the smallest size."""
    remat: Literal["none", "dots", "full"] = "none"
    """What the backward pass recomputes: nothing, all but convolutions and matrix products, or whole blocks."""
    attention: Literal["auto", "plain"] = "auto"
    """The fastest kernel on the platform, or the plain one."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute type; parameters, norm statistics, softmax, moments and pictures are float32."""

    num_classes = 0  # no field: what every network of a run has

    @property
    def factor(self) -> int:
        """Pixels a side for each latent pixel."""
        return 2 ** (len(self.widths) - 1)

    def setup(self) -> None:
        check_widths(self.widths, self.groups)
        parts, quant = Parts(self.groups, self.middle_attention, self.remat, self.attention, self.dtype), self.quant
        moments = 2 * self.latents  # means and log variances
        self.encoder = Encoder(parts, self.widths, self.blocks_per_level, moments, moments * quant)
        self.decoder = Decoder(parts, self.widths, self.blocks_per_level, self.channels, self.latents * quant)

    def encode(self, x: Float[Array, "b height width c"]) -> Posterior:
        """The distribution over latents [b, height / factor, width / factor, latents] of pictures in [-1, 1]."""
        check_sides(x, self.factor)
        mean, logvar = jnp.split(self.encoder(x), 2, axis=-1)
        return Posterior(mean, jnp.clip(logvar, *LOGVAR))

    def decode(self, z: Float[Array, "b h w c"]) -> Float[Array, "b height width c2"]:
        """Pictures, in [-1, 1] but for small errors."""
        return self.decoder(z)

    def __call__(self, x: Float[Array, "b height width c"]) -> Float[Array, "b height width c"]:
        """The picture of the mean."""
        return self.decode(self.encode(x).mean)


def check_widths(widths: tuple[int, ...], groups: int) -> None:
    """Refuses widths that the groups do not divide. Raises ValueError."""
    if not widths or any(width % groups for width in widths):
        raise ValueError(
            f"widths {widths} are not allowed: at least one, and multiples of {groups} "
            "(--network.widths, --network.groups)"
        )


def check_sides(x: Float[Array, "b h w c"], factor: int) -> None:
    """Refuses pictures whose sides the factor does not divide. Raises ValueError."""
    for name, side in (("height", x.shape[1]), ("width", x.shape[2])):
        if side % factor:
            raise ValueError(f"{name} {side} of a picture is not allowed: a multiple of {factor} (--size)")
