"""VQModel: an autoencoder whose decoder sees the entries of a codebook (latent-diffusion's unconditional models).

    encode(x) = quant(encoder(x))                                  diffusion runs on these, before the codebook
    decode(z) = decoder(quant(e_k)),    k = argmin_j |z - e_j|^2   at each latent pixel

Encoder and decoder are those of `autoencoder.py`, the encoder with one output in place of mean and variance.
Sources: arXiv:2012.09841, Eq. 2; arXiv:2112.10752, Sec. 3.1 (VQ-reg.).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiff.networks.autoencoder import Decoder, Encoder, Parts, check_sides, check_widths


class VQModel(nn.Module):
    """Encoder, codebook and decoder; called, the picture rebuilt. It is a codec, and is not trained here.

    Its parameters are {"encoder": ..., "codebook": [codes, embedding], "decoder": ...}. Raises ValueError where a width
    or a picture does not fit.
    """

    latents: int = 3
    """Channels that the encoder ends and the decoder begins with."""
    embedding: int = 3
    """Channels of an entry of the codebook, and of a latent pixel."""
    codes: int = 8192
    """Entries of the codebook."""
    widths: tuple[int, ...] = (128, 256, 512)
    """Channels at each size of the features; the first is the picture's, and each further one half the one before."""
    blocks_per_level: int = 2
    """Residual blocks of the encoder at each size; the decoder has one more."""
    channels: int = 3
    """Channels of a picture."""
    groups: int = 32
    """Groups of the norms, which divide all widths."""
    middle_attention: bool = True
    """Attention between all pixels of the smallest size."""

    @property
    def factor(self) -> int:
        """Pixels a side for each latent pixel."""
        return 2 ** (len(self.widths) - 1)

    def setup(self) -> None:
        check_widths(self.widths, self.groups)
        parts = Parts(self.groups, self.middle_attention, "none", "auto", "float32")
        self.encoder = Encoder(parts, self.widths, self.blocks_per_level, self.latents, self.embedding)
        bound = 1 / self.codes
        init = nn.initializers.uniform(2 * bound)
        self.codebook = self.param("codebook", lambda *args: init(*args) - bound, (self.codes, self.embedding))
        self.decoder = Decoder(parts, self.widths, self.blocks_per_level, self.channels, self.latents)

    def encode(self, x: Float[Array, "b height width c"]) -> Float[Array, "b h w embedding"]:
        """Latents, not yet brought to the codebook, of pictures in [-1, 1]."""
        check_sides(x, self.factor)
        return self.encoder(x)

    def decode(self, z: Float[Array, "b h w embedding"]) -> Float[Array, "b height width c"]:
        """Pictures, in [-1, 1] but for small errors."""
        return self.decoder(nearest(z, self.codebook))

    def __call__(self, x: Float[Array, "b height width c"]) -> Float[Array, "b height width c"]:
        """The picture of the nearest entries."""
        return self.decode(self.encode(x))


def nearest(z: Float[Array, "b h w d"], codebook: Float[Array, "n d"]) -> Float[Array, "b h w d"]:
    """The entry of the codebook that is nearest to each pixel; one picture at a time, as all distances are at hand."""

    def one(picture: Float[Array, "h w d"]) -> Float[Array, "h w d"]:
        products = jnp.einsum("hwd,nd->hwn", picture, codebook, precision=jax.lax.Precision.HIGHEST)
        # |z - e|^2 without |z|^2, which is the same for all entries.
        return codebook[jnp.argmin(jnp.square(codebook).sum(-1) - 2 * products, axis=-1)]

    return jax.lax.map(one, z)
