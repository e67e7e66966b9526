"""Layers that the networks share: initial values, normalisation, noise and label embeddings."""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from jaxdiff.core.types import Cond
from jaxdiff.networks.attention import borrowed, fastest, plain
from jaxdiff.networks.convolution import convolution, pointwise
from jaxdiff.networks.remat import ATTENTION

PERTURBED = "perturbed"
"""The collection of variables that says which attention maps are the identity; absent where none is."""


def kernel_init(gain: float) -> nn.initializers.Initializer:
    """Uniform kernels of variance ``gain * 2 / (fan_in + fan_out)``; all zeros for ``gain = 0``.

    1 is Glorot's law (DDPM, NCSN++); 1/3 is PyTorch's default for square kernels (iDDPM, ADM).
    """
    if gain == 0:
        return nn.initializers.zeros
    return nn.initializers.variance_scaling(gain, "fan_avg", "uniform")


def conv(
    features: int,
    size: int,
    dtype: str,
    gain: float,
    name: str,
    stride: int = 1,
    padding: str | int = "SAME",
    operation: Callable[..., Array] | None = None,
) -> nn.Conv:
    """A ``size x size`` convolution; ``stride = 2`` halves the image. `operation`: another way to compute it."""
    if operation is None and stride == 1 and padding == "SAME":
        operation = {1: pointwise, 3: convolution}.get(size)
    return nn.Conv(
        features,
        (size, size),
        strides=stride,
        padding=padding,
        dtype=jnp.dtype(dtype),
        kernel_init=kernel_init(gain),
        conv_general_dilated=operation,
        name=name,
    )


def dense(features: int, dtype: str, gain: float, name: str, use_bias: bool = True) -> nn.Dense:
    """A linear layer on the last axis."""
    return nn.Dense(
        features,
        use_bias=use_bias,
        dtype=jnp.dtype(dtype),
        kernel_init=kernel_init(gain),
        name=name,
    )


