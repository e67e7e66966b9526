"""InceptionV3 as it was released on 2015-12-05, the network that defines FID, sFID and the Inception score.

It differs from the paper's, and from other releases, in its average pools (which leave padding out of the mean),
in the last block's pool (a maximum), in batch norm's epsilon (1e-3) and in its 1008 classes. Every convolution
is ``relu(batch_norm(conv(x)))``; names are those of the published PyTorch port.

Source: arXiv:1512.00567 (architecture); arXiv:1706.08500 (FID); arXiv:2103.03841 (sFID: the first 7 channels of
the first branch of the third block of 17 x 17).
"""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiff.networks.frozen import EXACT, ZEROS, FrozenBatchNorm, frozen_conv

Image = Float[Array, "b h w c"]
Found = Float[Array, "b _ _ _"]

POINT = (1, 1)
ROW, COLUMN = (1, 7), (7, 1)


class InceptionFeatures(NamedTuple):
    """What the network says of images; metrics take what they need, and `jit` drops the rest."""

    pool_64: Float[Array, "b 64"]
    """Mean over the picture after the first max pool."""
    pool_192: Float[Array, "b 192"]
    """Mean over the picture after the second max pool."""
    pool_768: Float[Array, "b 768"]
    """Mean over the picture of the last block of 17 x 17."""
    features: Float[Array, "b 2048"]
    """Mean over the picture of the last block: FID, KID, precision and recall."""
    spatial: Float[Array, "b 2023"]
    """17 x 17 x 7, flattened: sFID."""
    logits_unbiased: Float[Array, "b 1008"]
    """Class scores without the bias: the Inception score."""
    logits: Float[Array, "b 1008"]
    """Class scores."""


class ConvNorm(nn.Module):
    """``relu(batch_norm(conv(x)))``."""

    features: int
    size: tuple[int, int]
    stride: int = 1
    padding: str = "SAME"

    @nn.compact
    def __call__(self, x: Image) -> Found:
        x = frozen_conv(self.features, self.size, "conv", self.stride, self.padding)(x)
        return nn.relu(FrozenBatchNorm(name="bn")(x))


class Mixed35(nn.Module):
    """A block of 35 x 35 pixels (figure 5 of the paper)."""

    pool: int
    """Channels of the branch that pools."""

    @nn.compact
    def __call__(self, x: Image) -> Found:
        one = ConvNorm(64, POINT, name="branch1x1")(x)
        five = ConvNorm(48, POINT, name="branch5x5_1")(x)
        five = ConvNorm(64, (5, 5), name="branch5x5_2")(five)
        three = ConvNorm(64, POINT, name="branch3x3dbl_1")(x)
        three = ConvNorm(96, (3, 3), name="branch3x3dbl_2")(three)
        three = ConvNorm(96, (3, 3), name="branch3x3dbl_3")(three)
        pool = ConvNorm(self.pool, POINT, name="branch_pool")(_mean(x))
        return jnp.concatenate([one, five, three, pool], -1)


class Shrink17(nn.Module):
    """From 35 x 35 to 17 x 17 pixels."""

    @nn.compact
    def __call__(self, x: Image) -> Found:
        three = ConvNorm(384, (3, 3), 2, "VALID", name="branch3x3")(x)
        double = ConvNorm(64, POINT, name="branch3x3dbl_1")(x)
        double = ConvNorm(96, (3, 3), name="branch3x3dbl_2")(double)
        double = ConvNorm(96, (3, 3), 2, "VALID", name="branch3x3dbl_3")(double)
        return jnp.concatenate([three, double, _shrunk(x)], -1)


class Mixed17(nn.Module):
    """A block of 17 x 17 pixels with factorised 7 x 7 convolutions (figure 6)."""

    width: int
    """Channels inside the factorised convolutions."""

    @nn.compact
    def __call__(self, x: Image) -> Found:
        one = ConvNorm(192, POINT, name="branch1x1")(x)
        seven = ConvNorm(self.width, POINT, name="branch7x7_1")(x)
        seven = ConvNorm(self.width, ROW, name="branch7x7_2")(seven)
        seven = ConvNorm(192, COLUMN, name="branch7x7_3")(seven)
        double = ConvNorm(self.width, POINT, name="branch7x7dbl_1")(x)
        double = ConvNorm(self.width, COLUMN, name="branch7x7dbl_2")(double)
        double = ConvNorm(self.width, ROW, name="branch7x7dbl_3")(double)
        double = ConvNorm(self.width, COLUMN, name="branch7x7dbl_4")(double)
        double = ConvNorm(192, ROW, name="branch7x7dbl_5")(double)
        pool = ConvNorm(192, POINT, name="branch_pool")(_mean(x))
        return jnp.concatenate([one, seven, double, pool], -1)


