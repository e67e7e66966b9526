"""EDM2's U-Net, all of whose layers keep the magnitude of what passes through them (arXiv:2312.02696, config G).

For inputs of unit variance every output has unit variance, whatever the weights are:

    convolution   w / |w| of each output over its inputs           pixel norm   x / sqrt(mean_c x^2)
    mp_silu(x)  = silu(x) / 0.596                                  fourier(t) = sqrt(2) cos(2 pi (f t + p))
    mp_sum(a, b; t) = ((1 - t) a + t b) / sqrt((1 - t)^2 + t^2)
    mp_cat(a, b; t) = sqrt((n_a + n_b) / ((1 - t)^2 + t^2)) [(1 - t) / sqrt(n_a) a, t / sqrt(n_b) b]

There are no biases and no group norms. Two kinds of gains are learned, from 0: of the embedding and of the output.
The weights are normalised where they are used. That they lie on the sphere as well, where they begin and where every
step of a training brings them back to (the paper's forced normalisation), is `core.magnitudes.on_sphere`.
"""

import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxdiff.core.magnitudes import EPS, fourier, sphere
from jaxdiff.core.types import Cond
from jaxdiff.networks.convolution import convolution, pointwise
from jaxdiff.networks.layers import attention
from jaxdiff.networks.remat import recomputed
from jaxdiff.networks.resample import downsample, upsample


