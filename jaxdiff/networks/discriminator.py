"""A discriminator of patches: a convolutional network that says of each patch of a picture whether it is real.

    conv of stride 2, leaky relu; [conv of stride 2, norm, leaky relu] x (layers - 1); conv, norm, leaky relu; conv

All convolutions are 4 x 4. A logit of three layers sees a patch of 70 x 70 pixels, of two 34 x 34. The norms are group
norms, so that a picture is judged alike in any batch. Source: arXiv:1611.07004, Sec. 3.2.2 (with batch norm).
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiff.networks.layers import GroupNorm, conv


class PatchDiscriminator(nn.Module):
    """``pictures [b, h, w, c] -> logits [b, h / 2^layers, w / 2^layers]``, float32: above zero where they look real."""

    channels: int = 64
    """Channels of the first layer; each further one has twice as many, up to eight times."""
    layers: int = 3
    """Convolutions of stride 2."""
    dtype: str = "float32"
    """Compute type; norm statistics and logits are float32."""

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2"]:
        h = x.astype(self.dtype)
        for i in range(self.layers + 1):
            width = self.channels * min(2**i, 8)
            h = conv(width, 4, self.dtype, 1.0, f"conv_{i}", stride=2 if i < self.layers else 1)(h)
            if i:
                h = GroupNorm(name=f"norm_{i}")(h)
            h = nn.leaky_relu(h, 0.2)
        return conv(1, 4, "float32", 1.0, "conv_out")(h.astype(jnp.float32))[..., 0]
