"""The config.json of diffusers' AutoencoderKL and VQModel: networks of ours, and the scale of their latents."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from jaxdiff.networks.autoencoder import AutoencoderKL
from jaxdiff.networks.vq import VQModel
from jaxdiff.pretrained.fields import check, flag, whole, wholes

CONFIG = "config.json"


class Scaling(NamedTuple):
    """How a model's latents are brought to what diffusion sees, ``(z - mean) / std``; of each channel, or of all."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


class Shared(NamedTuple):
    """What every autoencoder's network has, as it calls them."""

    latents: int
    widths: tuple[int, ...]
    blocks_per_level: int
    channels: int
    groups: int
    middle_attention: bool


SHARED = (
    "block_out_channels",
    "force_upcast",  # everything is float32 here
    "in_channels",
    "latent_channels",
    "layers_per_block",
    "mid_block_add_attention",
    "norm_num_groups",
    "sample_size",
    "scaling_factor",
)
"""Fields of a config.json that are read of every autoencoder."""


def shared_fields(config: Mapping[str, object], latents: int) -> Shared:
    """What a config.json says of encoder and decoder, which have so many latents where it does not say."""
    return Shared(
        whole(config, "latent_channels", latents),
        wholes(config, "block_out_channels", (64,)),
        whole(config, "layers_per_block", 1),
        whole(config, "in_channels", 3),
        whole(config, "norm_num_groups", 32),
        flag(config, "mid_block_add_attention", True),
    )


def only_of(shared: Shared) -> dict[str, tuple[object, ...]]:
    """What other fields of every autoencoder may say."""
    levels = len(shared.widths)
    return {
        "act_fn": ("silu",),
        "down_block_types": (["DownEncoderBlock2D"] * levels, ("DownEncoderBlock2D",) * levels),
        "out_channels": (shared.channels,),
        "up_block_types": (["UpDecoderBlock2D"] * levels, ("UpDecoderBlock2D",) * levels),
    }


def autoencoder_config(config: Mapping[str, object]) -> AutoencoderKL:
    """The network of a published config.json. Raises ValueError that names a field which cannot be honoured."""
    quant, shared = flag(config, "use_quant_conv", True), shared_fields(config, 4)
    read = ("latents_mean", "latents_std", "shift_factor", "use_quant_conv", *SHARED)
    check(config, read, {**only_of(shared), "use_post_quant_conv": (quant,)})
    if config.get("use_post_quant_conv", True) != quant:
        raise ValueError(f"{CONFIG}: use_post_quant_conv is not {quant}, as use_quant_conv is")
    return AutoencoderKL(quant=quant, **shared._asdict())


def vq_config(config: Mapping[str, object]) -> VQModel:
    """The network of a VQModel's config.json. Raises ValueError that names a field which cannot be honoured."""
    shared = shared_fields(config, 3)
    only = {"lookup_from_codebook": (False,), "norm_type": ("group",)}
    check(config, ("num_vq_embeddings", "vq_embed_dim", *SHARED), {**only_of(shared), **only})
    own = {name: value for name, value in config.items() if name != "vq_embed_dim" or value is not None}
    return VQModel(
        embedding=whole(own, "vq_embed_dim", shared.latents),
        codes=whole(config, "num_vq_embeddings", 256),
        **shared._asdict(),
    )


def scaling_of(config: Mapping[str, object]) -> Scaling:
    """What the config says of the latents: their statistics by channel, or one factor and shift."""
    factor = config.get("scaling_factor", 0.18215)
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if not isinstance(factor, float | int) or not factor:
        raise ValueError(f"{CONFIG}: scaling_factor = {factor!r} is not allowed: a number other than 0")
    if isinstance(mean, Sequence) and isinstance(std, Sequence):
        return Scaling(tuple(map(float, mean)), tuple(float(s) / factor for s in std))
    shift = config.get("shift_factor") or 0.0
    if not isinstance(shift, float | int):
        raise ValueError(f"{CONFIG}: shift_factor = {shift!r} is not allowed: a number")
    return Scaling((float(shift),), (1 / factor,))


def config_json(network: AutoencoderKL, scaling_factor: float = 1.0, shift_factor: float = 0.0) -> dict[str, object]:
    """The config.json with which diffusers makes this network: the inverse of `autoencoder_config`."""
    levels = len(network.widths)
    return {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": list(network.widths),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "in_channels": network.channels,
        "latent_channels": network.latents,
        "layers_per_block": network.blocks_per_level,
        "mid_block_add_attention": network.middle_attention,
        "norm_num_groups": network.groups,
        "out_channels": network.channels,
        "scaling_factor": scaling_factor,
        "shift_factor": shift_factor,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "use_post_quant_conv": network.quant,
        "use_quant_conv": network.quant,
    }
