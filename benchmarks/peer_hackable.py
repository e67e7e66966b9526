"""The networks of hackable-diffusion (Python 3.12 and later), configured as near to the compared ones as they allow."""

from importlib.metadata import version

import flax.linen as nn
import jax
from hackable_diffusion.lib.architecture import dit, dit_blocks, unet, unet_blocks  # pyright: ignore
from hackable_diffusion.lib.architecture.arch_typing import NormalizationType  # pyright: ignore
from hackable_diffusion.lib.architecture.conditioning_encoder import SinusoidalTimeEmbedder  # pyright: ignore
from hackable_diffusion.lib.architecture.sequence_embedders import SquareRoPEPositions  # pyright: ignore

from benchmarks.peer_jax import Peer, serve_peer
from benchmarks.sizes import CHANNELS, DROPOUT, SIDE, Size, Spec


class Network(nn.Module):
    """A backbone with the time embedding that it expects."""

    backbone: nn.Module
    features: int
    """Of the sinusoids."""
    width: int
    """Of the embedding."""

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array, train: bool = False) -> jax.Array:
        emb = SinusoidalTimeEmbedder(activation="silu", embedding_dim=self.features, num_features=self.width)(t)
        return self.backbone(x, {"adaptive_norm": emb}, is_training=train)


def unet_of(size: Size) -> nn.Module:
    """Its U-Net with DDPM's channels, blocks and attention."""
    backbone = unet.Unet(
        base_channels=size.channels,
        channels_multiplier=(1, 2, 2, 2),
        num_residual_blocks=(2, 2, 2, 2),
        downsample_fn=unet_blocks.AvgPoolDownsample(),
        upsample_fn=unet_blocks.ImageResizeUpsample(resize_method="nearest"),
        dropout_rate=(DROPOUT["unet"],) * 4,
        bottleneck_dropout_rate=DROPOUT["unet"],
        self_attention_bool=(False, True, False, False),
        cross_attention_bool=(False,) * 4,
        attention_num_heads=1,
        attention_head_dim=-1,
        attention_normalize_qk=False,
        attention_use_rope=False,
        attention_rope_positions_fn=SquareRoPEPositions(),
        normalization_type=NormalizationType.GROUP_NORM,
        normalization_num_groups=32,
        activation="silu",
        skip_connection_fn=unet_blocks.UnnormalizedAddSkip(),
    )
    return Network(backbone, size.channels, 4 * size.channels)


def dit_of(size: Size) -> nn.Module:
    """Its DiT with the paper's blocks and a plain MLP."""
    block = dit_blocks.DiTBlockAdaLNZero(
        hidden_size=size.width, num_heads=size.heads, ffn_type="dense", ffn_use_bias=True
    )
    side = (SIDE, SIDE, CHANNELS["dit"])
    backbone = dit.DiT(
        num_blocks=size.depth,
        block=block,
        encoder=dit_blocks.Patchify((2, 2), size.width),
        decoder=dit_blocks.DePatchify((2, 2), side),
        absolute_posenc=dit_blocks.PositionalEmbedding(),
    )
    return Network(backbone, 256, size.width)


def peer_of(spec: Spec) -> Peer:
    """Unet, or DiT."""
    size = Size(*spec.size)
    network = unet_of(size) if spec.network == "unet" else dit_of(size)
    differs = {
        "unet": "residual blocks that change the size, the embedding scales and shifts",
        "dit": "learned positions",
    }

    def apply(params: dict, x: jax.Array, t: jax.Array, key: jax.Array | None) -> jax.Array:
        out = network.apply(params, x, t, key is not None, rngs=None if key is None else {"dropout": key})
        assert isinstance(out, jax.Array)
        return out

    return Peer(network.init, apply, f"hackable-diffusion {version('hackable-diffusion')}", differs[spec.network])


if __name__ == "__main__":
    serve_peer(peer_of)
