"""EfficientNet-Lite0: a small classifier of ImageNet whose weights a package registry holds.

A stem, 16 inverted residual blocks, a head of 1280 channels, the mean over the picture, 1000 classes. A block
widens by 6 (the first not), convolves each channel alone, and narrows again::

    x -> relu6(bn(1x1)) -> relu6(bn(depthwise)) -> bn(1x1)  (+ x where shapes allow)

Lite means no squeeze-and-excitation, and relu6 in place of swish. Source: arXiv:1905.11946, Table 1.
"""

from typing import NamedTuple

import flax.linen as nn
from jaxtyping import Array, Float

from jaxdiff.networks.frozen import EXACT, ZEROS, DepthwiseConv, FrozenBatchNorm, frozen_conv

Image = Float[Array, "b h w c"]
Found = Float[Array, "b _ _ _"]


class Stage(NamedTuple):
    """Blocks of one width."""

    blocks: int
    channels: int
    kernel: int
    stride: int
    """Of the first block; the others have 1."""
    widen: int


STAGES = (
    Stage(1, 16, 3, 1, 1),
    Stage(2, 24, 3, 2, 6),
    Stage(2, 40, 5, 2, 6),
    Stage(3, 80, 3, 2, 6),
    Stage(3, 112, 5, 1, 6),
    Stage(4, 192, 5, 2, 6),
    Stage(1, 320, 3, 1, 6),
)


class EfficientNetFeatures(NamedTuple):
    """What the network says of images."""

    features: Float[Array, "b 1280"]
    """Mean over the picture of the head."""
    logits: Float[Array, "b 1000"]
    """Scores of ImageNet's classes."""


class Block(nn.Module):
    """An inverted residual block."""

    channels: int
    kernel: int
    stride: int
    widen: int

    @nn.compact
    def __call__(self, x: Image) -> Found:
        h = x
        if self.widen > 1:
            h = frozen_conv(self.widen * x.shape[-1], (1, 1), "expand_conv")(h)
            h = nn.relu6(FrozenBatchNorm(name="bn0")(h))
        h = DepthwiseConv(self.kernel, self.stride, name="depthwise_conv")(h)
        h = nn.relu6(FrozenBatchNorm(name="bn1")(h))
        h = frozen_conv(self.channels, (1, 1), "project_conv")(h)
        h = FrozenBatchNorm(name="bn2")(h)
        return x + h if self.stride == 1 and x.shape == h.shape else h


class EfficientNetLite0(nn.Module):
    """4.65 million parameters; images of 224 x 224 pixels."""

    @nn.compact
    def __call__(self, x: Float[Array, "b 224 224 3"]) -> EfficientNetFeatures:
        """`x` is ``(pixel - 127) / 128`` of pixels from 0 to 255."""
        x = frozen_conv(32, (3, 3), "conv_stem", 2)(x)
        x = nn.relu6(FrozenBatchNorm(name="bn0")(x))
        number = 0
        for stage in STAGES:
            for i in range(stage.blocks):
                stride = stage.stride if i == 0 else 1
                x = Block(stage.channels, stage.kernel, stride, stage.widen, name=f"block_{number}")(x)
                number += 1
        x = frozen_conv(1280, (1, 1), "conv_head")(x)
        x = nn.relu6(FrozenBatchNorm(name="bn1")(x))
        features = x.mean((1, 2))
        logits = nn.Dense(1000, precision=EXACT, kernel_init=ZEROS, name="fc")(features)
        return EfficientNetFeatures(features, logits)
