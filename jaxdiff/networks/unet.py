"""The U-Net of DDPM, iDDPM, ADM, DDPM++, NCSN++, VDM and Stable Diffusion: one module, whose attributes choose.

    encoder   per level: residual blocks (some with attention or a transformer), then half the size
    middle    residual block, attention or a transformer, residual block
    decoder   the same upwards, each block fed with the matching encoder output as well

Sources: arXiv:2006.11239 (DDPM), 2102.09672 (iDDPM), 2105.05233 (ADM), 2011.13456 (DDPM++, NCSN++),
2107.00630 (VDM), 2206.00364 (EDM's variants), 2112.10752 (Stable Diffusion), 2307.01952 (SDXL).
"""

from functools import partial
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiff.core.types import Cond
from jaxdiff.networks.blocks import Attention, Downsample, Resample, ResBlock, Upsample
from jaxdiff.networks.image_condition import with_image
from jaxdiff.networks.layers import GroupNorm, NoiseEmbedding, conv, scaled, with_waves
from jaxdiff.networks.remat import recomputed
from jaxdiff.networks.resample import depth_to_space, downsample, smooth, space_to_depth, upsample
from jaxdiff.networks.spatial_transformer import SpatialTransformer
from jaxdiff.networks.text_condition import PooledEmbedding, Text, TextTokens, taken
from jaxdiff.networks.text_transformer import TextTransformer, read_text


