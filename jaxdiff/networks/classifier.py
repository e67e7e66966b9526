"""A classifier of noisy images: the encoder half of the U-Net, then attention pooling.

    tokens = [mean of the pixels, pixels] + positions,      logits = dense(attention(tokens[0], tokens))

Source: arXiv:2105.05233, Sec. 4 (the U-Net's downsampling half), after the pooling of
arXiv:2103.00020, Sec. 2.4.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiff.core.types import Cond
from jaxdiff.networks.layers import GroupNorm, dense
from jaxdiff.networks.unet import UNet


class Classifier(nn.Module):
    """``(x, noise, cond) -> logits [b, num_classes]``, all 0 at first. `cond` is handed to the encoder.

    Raises ValueError where the encoder would be told the class, or a width does not fit the attributes.
    """

    encoder: UNet
    """The U-Net whose encoder and middle are used; what only its decoder reads has no effect."""
    num_classes: int
    """Number of classes."""
    pool_head_channels: int = 64
    """Channels of a head of the attention pooling; 0 for the mean over the pixels."""

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        noise: Float[Array, "b"],
        cond: Cond,
        train: bool = False,
    ) -> Float[Array, "b k"]:
        """The logits at noise input ``noise`` (``c_noise`` of the prediction), float32."""
        if self.num_classes < 2:
            raise ValueError(f"num_classes = {self.num_classes} is not allowed: at least 2 (--network.num-classes)")
        if self.encoder.num_classes:
            raise ValueError(
                f"num_classes = {self.encoder.num_classes} is not allowed in a classifier's encoder, which would be "
                "told the answer: 0 (--network.encoder.num-classes)"
            )
        h = self.encoder(x, noise, cond, train, decode=False)
        h = nn.silu(GroupNorm(self.encoder.norm_eps, self.encoder.norm_groups, name="norm_out")(h))
        if not self.pool_head_channels:
            return dense(self.num_classes, "float32", 0.0, "out")(h.mean((1, 2)))
        if h.shape[-1] % self.pool_head_channels:
            raise ValueError(
                f"pool_head_channels = {self.pool_head_channels} is not allowed: 0, or a divisor of the encoder's "
                f"{h.shape[-1]} channels (--network.pool-head-channels)"
            )
        heads = h.shape[-1] // self.pool_head_channels
        return AttentionPool(self.num_classes, heads, self.encoder.init_gain, name="pool")(h)


class AttentionPool(nn.Module):
    """One vector for each feature map: attention of the mean of its pixels to the mean and all of them."""

    features: int
    """Size of the result, which starts at zero."""
    heads: int
    """Number of heads."""
    gain: float = 1.0
    """Scale of the initial kernels' variance."""

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b features"]:
        b, height, width, c = x.shape
        pixels = x.reshape(b, height * width, c)
        tokens = jnp.concatenate([pixels.mean(1, keepdims=True), pixels], axis=1)
        tokens += self.param("positions", nn.initializers.normal(c**-0.5), (height * width + 1, c))
        q = dense(c, "float32", self.gain, "q")(tokens[:, :1])
        kv = dense(2 * c, "float32", self.gain, "kv")(tokens)
        k, v = jnp.moveaxis(kv.reshape(b, -1, 2, self.heads, c // self.heads), 2, 0)
        h = jax.nn.dot_product_attention(q.reshape(b, 1, self.heads, c // self.heads), k, v)
        return dense(self.features, "float32", 0.0, "out")(h.reshape(b, c))