class Shrink8(nn.Module):
    """From 17 x 17 to 8 x 8 pixels."""

    @nn.compact
    def __call__(self, x: Image) -> Found:
        three = ConvNorm(192, POINT, name="branch3x3_1")(x)
        three = ConvNorm(320, (3, 3), 2, "VALID", name="branch3x3_2")(three)
        seven = ConvNorm(192, POINT, name="branch7x7x3_1")(x)
        seven = ConvNorm(192, ROW, name="branch7x7x3_2")(seven)
        seven = ConvNorm(192, COLUMN, name="branch7x7x3_3")(seven)
        seven = ConvNorm(192, (3, 3), 2, "VALID", name="branch7x7x3_4")(seven)
        return jnp.concatenate([three, seven, _shrunk(x)], -1)


class Mixed8(nn.Module):
    """A block of 8 x 8 pixels (figure 7)."""

    max_pool: bool
    """Whether the branch that pools takes the maximum and not the mean, as the last block does."""

    @nn.compact
    def __call__(self, x: Image) -> Found:
        one = ConvNorm(320, POINT, name="branch1x1")(x)
        three = ConvNorm(384, POINT, name="branch3x3_1")(x)
        wide = ConvNorm(384, (1, 3), name="branch3x3_2a")(three)
        tall = ConvNorm(384, (3, 1), name="branch3x3_2b")(three)
        double = ConvNorm(448, POINT, name="branch3x3dbl_1")(x)
        double = ConvNorm(384, (3, 3), name="branch3x3dbl_2")(double)
        double_wide = ConvNorm(384, (1, 3), name="branch3x3dbl_3a")(double)
        double_tall = ConvNorm(384, (3, 1), name="branch3x3dbl_3b")(double)
        pooled = nn.max_pool(x, (3, 3), padding="SAME") if self.max_pool else _mean(x)
        pool = ConvNorm(192, POINT, name="branch_pool")(pooled)
        return jnp.concatenate([one, wide, tall, double_wide, double_tall, pool], -1)


class Linear(nn.Module):
    """The product with a matrix, without and with the bias."""

    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "b c"]) -> tuple[Float[Array, "b d"], Float[Array, "b d"]]:
        kernel = self.param("kernel", ZEROS, (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        unbiased = jnp.dot(x, kernel, precision=EXACT)
        return unbiased, unbiased + bias


class InceptionV3(nn.Module):
    """23.9 million parameters; images of 299 x 299 pixels."""

    @nn.compact
    def __call__(self, x: Float[Array, "b 299 299 3"]) -> InceptionFeatures:
        """`x` is ``(pixel - 128) / 128`` of pixels from 0 to 255."""
        x = ConvNorm(32, (3, 3), 2, "VALID", name="Conv2d_1a_3x3")(x)
        x = ConvNorm(32, (3, 3), 1, "VALID", name="Conv2d_2a_3x3")(x)
        x = ConvNorm(64, (3, 3), name="Conv2d_2b_3x3")(x)
        x = _shrunk(x)
        pool_64 = x.mean((1, 2))
        x = ConvNorm(80, POINT, name="Conv2d_3b_1x1")(x)
        x = ConvNorm(192, (3, 3), 1, "VALID", name="Conv2d_4a_3x3")(x)
        x = _shrunk(x)
        pool_192 = x.mean((1, 2))
        x = Mixed35(32, name="Mixed_5b")(x)
        x = Mixed35(64, name="Mixed_5c")(x)
        x = Mixed35(64, name="Mixed_5d")(x)
        x = Shrink17(name="Mixed_6a")(x)
        x = Mixed17(128, name="Mixed_6b")(x)
        x = Mixed17(160, name="Mixed_6c")(x)
        x = Mixed17(160, name="Mixed_6d")(x)
        # The block's first channels are those of its first branch.
        spatial = x[..., :7].reshape(x.shape[0], 17 * 17 * 7)
        x = Mixed17(192, name="Mixed_6e")(x)
        pool_768 = x.mean((1, 2))
        x = Shrink8(name="Mixed_7a")(x)
        x = Mixed8(False, name="Mixed_7b")(x)
        x = Mixed8(True, name="Mixed_7c")(x)
        features = x.mean((1, 2))
        unbiased, logits = Linear(1008, name="fc")(features)
        return InceptionFeatures(pool_64, pool_192, pool_768, features, spatial, unbiased, logits)


def _mean(x: Image) -> Found:
    """3 x 3 means of the pixels that exist."""
    return nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)


def _shrunk(x: Image) -> Found:
    return nn.max_pool(x, (3, 3), (2, 2))
