"""What a network predicts: a row (a, b) of the (x0, eps) plane, and how its inputs are scaled.

| prediction | a | b | det = alpha b - sigma a |
|---|---|---|---|
| Eps | 0 | 1 | alpha |
| X0 | 1 | 0 | -sigma |
| V | -sigma | alpha | alpha**2 + sigma**2 |
| Flow | -1 | 1 | alpha + sigma |
| Score | 0 | -1/sigma | -alpha/sigma |
| EDM | sigma/(s R) | -alpha s/R | -R/s, R = sqrt(sigma**2 + alpha**2 s**2) |
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiff.core.paths import FixedPath
from jaxdiff.core.types import Level

Scalar = Float[Array, "*b"]


@dataclasses.dataclass(frozen=True)
class Angle:
    """Feeds the network scale * (2/pi) atan2(sigma, alpha): in [0, scale], finite at both ends."""

    scale: float = 1000.0
    """The value at pure noise; sinusoidal embeddings expect about 1000."""

    def __call__(self, level: Level) -> Scalar:
        return jnp.arctan2(level.sigma, level.alpha) * (2 * self.scale / jnp.pi)


@dataclasses.dataclass(frozen=True)
class LogRatio:
    """Feeds the network scale * log(sigma / alpha) + offset. Infinite at either end of a path that reaches it."""

    scale: float = 0.25
    """EDM's c_noise has 1/4 (arXiv:2206.00364, Table 1); VE nets take log(sigma) itself."""
    offset: float = 0.0
    """Added."""

    def __call__(self, level: Level) -> Scalar:
        return self.scale * (jnp.log(level.sigma) - jnp.log(level.alpha)) + self.offset


@dataclasses.dataclass(frozen=True)
class PathTime:
    """Feeds the network scale * t + offset, t being the path's own time at the level."""

    path: FixedPath
    """The path whose clock the network was trained with."""
    scale: float = 1.0
    """999 for score SDE's VP nets; 1 for the integer steps of a DDPM."""
    offset: float = 0.0
    """-1 for DDPM's networks, which count the steps from 0."""

    def __call__(self, level: Level) -> Scalar:
        return self.scale * self.path.invert(level.sigma / level.alpha) + self.offset


Feed = Angle | LogRatio | PathTime


@dataclasses.dataclass(frozen=True)
class Eps:
    """The noise. Source: arXiv:2006.11239, Eq. 14. Not solvable at alpha = 0."""

    time: Feed = Angle()
    """What the network is told of the level."""

    def row(self, level: Level) -> tuple[Scalar, Scalar]:
        return jnp.zeros_like(level.alpha), jnp.ones_like(level.alpha)

    def c_in(self, level: Level) -> Scalar:
        return jnp.ones_like(level.alpha)

    def c_noise(self, level: Level) -> Scalar:
        return self.time(level)


@dataclasses.dataclass(frozen=True)
class X0:
    """The clean image. Source: arXiv:2202.00512, Sec. 4. Not solvable at sigma = 0."""

    time: Feed = Angle()
    """What the network is told of the level."""

    def row(self, level: Level) -> tuple[Scalar, Scalar]:
        return jnp.ones_like(level.alpha), jnp.zeros_like(level.alpha)

    def c_in(self, level: Level) -> Scalar:
        return jnp.ones_like(level.alpha)

    def c_noise(self, level: Level) -> Scalar:
        return self.time(level)


@dataclasses.dataclass(frozen=True)
class V:
    """alpha * eps - sigma * x0. Source: arXiv:2202.00512, Sec. 4."""

    time: Feed = Angle()
    """What the network is told of the level."""

    def row(self, level: Level) -> tuple[Scalar, Scalar]:
        return -level.sigma, level.alpha

    def c_in(self, level: Level) -> Scalar:
        return jnp.ones_like(level.alpha)

    def c_noise(self, level: Level) -> Scalar:
        return self.time(level)


@dataclasses.dataclass(frozen=True)
class Flow:
    """eps - x0, the velocity of rectified flow. Source: arXiv:2209.03003, Eq. 1 (time reversed)."""

    time: Feed = Angle()
    """What the network is told of the level."""

    def row(self, level: Level) -> tuple[Scalar, Scalar]:
        return -jnp.ones_like(level.alpha), jnp.ones_like(level.alpha)

    def c_in(self, level: Level) -> Scalar:
        return jnp.ones_like(level.alpha)

    def c_noise(self, level: Level) -> Scalar:
        return self.time(level)


@dataclasses.dataclass(frozen=True)
class Score:
    """The score, -eps / sigma. Not solvable at either end. Source: arXiv:2011.13456, Eq. 7."""

    time: Feed = Angle()
    """What the network is told of the level."""

    def row(self, level: Level) -> tuple[Scalar, Scalar]:
        return jnp.zeros_like(level.alpha), -1 / level.sigma

    def c_in(self, level: Level) -> Scalar:
        return jnp.ones_like(level.alpha)

    def c_noise(self, level: Level) -> Scalar:
        return self.time(level)


@dataclasses.dataclass(frozen=True)
class EDM:
    """EDM's preconditioned output, of unit variance for data of standard deviation sigma_data, on any path.

    D(x) = c_skip x + c_out F(c_in x; c_noise). Source: arXiv:2206.00364, Eq. 7 and Table 1.
    """

    sigma_data: float = 0.5
    """Standard deviation of the data, in the [-1, 1] range."""
    time: Feed = LogRatio()
    """What the network is told of the level."""

    def __post_init__(self) -> None:
        if not self.sigma_data > 0:
            raise ValueError(f"sigma_data = {self.sigma_data} must be above 0 (--prediction.sigma-data)")

    def _norm(self, level: Level) -> Scalar:
        return jnp.hypot(level.sigma, level.alpha * self.sigma_data)

    def row(self, level: Level) -> tuple[Scalar, Scalar]:
        norm = self._norm(level)
        return level.sigma / (self.sigma_data * norm), -level.alpha * self.sigma_data / norm

    def c_in(self, level: Level) -> Scalar:
        return 1 / self._norm(level)

    def c_noise(self, level: Level) -> Scalar:
        return self.time(level)


AnyPrediction = Eps | X0 | V | Flow | Score | EDM
"""The predictions that a config may hold."""
