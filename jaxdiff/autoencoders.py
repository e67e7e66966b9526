"""Runs that train an autoencoder, from config to functions: parameters, the players of the loss, what is shown."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, UInt8

from jaxdiff.config import Config
from jaxdiff.core.types import Params
from jaxdiff.data import Source
from jaxdiff.data.pictures import Pictures
from jaxdiff.data.pipeline import validation_batch
from jaxdiff.networks.autoencoder import AutoencoderKL
from jaxdiff.networks.discriminator import PatchDiscriminator
from jaxdiff.objectives.autoencoder import Adversary, Autoencoding, Players
from jaxdiff.pretrained.lpips import find_lpips

COLUMNS = 8
"""Pictures in a row of what is shown."""


def is_autoencoder(config: Config) -> bool:
    """Whether the run trains an autoencoder. Raises: ValueError where network and objective do not belong together."""
    found = isinstance(config.network, AutoencoderKL)
    if found != isinstance(config.objective, Autoencoding):
        kind, name = type(config.objective).__name__, type(config.network).__name__
        raise ValueError(f"the objective {kind} cannot train the network {name}: choose another preset")
    return found


def init_autoencoder(config: Config, key: Key[Array, ""]) -> Params:
    """Initial parameters: {"network": ...}, and {"discriminator": ...} where there is a game."""
    network, objective = _parts(config)
    picture = jnp.zeros((1, config.data.size, config.data.size, config.data.channels))
    key_network, key_judge = jax.random.split(key)
    params = {"network": network.init(key_network, picture)["params"]}
    if objective.adversary.weight:
        params["discriminator"] = discriminator(objective.adversary).init(key_judge, picture)["params"]
    return params


def players(config: Config, perceptual: bool = True) -> Players:
    """The networks of the run as functions of its parameters; with or without its perceptual distance.

    Raises: ValueError or FileNotFoundError where the perceptual distance has no weights (--lpips).
    """
    network, objective = _parts(config)
    judge = discriminator(objective.adversary)
    distance = find_lpips(objective.lpips) if perceptual and objective.lpips and objective.perceptual else None

    def on(module: AutoencoderKL | PatchDiscriminator, name: str, method: str) -> Callable:
        return lambda params, x: module.apply({"params": params[name]}, x, method=method)

    return Players(
        encode=on(network, "network", "encode"),
        decode=on(network, "network", "decode"),
        judge=on(judge, "discriminator", "__call__"),
        distance=distance and distance.apply,
    )


def discriminator(adversary: Adversary) -> PatchDiscriminator:
    """The network that judges."""
    return PatchDiscriminator(adversary.channels, adversary.layers)


def preview(config: Config, source: Source, rows: int = 4) -> Callable[[Params], UInt8[np.ndarray, "n h w c"]]:
    """params -> pictures from all over the source, and below each row of them the same rebuilt from mean latents."""
    network, _ = _parts(config)
    chosen = np.linspace(0, len(source) - 1, min(len(source), rows * COLUMNS)).round().astype(int)
    pictures = Pictures(config.data, source)
    shown = np.concatenate([validation_batch(config.data, pictures, range(i, i + 1))["image"] for i in chosen])

    @jax.jit
    def rebuild(params: Params, images: UInt8[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        return network.apply({"params": params}, images.astype(jnp.float32) / 127.5 - 1)  # pyright: ignore[reportReturnType]

    def images(params: Params) -> UInt8[np.ndarray, "n h w c"]:
        found = np.asarray(rebuild(params["network"], jnp.asarray(shown)))
        found = np.clip(np.round(127.5 * (found + 1)), 0, 255).astype(np.uint8)
        pairs = [(shown[i : i + COLUMNS], found[i : i + COLUMNS]) for i in range(0, len(shown), COLUMNS)]
        return np.concatenate([part for pair in pairs for part in pair])

    return images


def _parts(config: Config) -> tuple[AutoencoderKL, Autoencoding]:
    assert isinstance(config.network, AutoencoderKL) and isinstance(config.objective, Autoencoding)
    return config.network, config.objective
