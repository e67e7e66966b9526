"""The U-Net's transformer: pixels of a feature map attend to each other and to the tokens of a text.

    h = dense(group_norm(x)), one token a pixel
    depth times:    h += attention(norm(h))                  to the pixels
                    h += attention(norm(h), text)            to the text
                    h += mlp(norm(h))                        mlp(h) = dense(a gelu(b)), (a, b) = dense(h)
    out = skip_scale * (x + dense(h))

Sources: arXiv:2112.10752, Sec. 3.3 and App. E.2.1; arXiv:2002.05202, Sec. 2 (the gated MLP, GEGLU).
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdiff.networks.axes import constrain
from jaxdiff.networks.layers import PERTURBED, GroupNorm, conv, dense, kernel_init, scaled
from jaxdiff.networks.multihead import MultiHead
from jaxdiff.networks.remat import recomputed
from jaxdiff.networks.vit import gelu, layer_norm

GROUP_NORM_EPS = 1e-6
"""Added to the variance in the group norm of every published transformer, whatever the residual blocks add."""

LAYER_NORM_EPS = 1e-5
MLP_RATIO = 4
"""Hidden channels of the MLP in multiples of the token's."""


class SpatialTransformer(nn.Module):
    """Transformer blocks on the pixels of a feature map, added to it; they start at zero.

    The parameters of the blocks are stacked along a first axis of length `depth`.
    """

    depth: int
    """Number of blocks."""
    heads: int
    """Attention heads."""
    linear: bool = True
    """Dense layers before and after the blocks; False for 1x1 convolutions, which compute the same."""
    skip_scale: float = 1.0
    """Factor on the sum of the two branches."""
    norm_groups: int = 0
    """Groups of the group norm; 0 for `layers.num_groups`."""
    gain: float = 1.0
    """Scale of the initial kernels' variance."""
    remat: str = "none"
    """What the backward pass recomputes, as in `remat.py`."""
    dtype: str = "float32"
    """Compute type; norm statistics and the softmax are float32."""
    kernel: str = "auto"
    """How attention is computed, as in `layers.attention`."""

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        text: Float[Array, "b m e"] | None = None,
        mask: Bool[Array, "b m"] | None = None,
        words: Int[Array, "b m"] | None = None,
        pixels: Int[Array, "b"] | None = None,
    ) -> Float[Array, "b h w c"]:
        """`mask` says which tokens of the text may be seen. Without a text there is no attention to one.

        `words` and `pixels`: whose maps are taken, as in `text_condition.Text`.
        """
        b, height, width, c = x.shape
        # The self-attention of all blocks at once, as in `layers.attention`.
        perturbed = self.has_variable(PERTURBED, "identity")
        identity = jnp.asarray(self.get_variable(PERTURBED, "identity")) if perturbed else None
        h = GroupNorm(GROUP_NORM_EPS, self.norm_groups, name="norm_in")(x)
        h = self._projection("proj_in", c, self.gain)(h).reshape(b, height * width, c)
        blocks = nn.scan(
            recomputed(Block, self.remat, in_scan=True),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,  # pyright: ignore[reportArgumentType]
            length=self.depth,
        )
        h, _ = blocks(self.heads, self.gain, self.dtype, self.kernel, name="blocks")(
            h, text, mask, identity, words, pixels
        )
        h = self._projection("proj_out", c, 0.0)(h.reshape(x.shape))
        return scaled(x + h, self.skip_scale)

    def _projection(self, name: str, features: int, gain: float) -> nn.Dense | nn.Conv:
        if self.linear:
            return dense(features, self.dtype, gain, name)
        return conv(features, 1, self.dtype, gain, name)


class Block(nn.Module):
    """One block, in the shape that `nn.scan` takes: ``(x, *seen) -> (x, None)``."""

    heads: int
    gain: float
    dtype: str
    kernel: str

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n c"],
        text: Float[Array, "b m e"] | None,
        mask: Bool[Array, "b m"] | None,
        identity: Bool[Array, ""] | None,
        words: Int[Array, "b m"] | None,
        pixels: Int[Array, "b"] | None,
    ) -> tuple[Float[Array, "b n c"], None]:
        c = x.shape[-1]

        def normed(name: str) -> Array:
            return layer_norm(LAYER_NORM_EPS, name)(x).astype(x.dtype)

        every = None
        if pixels is not None:
            every = jnp.where(pixels[:, None] >= 0, jnp.arange(x.shape[1]), -1)
        x = x + self._attend("self_attention", c)(normed("norm_self"), identity=identity, taken=every)
        if text is not None:
            x = x + self._attend("cross_attention", c)(normed("norm_cross"), text.astype(x.dtype), mask, taken=words)

        # Values and gates have an axis of their own, so that hidden channels can be spread over devices.
        wide = nn.DenseGeneral(
            (2, MLP_RATIO * c), dtype=jnp.dtype(self.dtype), kernel_init=kernel_init(self.gain), name="mlp_0"
        )(normed("norm_mlp"))
        h = constrain(wide[:, :, 0] * gelu(wide[:, :, 1]), "batch", "tokens", "hidden")
        x = x + dense(c, self.dtype, self.gain, "mlp_1")(h)
        return constrain(x, "batch", "tokens", None), None

    def _attend(self, name: str, features: int) -> MultiHead:
        return MultiHead(
            self.heads,
            features // self.heads,
            qkv_bias=False,
            gain=self.gain,
            out_gain=self.gain,
            dtype=self.dtype,
            kernel=self.kernel,
            name=name,
        )
