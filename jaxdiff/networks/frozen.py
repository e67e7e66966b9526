"""Layers of published networks that only look at images: trained elsewhere, never here.

Convolutions and products take float32 in full on every device (a TPU's or GPU's default rounds the factors to
fewer bits), since features are compared between machines.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

EXACT = jax.lax.Precision.HIGHEST
ZEROS = nn.initializers.zeros
"""The initial kernels of networks that are never trained: nothing is drawn to be thrown away."""


def frozen_conv(
    features: int,
    size: tuple[int, int],
    name: str,
    stride: int = 1,
    padding: str | int = "SAME",
    use_bias: bool = False,
) -> nn.Conv:
    """A convolution with float32 products. "SAME" is TensorFlow's: the extra pixel goes to the right and below."""
    return nn.Conv(
        features,
        size,
        strides=stride,
        padding=padding,
        use_bias=use_bias,
        precision=EXACT,
        kernel_init=ZEROS,
        name=name,
    )


class DepthwiseConv(nn.Module):
    """Each channel with a kernel of its own, ``size x size``, padded as TensorFlow's "SAME"."""

    size: int
    """Height and width of the kernel."""
    stride: int = 1
    """1, or 2 for half the size."""

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        kernel = self.param("kernel", ZEROS, (self.size, self.size, 1, x.shape[-1]))
        pads = jax.lax.padtype_to_pads(x.shape[1:3], (self.size,) * 2, (self.stride,) * 2, "SAME")
        shape = [-(-n // self.stride) for n in x.shape[1:3]]
        x = jnp.pad(x, [(0, 0), *pads, (0, 0)])
        # A sum of shifted images: XLA runs depthwise convolutions slowly on a CPU.
        parts = [
            kernel[i, j, 0]
            * x[:, i : i + self.stride * shape[0] : self.stride, j : j + self.stride * shape[1] : self.stride]
            for i in range(self.size)
            for j in range(self.size)
        ]
        return sum(parts[1:], parts[0])


class FrozenBatchNorm(nn.Module):
    """Batch norm with stored statistics: ``scale * (x - mean) / sqrt(var + eps) + bias``, all four parameters."""

    eps: float = 1e-3
    """Added to the variance."""

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        shape = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        mean = self.param("mean", nn.initializers.zeros, shape)
        var = self.param("var", nn.initializers.ones, shape)
        factor = scale * jax.lax.rsqrt(var + self.eps)
        return x * factor + (bias - mean * factor)
