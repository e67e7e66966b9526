"""TAESD: tiny autoencoders between pictures and the latents of a large one, for Stable Diffusion, SD3, FLUX and FLUX.2.

    block    x = x + pool(x)                                  in the lowest resolution of FLUX.2's
             relu(x + conv(relu(conv(relu(conv(x))))))
    pool     1x1 -> group norm -> relu -> 1x1
    encoder  conv, block, 3 x [conv of stride 2, 3 blocks], conv
    decoder  3 tanh(z / 3), conv, relu, 3 x [3 blocks, twice the size by repetition, conv], block, conv

A latent pixel stands for 8 x 8 pixels, whose colours run from 0 to 1. Source: the repository madebyollin/taesd, of
which there is no paper.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiff.networks.frozen import EXACT, ZEROS, frozen_conv

FACTOR = 8
"""Pixels a side for each latent pixel."""

CHANNELS = 64
STAGES, BLOCKS = 3, 3
"""Halvings of the picture, and blocks at each size below the whole one."""


class Block(nn.Module):
    """A residual block, ``[b, h, w, c] -> [b, h, w, c]``."""

    pool: bool
    """Whether each position first looks at the whole picture, through the group norm's statistics."""

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        c = x.shape[-1]
        if self.pool:
            h = frozen_conv(4 * c, (1, 1), "pool_0")(x)
            norm = nn.GroupNorm(num_groups=4, epsilon=1e-5, use_fast_variance=False, name="pool_1")
            x = x + frozen_conv(c, (1, 1), "pool_3")(nn.relu(norm(h)))
        h = x
        for i in (0, 2, 4):
            h = _conv(c, f"conv_{i}")(nn.relu(h) if i else h)
        return nn.relu(x + h)


class Encoder(nn.Module):
    """Pictures in [0, 1] to latents: ``[b, 8h, 8w, 3] -> [b, h, w, latents]``."""

    latents: int = 4
    """Channels of a latent pixel."""
    pool: bool = False
    """Blocks that look at the whole picture, as FLUX.2's member has."""

    @nn.compact
    def __call__(self, x: Float[Array, "b height width 3"]) -> Float[Array, "b h w latents"]:
        """Raises ValueError for sides that are no multiples of 8."""
        for name, side in (("height", x.shape[1]), ("width", x.shape[2])):
            if side % FACTOR:
                raise ValueError(f"{name} {side} of a picture is not allowed: a multiple of {FACTOR} (--size)")
        x = Block(False, name="layer_1")(_conv(CHANNELS, "layer_0")(x))
        number = 2
        for stage in range(STAGES):
            x = frozen_conv(CHANNELS, (3, 3), f"layer_{number}", stride=2, padding=1)(x)
            for i in range(1, BLOCKS + 1):
                x = Block(self.pool and stage == STAGES - 1, name=f"layer_{number + i}")(x)
            number += BLOCKS + 1
        return _conv(self.latents, f"layer_{number}")(x)


class Decoder(nn.Module):
    """Latents to pictures, in [0, 1] but for small errors: ``[b, h, w, latents] -> [b, 8h, 8w, 3]``."""

    pool: bool = False
    """Blocks that look at the whole picture, as FLUX.2's member has."""

    @nn.compact
    def __call__(self, z: Float[Array, "b h w latents"]) -> Float[Array, "b height width 3"]:
        x = nn.relu(_conv(CHANNELS, "layer_1")(3 * jnp.tanh(z / 3)))
        number = 3
        for stage in range(STAGES):
            for i in range(BLOCKS):
                x = Block(self.pool and stage == 0, name=f"layer_{number + i}")(x)
            x = x.repeat(2, axis=1).repeat(2, axis=2)
            number += BLOCKS + 1  # the repetition has a number and no parameters
            x = frozen_conv(CHANNELS, (3, 3), f"layer_{number}", padding=1)(x)
            number += 1
        x = Block(False, name=f"layer_{number}")(x)
        return _conv(3, f"layer_{number + 1}")(x)


def _conv(features: int, name: str) -> nn.Conv:
    """A 3 x 3 convolution with a bias."""
    return nn.Conv(features, (3, 3), precision=EXACT, kernel_init=ZEROS, name=name)