class EDM2(nn.Module):
    """EDM2's U-Net: ``(x, noise, cond) -> [b, h, w, c]``.

    Published sizes by `channels`, with the other attributes as they are here: XS 128, S 192, M 256, L 320, XL 384,
    XXL 448, for 64 x 64 images or latents. Raises ValueError where the image or a width does not fit the attributes.
    """

    channels: int = 192
    """Channels at the first level."""
    channel_mults: tuple[int, ...] = (1, 2, 3, 4)
    """Channels of each level in multiples of `channels`; every level after the first has half the size."""
    blocks_per_level: int = 3
    """Blocks of an encoder level; a decoder level has one more."""
    attention_levels: tuple[int, ...] = (2, 3)
    """Levels that have self-attention, counted from 0."""
    head_channels: int = 64
    """Channels of an attention head."""
    noise_features: int = 0
    """Fourier features of the noise level; 0 for the channels of the first level."""
    embedding_width: int = 0
    """Width of the embedding; 0 for the most channels of a level."""
    frequencies: tuple[float, ...] = ()
    """Of the Fourier features, in turns; () draws them by N(0, 1)."""
    phases: tuple[float, ...] = ()
    """Of the Fourier features, in turns; () draws them from [0, 1)."""
    num_classes: int = 0
    """Number of class labels; 0 for none."""
    label_balance: float = 0.5
    """Share of the label in the embedding."""
    concat_balance: float = 0.5
    """Share of the encoder's features in a decoder block's input."""
    residual_balance: float = 0.3
    """Share of a block's residual branch."""
    attention_balance: float = 0.3
    """Share of attention."""
    clip: float = 256.0
    """Features are clipped at this magnitude, for low precision."""
    dropout: float = 0.0
    """Drop-out rate in the blocks, in training."""
    learned_variance: bool = False
    """Not known to this network: always False."""
    remat: Literal["none", "dots", "full"] = "none"
    """What the backward pass recomputes: nothing, all but convolutions and matrix products, or whole blocks."""
    attention: Literal["auto", "plain"] = "auto"
    """The fastest kernel on the platform, or the plain one, which forward-mode differentiation (likelihoods) needs."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute type; parameters, magnitudes of weights, softmax and output are float32."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], noise: Float[Array, "b"], cond: Cond, train: bool = False
    ) -> Float[Array, "b h w c"]:
        """The output at noise input ``noise`` (``c_noise`` of the prediction), float32."""
        self._check(x)
        emb = self._embedding(noise, cond).astype(self.dtype)
        # A channel of ones takes the place of biases.
        h = jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1).astype(self.dtype)
        h = MPConv(self.channels * self.channel_mults[0], 3, name="conv_in")(h)
        skips, last = [h], len(self.channel_mults) - 1
        for level, mult in enumerate(self.channel_mults):
            for i in range(self.blocks_per_level):
                attends = level in self.attention_levels
                h = self._block(f"encoder_{level}_{i}", self.channels * mult, True, attends)(h, emb, train)
                skips.append(h)
            if level < last:
                h = self._block(f"encoder_{level}_down", h.shape[-1], True)(downsample(h), emb, train)
                skips.append(h)
        h = self._block("middle_0", h.shape[-1], False, True)(h, emb, train)
        h = self._block("middle_1", h.shape[-1], False)(h, emb, train)
        for level, mult in reversed(list(enumerate(self.channel_mults))):
            for i in range(self.blocks_per_level + 1):
                attends = level in self.attention_levels
                h = mp_cat(h, skips.pop(), self.concat_balance)
                h = self._block(f"decoder_{level}_{i}", self.channels * mult, False, attends)(h, emb, train)
            if level > 0:
                h = self._block(f"decoder_{level}_up", h.shape[-1], False)(upsample(h), emb, train)
        gain = self.param("out_gain", nn.initializers.zeros, (1,))
        return MPConv(x.shape[-1], 3, name="conv_out")(h.astype(jnp.float32), gain)

    def _embedding(self, noise: Array, cond: Cond) -> Float[Array, "b e"]:
        width = self.embedding_width or self.channels * max(self.channel_mults)
        features = self.noise_features or self.channels * self.channel_mults[0]
        waves = fourier(noise, features, self.frequencies, self.phases)
        emb = MPConv(width, name="noise")(waves)
        if self.num_classes:
            label = cond["label"] if "label" in cond else jnp.full(noise.shape, -1, jnp.int32)
            # An absent label is all zeros.
            one_hot = jax.nn.one_hot(label, self.num_classes) * math.sqrt(self.num_classes)
            emb = mp_sum(emb, MPConv(width, name="label")(one_hot), self.label_balance)
        return mp_silu(emb)

    def _block(self, name: str, features: int, encoder: bool, attends: bool = False) -> "Block":
        return recomputed(Block, self.remat, static_argnums=(3,))(
            features,
            encoder,
            features // self.head_channels if attends else 0,
            self.residual_balance,
            self.attention_balance,
            self.clip,
            self.dropout,
            self.attention,
            name=name,
        )

    def _check(self, x: Array) -> None:
        if self.learned_variance:
            raise ValueError("learned_variance = True is not allowed with EDM2 (--network.learned-variance)")
        if any(self.channels * mult % self.head_channels for mult in self.channel_mults):
            raise ValueError(
                f"head_channels = {self.head_channels} must divide the channels of every level "
                "(--network.head-channels, --network.channels)"
            )
        factor = 2 ** (len(self.channel_mults) - 1)
        for side, size in (("height", x.shape[1]), ("width", x.shape[2])):
            if size % factor:
                raise ValueError(
                    f"image {side} {size} must be a multiple of {factor} for this network: change "
                    "--network.channel-mults"
                )


class Block(nn.Module):
    """A block at one size: residual branch, then self-attention. Source: arXiv:2312.02696, Fig. 21."""

    features: int
    """Channels of the result."""
    encoder: bool
    """The encoder's kind, whose main branch is normalised; False: the decoder's."""
    heads: int
    """Attention heads; 0 for no attention."""
    residual_balance: float
    """Share of the residual branch."""
    attention_balance: float
    """Share of attention."""
    clip: float
    """Features are clipped at this magnitude."""
    dropout: float
    """Drop-out rate, in training."""
    kernel: str
    """How attention is computed, as in `layers.attention`."""

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], emb: Float[Array, "b e"], train: bool) -> Float[Array, "b h w d"]:
        project = x.shape[-1] != self.features
        skip = MPConv(self.features, 1, name="skip")
        if self.encoder:
            x = pixel_norm(skip(x) if project else x)
        y = MPConv(self.features, 3, name="conv_0")(mp_silu(x))
        gain = self.param("embedding_gain", nn.initializers.zeros, (1,))
        c = MPConv(self.features, name="embedding")(emb, gain) + 1
        y = nn.Dropout(self.dropout, deterministic=not train)(mp_silu(y * c[:, None, None, :]))
        y = MPConv(self.features, 3, name="conv_1")(y)
        x = mp_sum(skip(x) if project and not self.encoder else x, y, self.residual_balance)
        if self.heads:
            x = mp_sum(x, self._attend(x), self.attention_balance)
        return jnp.clip(x, -self.clip, self.clip)

    def _attend(self, x: Array) -> Array:
        b, height, width, c = x.shape
        qkv = MPConv(3 * c, 1, name="qkv")(x).reshape(b, height * width, 3, self.heads, c // self.heads)
        q, k, v = jnp.moveaxis(pixel_norm(qkv), 2, 0)
        h = attention(self, q, k, v, self.kernel).reshape(x.shape)
        return MPConv(c, 1, name="out")(h)


class MPConv(nn.Module):
    """A convolution, or a dense layer, whose outputs have the magnitude of its inputs, times a gain.

    ``w / (|w| / sqrt(n) + 1e-4) / sqrt(n)`` of each output's n weights. Source: arXiv:2312.02696, Eq. 47 and 66.
    """

    features: int
    """Number of outputs."""
    size: int = 0
    """Side of the kernel; 0 for a dense layer."""

    @nn.compact
    def __call__(self, x: Float[Array, "b *hw c"], gain: Array | float = 1.0) -> Float[Array, "b *hw d"]:
        shape = (*(self.size, self.size) * bool(self.size), x.shape[-1], self.features)
        kernel = self.param("kernel", on_sphere_init, shape)
        fan_in = math.prod(shape[:-1])
        kernel = (sphere(kernel) * (gain / math.sqrt(fan_in))).astype(x.dtype)
        if not self.size:
            return x @ kernel
        return convolution(x, kernel) if self.size == 3 else pointwise(x, kernel)


def on_sphere_init(key: Key[Array, ""], shape: tuple[int, ...]) -> Float[Array, "*n d"]:
    """Normal weights, the weights of each output scaled to a root mean square of one."""
    return sphere(jax.random.normal(key, shape))


def pixel_norm(x: Float[Array, "*n c"]) -> Float[Array, "*n c"]:
    """``x / sqrt(mean_c x^2)``. Source: arXiv:2312.02696, Eq. 30."""
    magnitude = jnp.sqrt(jnp.square(x.astype(jnp.float32)).mean(-1, keepdims=True))
    return x / (EPS + magnitude).astype(x.dtype)


def mp_silu(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """``silu(x) / 0.596``, of unit magnitude for normal x. Source: arXiv:2312.02696, Eq. 81."""
    return nn.silu(x) / jnp.asarray(0.596, x.dtype)


def mp_sum(a: Float[Array, "*n"], b: Float[Array, "*n"], share: float) -> Float[Array, "*n"]:
    """The sum with so large a share of `b`, of unit magnitude for independent a and b. Source: ibid., Eq. 88."""
    return ((1 - share) * a + share * b) / math.hypot(1 - share, share)


def mp_cat(a: Float[Array, "*n c"], b: Float[Array, "*n d"], share: float) -> Float[Array, "*n e"]:
    """The channels of both, of unit magnitude together; `share` of b's influence. Source: ibid., Eq. 103."""
    n, m = a.shape[-1], b.shape[-1]
    factor = math.sqrt(n + m) / math.hypot(1 - share, share)
    return jnp.concatenate([a * (factor * (1 - share) / math.sqrt(n)), b * (factor * share / math.sqrt(m))], axis=-1)
