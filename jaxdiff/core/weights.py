"""Weights of a squared error at a level. Each says of which prediction's error it speaks.

`convert` moves a weight to another prediction's error: the squared ratio of the two dets (see `gaussian`).
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiff.core.gaussian import det, logsnr, snr
from jaxdiff.core.paths import FixedPath, logsnr_rate
from jaxdiff.core.types import Level, Prediction, Weight

Scalar = Float[Array, "*b"]


def convert(weight: Weight, of: Prediction, to: Prediction) -> Weight:
    """The weight on `to`'s output error that equals `weight` on `of`'s output error.

    weight * (det_of / det_to)**2; at alpha = 0 and at sigma = 0 its limit.
    """

    def converted(level: Level) -> Scalar:
        # Infinite weight times zero determinant: 1e-18 takes its place (1e18 squared is still a float32).
        level = Level(jnp.maximum(level.alpha, 1e-18), jnp.maximum(level.sigma, 1e-18))
        return weight(level) * jnp.square(det(of, level) / det(to, level))

    return converted


@dataclasses.dataclass(frozen=True)
class One:
    """1, of whatever error it is asked for: DDPM's simple loss on eps, EDM's loss on its own output."""

    def __call__(self, level: Level) -> Scalar:
        return jnp.ones_like(level.alpha)


@dataclasses.dataclass(frozen=True)
class SNR:
    """SNR, of the x0 error (it equals 1 of the eps error). Source: arXiv:2202.00512, Eq. 9."""

    def __call__(self, level: Level) -> Scalar:
        return snr(level)


@dataclasses.dataclass(frozen=True)
class TruncatedSNR:
    """max(SNR, 1), of the x0 error. Source: arXiv:2202.00512, Sec. 4."""

    def __call__(self, level: Level) -> Scalar:
        return jnp.maximum(snr(level), 1.0)


@dataclasses.dataclass(frozen=True)
class MinSNR:
    """min(SNR, gamma), of the x0 error. Source: arXiv:2303.09556, Sec. 3.4."""

    gamma: float = 5.0
    """The cap."""

    def __post_init__(self) -> None:
        if not self.gamma > 0:
            raise ValueError(f"gamma = {self.gamma} must be above 0 (--weight.gamma)")

    def __call__(self, level: Level) -> Scalar:
        return jnp.minimum(snr(level), self.gamma)


@dataclasses.dataclass(frozen=True)
class P2:
    """1 / (k + SNR)**gamma, of the eps error. Source: arXiv:2204.00227, Sec. 3 (P2 weighting)."""

    k: float = 1.0
    """Keeps the weight finite at pure noise."""
    gamma: float = 1.0
    """Strength; 0 is the simple loss."""

    def __post_init__(self) -> None:
        if not self.k > 0:
            raise ValueError(f"k = {self.k} must be above 0 (--weight.k)")

    def __call__(self, level: Level) -> Scalar:
        return (self.k + snr(level)) ** -self.gamma


@dataclasses.dataclass(frozen=True)
class EDMWeight:
    """(sigma**2 + s**2) / (sigma s)**2, of the x0 error at sigma = sigma/alpha (1 of EDM's own output error).

    Source: arXiv:2206.00364, Table 1.
    """

    sigma_data: float = 0.5
    """s, the data's standard deviation."""

    def __post_init__(self) -> None:
        if not self.sigma_data > 0:
            raise ValueError(f"sigma_data = {self.sigma_data} must be above 0 (--weight.sigma-data)")

    def __call__(self, level: Level) -> Scalar:
        return snr(level) + self.sigma_data**-2


@dataclasses.dataclass(frozen=True)
class VLB:
    """-(t_max / 2) d logSNR / dt, of the eps error. The mean over uniform t of the weighted error, summed
    over pixels, is the diffusion part of the bound on -log p(x), in nats.

    Source: arXiv:2107.00630, Eq. 17.
    """

    path: FixedPath
    """The path that the times are drawn on."""

    def __call__(self, level: Level) -> Scalar:
        return 0.5 * self.path.t_max * logsnr_rate(self.path, level)


@dataclasses.dataclass(frozen=True)
class Sigmoid:
    """-t_max (d logSNR / dt) * sigmoid(bias - logSNR), of the eps error, for uniform t.

    Source: arXiv:2303.00848 (the weighting sigmoid(-logSNR + k)); arXiv:2410.19324 (SiD2's sigmoid loss).
    """

    path: FixedPath
    """The path that the times are drawn on."""
    bias: float = -1.0
    """b; lower for larger images."""

    def __call__(self, level: Level) -> Scalar:
        return self.path.t_max * logsnr_rate(self.path, level) * jax.nn.sigmoid(self.bias - logsnr(level))


AnyWeight = One | SNR | TruncatedSNR | MinSNR | P2 | EDMWeight | VLB | Sigmoid
"""The weights that a config may hold."""
