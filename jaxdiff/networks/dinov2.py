"""DINOv2: vision transformers whose class token is a feature of the whole image (FD-DINOv2).

    tokens = [cls, patches] + positions,   registers inserted after cls,   blocks with layer scale,   norm

The position embeddings were trained on 37 x 37 patches (518 pixels) and are resized to any other image.
Source: arXiv:2304.07193; registers arXiv:2309.16588; as the feature network of a metric arXiv:2306.04675.
"""

from typing import Literal, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiff.networks.vit import Activation, Block, encode, gelu, layer_norm, patch_conv, resize_positions

MEAN = (0.485, 0.456, 0.406)
"""Of ImageNet's RGB pixels in [0, 1]: what is taken from the images before."""
STD = (0.229, 0.224, 0.225)
"""Of ImageNet's RGB pixels in [0, 1]: what the images are divided by before."""


class Features(NamedTuple):
    """The normalised tokens of the last block, float32."""

    cls: Float[Array, "b d"]
    registers: Float[Array, "b r d"]
    patches: Float[Array, "b h w d"]


class DINOv2(nn.Module):
    """A DINOv2 backbone: images, normalised with `MEAN` and `STD`, to `Features`.

    Images may have any height and width that are multiples of `patch`; others raise ValueError.
    """

    width: int = 384
    """Channels of a token."""
    depth: int = 12
    """Number of transformer blocks."""
    heads: int = 6
    """Attention heads."""
    hidden: int = 1536
    """Hidden channels of the MLP."""
    activation: Activation = gelu
    """Nonlinearity of the MLP."""
    gated: bool = False
    """A gated MLP (SwiGLU)."""
    registers: int = 0
    """Number of register tokens."""
    patch: int = 14
    """Side of a patch, in pixels."""
    grid: int = 37
    """Side of the grid of position embeddings, in patches."""
    offset: float = 0.1
    """Added to the number of patches a side where positions are resized. 0.1 is the published models' (a
    workaround that became part of them), 0 that of the ones with registers and of the transformers library."""
    antialias: bool = False
    """A wider kernel where positions are resized to fewer patches (published with registers)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute type; parameters, norm statistics, softmax and output are float32."""

    @nn.compact
    def __call__(self, images: Float[Array, "b h w 3"]) -> Features:
        b, height, width, _ = images.shape
        for side, size in (("height", height), ("width", width)):
            if size % self.patch:
                raise ValueError(f"image {side} {size} must be a multiple of {self.patch}: resize the images")
        rows, cols = height // self.patch, width // self.patch

        patches = patch_conv(self.width, self.patch, self.dtype, "patches")(images).reshape(b, rows * cols, -1)
        cls = self.param("cls", nn.initializers.normal(1e-6), (1, self.width))
        positions = self.param("positions", nn.initializers.normal(0.02), (1 + self.grid**2, self.width))
        first, others = positions[:1], positions[1:]
        if (rows, cols) != (self.grid, self.grid):
            others = resize_positions(others, rows, cols, self.offset, self.antialias)
        tokens = [self._for_each(b, cls + first), patches + jnp.asarray(others, patches.dtype)]
        if self.registers:
            registers = self.param("registers", nn.initializers.normal(1e-6), (self.registers, self.width))
            tokens.insert(1, self._for_each(b, registers))

        block = Block(
            heads=self.heads,
            hidden=self.hidden,
            activation=self.activation,
            gated=self.gated,
            layer_scale=1.0,
            dtype=self.dtype,
            name="blocks",
        )
        h = encode(block, self.depth, jnp.concatenate(tokens, axis=1)).last
        h = layer_norm(1e-6, "norm")(h)
        start = 1 + self.registers
        return Features(h[:, 0], h[:, 1:start], h[:, start:].reshape(b, rows, cols, -1))

    def _for_each(self, batch: int, tokens: Float[Array, "n d"]) -> Float[Array, "b n d"]:
        return jnp.broadcast_to(jnp.asarray(tokens, self.dtype), (batch, *tokens.shape))


def with_registers(network: DINOv2) -> DINOv2:
    """The variant of a published model with four registers, and how it resizes its positions."""
    return network.clone(registers=4, offset=0.0, antialias=True)


DINOV2_S14 = DINOv2(width=384, depth=12, heads=6, hidden=1536)
DINOV2_B14 = DINOv2(width=768, depth=12, heads=12, hidden=3072)
DINOV2_L14 = DINOv2(width=1024, depth=24, heads=16, hidden=4096)
DINOV2_G14 = DINOv2(width=1536, depth=40, heads=24, hidden=4096, activation=nn.silu, gated=True)