def num_groups(channels: int) -> int:
    """The number of groups of group norm: 32, fewer where a group would have under 4 channels.

    Source: arXiv:2206.00364, App. F (32 groups everywhere in DDPM and ADM, whose widths allow it).
    """
    most = max(1, min(32, channels // 4))
    return next(n for n in range(most, 0, -1) if channels % n == 0)


def sinusoid(
    noise: Float[Array, "b"], features: int, max_period: float = 10000.0, cosine_first: bool = False
) -> Float[Array, "b features"]:
    """``[sin(w noise), cos(w noise)]`` with ``w_i = max_period ** (-i / (features / 2))``, or the cosines first.

    Source: arXiv:2006.11239, App. B, after arXiv:1706.03762, Sec. 3.5. DDPM divides by ``features / 2 - 1``
    instead, which is the same as ``max_period = 10000 ** (half / (half - 1))``.
    """
    half = features // 2
    w = jnp.exp(-math.log(max_period) / half * jnp.arange(half, dtype=jnp.float32))
    angle = noise.astype(jnp.float32)[:, None] * w
    waves = [jnp.sin(angle), jnp.cos(angle)]
    return jnp.concatenate(waves[::-1] if cosine_first else waves, axis=-1)


def random_fourier(
    noise: Float[Array, "b"], features: int, scale: float, frequencies: tuple[float, ...] = ()
) -> Float[Array, "b features"]:
    """``[sin(2 pi w noise), cos(2 pi w noise)]`` with fixed ``w ~ N(0, scale^2)``, or with the given `frequencies`.

    The frequencies are a constant of the program and not a parameter, so that neither the optimiser nor
    the EMA touches them. Source: arXiv:2011.13456, App. C.2.
    """
    if len(frequencies) not in (0, features // 2):
        raise ValueError(
            f"{len(frequencies)} Fourier frequencies for {features} features: half as many, or none "
            "(--network.embedding-channels)"
        )
    w = np.asarray(frequencies, np.float32)
    if not frequencies:
        w = np.random.RandomState(0).standard_normal(features // 2).astype(np.float32) * scale
    angle = 2 * jnp.pi * noise.astype(jnp.float32)[:, None] * w
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def scaled(x: Float[Array, "..."], factor: float) -> Float[Array, "..."]:
    """``factor * x``, without an operation where it is 1."""
    return x if factor == 1.0 else x * jnp.asarray(factor, x.dtype)


def with_waves(x: Float[Array, "b h w c"], exponents: tuple[int, ...]) -> Float[Array, "b h w c2"]:
    """``x`` and ``sin(2^n 2 pi x), cos(2^n 2 pi x)`` for each exponent n: fine detail made visible.

    Source: arXiv:2107.00630, Sec. 3.1 and App. C.
    """
    angles = [2.0**n * 2 * jnp.pi * x.astype(jnp.float32) for n in exponents]
    waves = [wave(angle) for angle in angles for wave in (jnp.sin, jnp.cos)]
    return jnp.concatenate([x, *waves], axis=-1)


def label_index(cond: Cond, batch: int, num_classes: int) -> Int[Array, "b"]:
    """The row of each example in a table of ``num_classes + 1`` rows, whose last row means "no label".

    A label below 0 is absent, and so are all of them where ``cond`` has no ``"label"``.
    """
    label = cond["label"] if "label" in cond else jnp.full((batch,), -1, jnp.int32)
    return jnp.where(label < 0, num_classes, label)


def attention(
    module: nn.Module,
    q: Float[Array, "b n heads d"],
    k: Float[Array, "b m heads d"],
    v: Float[Array, "b m heads d"],
    kernel: str = "auto",
    mask: Bool[Array, "b m"] | None = None,
    taken: Int[Array, "b m"] | None = None,
) -> Float[Array, "b n heads d"]:
    """Softmax attention; `v` itself where the variable `identity` of `module` in the collection PERTURBED is true.

    `kernel`: "auto", the fastest on the program's platform, or "plain", which can be differentiated forward as well.
    `mask`: the keys that may be seen, at least one for each example; then always the plain kernel. `taken`: keys whose
    maps are those of another example, see `attention.borrowed`.
    The identity in place of the attention map is what perturbed-attention guidance compares with
    (arXiv:2403.17377, Sec. 4); `apply.identity_attention` makes the collection.
    """
    if taken is not None:
        return borrowed(q, k, v, mask, taken)
    simple = kernel == "plain" or mask is not None
    h = checkpoint_name(plain(q, k, v, mask) if simple else fastest(q, k, v), ATTENTION)
    if module.has_variable(PERTURBED, "identity"):
        h = jnp.where(module.get_variable(PERTURBED, "identity"), v, h)
    return h


class GroupNorm(nn.Module):
    """Group normalisation with float32 statistics: ``scale * (x - mean) / std + bias``.

    An optional modulation ``[b, c]`` pair makes it ``norm(x) * (1 + s) + t`` (AdaGN of arXiv:2105.05233).
    Everything is folded into one multiply-add per pixel. Raises ValueError where the groups do not divide the channels.
    Source: arXiv:1803.08494.
    """

    eps: float = 1e-5
    """Added to the variance."""
    groups: int = 0
    """Number of groups; 0 for `num_groups` of the channels."""

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        modulation: tuple[Float[Array, "b c"], Float[Array, "b c"]] | None = None,
    ) -> Float[Array, "b h w c"]:
        b, _, _, c = x.shape
        groups = self.groups or num_groups(c)
        if c % groups:
            raise ValueError(
                f"norms of {groups} groups do not fit {c} channels: a divisor or 0 (--network.norm-groups)"
            )
        gain = self.param("scale", nn.initializers.ones, (c,))
        bias = self.param("bias", nn.initializers.zeros, (c,))

        def by_group(moment: Array) -> Array:
            mean = moment.reshape(b, groups, c // groups).mean(-1, keepdims=True)
            return jnp.broadcast_to(mean, (b, groups, c // groups)).reshape(b, c)

        wide = x.astype(jnp.float32)
        mean = by_group(wide.mean((1, 2)))
        var = by_group(jnp.square(wide).mean((1, 2))) - jnp.square(mean)
        factor = jax.lax.rsqrt(jnp.maximum(var, 0) + self.eps) * gain
        offset = bias - mean * factor
        if modulation is not None:
            s, t = modulation
            factor, offset = factor * (1 + s), offset * (1 + s) + t
        return (wide * factor[:, None, None, :] + offset[:, None, None, :]).astype(x.dtype)


class NoiseEmbedding(nn.Module):
    """Noise level, class label and augmentation, as one float32 vector per example.

    ``features(noise) (+ augment) (+ label) -> dense -> silu -> dense (+ label)``.
    """

    features: int
    """Size of the sinusoidal or Fourier features."""
    width: int
    """Size of the result."""
    max_period: float = 10000.0
    """Longest period of the sinusoids, over 2 pi."""
    cosine_first: bool = False
    """Cosines before sines."""
    fourier_scale: float = 0.0
    """Standard deviation of random Fourier frequencies; 0 for sinusoids."""
    num_classes: int = 0
    """Number of labels; 0 for none."""
    label_before_mlp: bool = False
    """Add the label before the two dense layers and not after them."""
    augment_dim: int = 0
    """Size of the augmentation vector; 0 for none."""
    gain: float = 1.0
    """Scale of the initial kernels' variance."""
    fourier_frequencies: tuple[float, ...] = ()
    """Fourier frequencies in place of random ones."""

    @nn.compact
    def __call__(self, noise: Float[Array, "b"], cond: Cond) -> Float[Array, "b width"]:
        if self.fourier_scale > 0:
            emb = random_fourier(noise, self.features, self.fourier_scale, self.fourier_frequencies)
        else:
            emb = sinusoid(noise, self.features, self.max_period, self.cosine_first)
        if self.augment_dim:
            absent = jnp.zeros((noise.shape[0], self.augment_dim))
            augment = cond.get("augment", absent)
            emb += dense(self.features, "float32", self.gain, "augment", False)(augment)
        if self.num_classes and self.label_before_mlp:
            emb += self._label(cond, noise.shape[0], self.features)
        emb = nn.silu(dense(self.width, "float32", self.gain, "dense_0")(emb))
        emb = dense(self.width, "float32", self.gain, "dense_1")(emb)
        if self.num_classes and not self.label_before_mlp:
            emb += self._label(cond, noise.shape[0], self.width)
        return emb

    def _label(self, cond: Cond, batch: int, features: int) -> Float[Array, "b features"]:
        table = nn.Embed(
            self.num_classes + 1,
            features,
            embedding_init=nn.initializers.normal(1.0),
            name="label",
        )
        return table(label_index(cond, batch, self.num_classes))