class UNet(nn.Module):
    """A U-Net: ``(x, noise, cond) -> [b, h, w, c]``, or ``2c`` channels with `learned_variance`.

    Raises ValueError where the image or a width does not fit the attributes.
    """

    patch: int = 1
    """Side of the pixel blocks that become channels at the input and pixels again at the output; 1 for none."""
    channels: int = 128
    """Channels at the first level."""
    channel_mults: tuple[int, ...] = (1, 2, 2, 2)
    """Channels of each level in multiples of `channels`; every level after the first has half the size."""
    blocks_per_level: int = 2
    """Residual blocks of an encoder level; a decoder level has one more."""
    attention_resolutions: tuple[int, ...] = (16,)
    """Heights of the feature maps (in their own pixels) that have self-attention."""
    attention_levels: tuple[int, ...] = ()
    """Levels that have self-attention at any size, counted from 0."""
    middle_attention: bool = True
    """Self-attention between the two middle blocks."""
    decoder_attention: bool = True
    """Attention after every decoder block of a chosen height; False for only the last block of the level."""
    heads: int = 1
    """Attention heads; not used where `head_channels` is set."""
    head_channels: int = 0
    """Channels of an attention head; 0 to set `heads` instead."""
    transformer_depths: tuple[int, ...] = ()
    """Of each level: blocks of the transformers that stand in place of attention; 0 or () for no transformers."""
    middle_transformer: int = 0
    """Blocks of the transformer between the two middle blocks, in place of attention; 0 for none."""
    linear_projection: bool = True
    """Dense layers around the transformers' blocks (SD 2, SDXL); False for 1x1 convolutions (SD 1)."""
    text_width: int = 0
    """Channels of the text's tokens, to which the transformers attend; 0 for no tokens."""
    text_null: bool = True
    """A learned token for texts that are absent; False in published networks, which take an empty text's tokens."""
    text_pooled: int = 0
    """Channels of the text's one vector, which joins the embedding; 0 for none."""
    text_encoder: TextTransformer | None = None
    """Reads captions as tokens and learns with this network; None where the text's features are given."""
    image_channels: int = 0
    """Channels of a picture that is seen beside x; 0 for none."""
    size_features: int = 0
    """Sinusoids of each of the six sizes, which join the embedding (256 in SDXL); 0 for none."""
    dropout: float = 0.0
    """Drop-out rate in the residual blocks, in training."""
    scale_shift: bool = False
    """The embedding scales and shifts the norms (ADM); False adds it to the features (DDPM)."""
    resample_blocks: bool = False
    """Residual blocks change the size (ADM, NCSN++); False for plain 3x3 convolutions (DDPM)."""
    resample_taps: tuple[int, ...] = (1, 1)
    """Filter of the residual blocks that change the size: 1 1 averages, 1 3 3 1 is NCSN++'s."""
    resample_projection: bool = False
    """A 1x1 convolution on the skip of the residual blocks that change the size (DDPM++, NCSN++)."""
    symmetric_padding: bool = False
    """Zeros on all sides in plain convolutions that halve the size (SD); False for right and bottom alone (DDPM)."""
    residual_input: bool = False
    """Add a filtered, convolved copy of the input at every lower encoder level (NCSN++)."""
    skip_scale: float = 1.0
    """Factor on every residual sum: 0.7071 in DDPM++ and NCSN++."""
    embedding_channels: int = 0
    """Sinusoidal or Fourier features of the noise level; 0 for as many as `channels`."""
    embedding_mult: int = 4
    """Width of the embedding in multiples of `channels`."""
    max_period: float = 10000.0
    """Longest period of the sinusoids, over 2 pi."""
    cosine_first: bool = False
    """Cosines before sines in the features of the noise level and of sizes (SD)."""
    fourier_scale: float = 0.0
    """Standard deviation of random Fourier frequencies (16 in NCSN++); 0 for sinusoids."""
    fourier_frequencies: tuple[float, ...] = ()
    """The frequencies themselves, which published files hold; () draws them."""
    num_classes: int = 0
    """Number of class labels; 0 for none."""
    label_before_mlp: bool = False
    """Add the label to the noise features (DDPM++); False adds it to the finished embedding (ADM)."""
    augment_dim: int = 0
    """Size of the augmentation condition (9 in EDM); 0 for none."""
    fourier_features: tuple[int, ...] = ()
    """Exponents n of extra inputs sin(2^n 2 pi x) and cos(2^n 2 pi x) (6 7 in VDM)."""
    add_input: bool = False
    """Add the input to the output (VDM)."""
    learned_variance: bool = False
    """Twice the output channels, for a learned variance (iDDPM, ADM)."""
    norm_eps: float = 1e-5
    """Added to the variance in group norm."""
    norm_groups: int = 0
    """Groups of group norm; 0 for 32, or fewer where a group would have under 4 channels."""
    init_gain: float = 1.0
    """Scale of the initial kernels' variance 2 / (fan_in + fan_out)."""
    remat: Literal["none", "dots", "full"] = "none"
    """What the backward pass recomputes: nothing, all but convolutions and matrix products, or whole blocks."""
    attention: Literal["auto", "plain"] = "auto"
    """The fastest kernel on the platform, or the plain one, which forward-mode differentiation (likelihoods) needs."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute type; parameters, norm statistics, softmax and output are float32."""

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        noise: Float[Array, "b"],
        cond: Cond,
        train: bool = False,
        decode: bool = True,
    ) -> Float[Array, "b h2 w2 c_out"]:
        """The output at noise input ``noise`` (``c_noise`` of the prediction), float32.

        Without `decode` the features after the middle, and no parameters beyond: what a classifier reads.
        """
        self._check(x)
        cond = read_text(self.text_encoder, cond, x.shape[0])
        out_channels = x.shape[-1] * (2 if self.learned_variance else 1)
        emb = nn.silu(self._embedding(noise, cond))
        text = Text()
        if self.text_width:
            tokens = TextTokens(self.text_width, self.text_null, name="text")(cond, x.shape[0])
            text = Text(*tokens, *taken(cond, self.text_null))

        seen = with_image(with_waves(x, self.fourier_features), cond, self.image_channels)
        inputs = space_to_depth(seen, self.patch)
        h, skips = self._encode(inputs.astype(self.dtype), emb, text, train)
        h = self._block("middle_0", h.shape[-1])(h, emb, train)
        if self.middle_transformer:
            h = self._transformer("middle_attention", self.middle_transformer, h.shape[-1])(h, *text)
        elif self.middle_attention:
            h = self._attention("middle_attention", h.shape[-1])(h)
        h = self._block("middle_1", h.shape[-1])(h, emb, train)
        if not decode:
            return h.astype(jnp.float32)
        h = self._decode(h, skips, emb, text, train)

        h = nn.silu(GroupNorm(self.norm_eps, self.norm_groups, name="norm_out")(h.astype(jnp.float32)))
        h = conv(out_channels * self.patch**2, 3, "float32", 0.0, "conv_out")(h)
        out = depth_to_space(h, self.patch)
        if self.add_input:
            out = out.at[..., : x.shape[-1]].add(x)
        return out

    def _embedding(self, noise: Array, cond: Cond) -> Array:
        width = self.embedding_mult * self.channels
        emb = NoiseEmbedding(
            self.embedding_channels or self.channels,
            width,
            self.max_period,
            self.cosine_first,
            self.fourier_scale,
            self.num_classes,
            self.label_before_mlp,
            self.augment_dim,
            self.init_gain,
            self.fourier_frequencies,
            name="embedding",
        )(noise, cond)
        if self.text_pooled or self.size_features:
            fields = (self.text_pooled, self.size_features, self.cosine_first, self.init_gain)
            emb += PooledEmbedding(width, *fields, name="pooled")(cond, noise.shape[0])
        return emb

    def _encode(self, inputs: Array, emb: Array, text: Text, train: bool) -> tuple[Array, list[Array]]:
        last = len(self.channel_mults) - 1
        pyramid = inputs
        h = conv(self.channels, 3, self.dtype, self.init_gain, "conv_in")(inputs)
        skips = [h]
        for level, mult in enumerate(self.channel_mults):
            for i in range(self.blocks_per_level):
                name = f"encoder_{level}_{i}"
                h = self._block(name, self.channels * mult)(h, emb, train)
                h = self._attended(f"{name}_attention", level, h, text)
                skips.append(h)
            if level == last:
                break
            h = self._resample(f"encoder_{level}_down", h, emb, train, up=False)
            if self.residual_input:
                pyramid = self._shrunk_input(f"encoder_{level}_input", pyramid, h.shape[-1])
                h = pyramid = scaled(h + pyramid, 0.5**0.5)
            skips.append(h)
        return h, skips

    def _decode(self, h: Array, skips: list[Array], emb: Array, text: Text, train: bool) -> Array:
        for level, mult in reversed(list(enumerate(self.channel_mults))):
            for i in range(self.blocks_per_level + 1):
                name = f"decoder_{level}_{i}"
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = self._block(name, self.channels * mult)(h, emb, train)
                if self.decoder_attention or i == self.blocks_per_level:
                    h = self._attended(f"{name}_attention", level, h, text)
            if level > 0:
                h = self._resample(f"decoder_{level}_up", h, emb, train, up=True)
        return h

    def _attended(self, name: str, level: int, h: Array, text: Text) -> Array:
        depth = self.transformer_depths[level] if self.transformer_depths else 0
        if depth:
            return self._transformer(name, depth, h.shape[-1])(h, *text)
        if level in self.attention_levels or h.shape[1] in self.attention_resolutions:
            return self._attention(name, h.shape[-1])(h)
        return h

    def _resample(self, name: str, h: Array, emb: Array, train: bool, up: bool) -> Array:
        if self.resample_blocks:
            fir = partial(upsample if up else downsample, taps=self.resample_taps)
            block = self._block(name, h.shape[-1], resample=fir, project=self.resample_projection)
            return block(h, emb, train)
        if up:
            return Upsample(self.init_gain, self.dtype, name=name)(h)
        return Downsample(self.init_gain, self.symmetric_padding, self.dtype, name=name)(h)

    def _shrunk_input(self, name: str, pyramid: Array, features: int) -> Array:
        # NCSN++ convolves at full density and filters in one go, so that it sees all of the input.
        halve = conv(features, 3, self.dtype, self.init_gain, name, stride=2, padding="VALID")
        return halve(smooth(pyramid, self.resample_taps))

    def _block(self, name: str, features: int, resample: Resample | None = None, project: bool = False) -> ResBlock:
        return recomputed(ResBlock, self.remat, static_argnums=(3,))(
            features,
            resample,
            project,
            self.scale_shift,
            self.dropout,
            self.skip_scale,
            self.norm_eps,
            self.norm_groups,
            self.init_gain,
            self.dtype,
            name=name,
        )

    def _attention(self, name: str, features: int) -> Attention:
        fields = (self.skip_scale, self.norm_eps, self.norm_groups, self.init_gain, self.dtype, self.attention)
        return recomputed(Attention, self.remat)(self._heads(features), *fields, name=name)

    def _transformer(self, name: str, depth: int, features: int) -> SpatialTransformer:
        return SpatialTransformer(
            depth,
            self._heads(features),
            self.linear_projection,
            self.skip_scale,
            self.norm_groups,
            self.init_gain,
            self.remat,
            self.dtype,
            self.attention,
            name=name,
        )

    def _heads(self, features: int) -> int:
        divisor = self.head_channels or self.heads
        if features % divisor:
            raise ValueError(
                f"attention on {features} channels needs --network.head-channels (or --network.heads) "
                f"to divide them, and {divisor} does not"
            )
        return features // divisor if self.head_channels else self.heads

    def _check(self, x: Array) -> None:
        if self.transformer_depths and len(self.transformer_depths) != len(self.channel_mults):
            raise ValueError(
                f"{len(self.transformer_depths)} transformer depths for {len(self.channel_mults)} levels: one for "
                "each, or none (--network.transformer-depths)"
            )
        if self.text_width and not (self.middle_transformer or any(self.transformer_depths)):
            raise ValueError(
                f"text_width = {self.text_width} is not allowed without transformers, which alone read the tokens "
                "(--network.transformer-depths, --network.middle-transformer)"
            )
        factor = self.patch * 2 ** (len(self.channel_mults) - 1)
        for side, size in (("height", x.shape[1]), ("width", x.shape[2])):
            if size % factor:
                raise ValueError(
                    f"image {side} {size} must be a multiple of {factor} for this network: "
                    "change --network.patch or --network.channel-mults"
                )
