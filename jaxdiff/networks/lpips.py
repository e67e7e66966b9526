"""LPIPS: the distance between two pictures as people see it, learned.

Both pictures pass through a classifier. At five depths l its channels are scaled to length one at every pixel,
y_l, and::

    distance(x, x') = sum_l mean over pixels of  w_l . (y_l - y'_l)**2          w_l >= 0, per channel

Source: arXiv:1801.03924, Eq. 1 (version 0.1 of the weights).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiff.networks.frozen import EXACT, frozen_conv

Image = Float[Array, "b h w c"]
Found = Float[Array, "b _ _ _"]

SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
"""Mean and standard deviation of ImageNet's pixels in [-1, 1], as the weights' authors rounded them."""


class AlexNet(nn.Module):
    """The five convolutions of AlexNet (one tower), each after its relu."""

    smallest = 31
    """Pixels that the last pool needs."""

    @nn.compact
    def __call__(self, x: Image) -> list[Found]:
        first = nn.relu(frozen_conv(64, (11, 11), "conv_0", 4, 2, True)(x))
        second = nn.relu(frozen_conv(192, (5, 5), "conv_1", 1, 2, True)(_pool3(first)))
        third = nn.relu(frozen_conv(384, (3, 3), "conv_2", 1, 1, True)(_pool3(second)))
        fourth = nn.relu(frozen_conv(256, (3, 3), "conv_3", 1, 1, True)(third))
        fifth = nn.relu(frozen_conv(256, (3, 3), "conv_4", 1, 1, True)(fourth))
        return [first, second, third, fourth, fifth]


class VGG16(nn.Module):
    """The 13 convolutions of VGG16, the last of each size after its relu."""

    smallest = 16
    """Pixels that the last pool needs."""

    @nn.compact
    def __call__(self, x: Image) -> list[Found]:
        found, number = [], 0
        for count, channels in ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)):
            x = nn.max_pool(x, (2, 2), (2, 2)) if found else x
            for _ in range(count):
                x = nn.relu(frozen_conv(channels, (3, 3), f"conv_{number}", 1, 1, True)(x))
                number += 1
            found.append(x)
        return found


class LPIPS(nn.Module):
    """The distance, with `AlexNet()` or `VGG16()` as the classifier."""

    backbone: AlexNet | VGG16

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], y: Float[Array, "b h w c"]) -> Float[Array, "b"]:
        """[b], from 0 on, of images in [-1, 1], grey or RGB.

        Raises ValueError for images that are too small for the classifier.
        """
        if min(x.shape[1:3]) < self.backbone.smallest:
            raise ValueError(
                f"images of {x.shape[1]}x{x.shape[2]} pixels are too small for LPIPS with "
                f"{type(self.backbone).__name__}, which needs {self.backbone.smallest} pixels a side"
            )
        both = jnp.broadcast_to(jnp.concatenate([x, y]), (2 * x.shape[0], *x.shape[1:3], 3))
        found = self.backbone((both - jnp.array(SHIFT)) / jnp.array(SCALE))
        total = jnp.zeros(x.shape[0])
        for i, channels in enumerate(found):
            weight = self.param(f"weight_{i}", nn.initializers.ones, channels.shape[-1:])
            a, b = jnp.split(_unit(channels), 2)
            total += jnp.einsum("bhwc,c->b", jnp.square(a - b), weight, precision=EXACT) / (a.shape[1] * a.shape[2])
        return total


def _unit(x: Image) -> Found:
    # Under the root, so that the gradient is finite where all channels are off.
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), -1, keepdims=True) + 1e-20)


def _pool3(x: Image) -> Found:
    return nn.max_pool(x, (3, 3), (2, 2))
