"""Noise schedules: values t -> (alpha, sigma), exact at both ends, with the inverse sigma/alpha -> t.

Coefficients are formed so that neither end cancels: 1 - alpha**2 through expm1, cosines near pi/2 as sines.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdiff.core.betas import AnyBetas, LinearBetas
from jaxdiff.core.types import Level, Path

Time = Float[Array, "*b"]


def _vp(neg_log_alpha_sq: Time) -> Level:
    """alpha, sigma with alpha**2 = exp(-L), sigma**2 = 1 - exp(-L)."""
    return Level(jnp.exp(-0.5 * neg_log_alpha_sq), jnp.sqrt(-jnp.expm1(-neg_log_alpha_sq)))


def _neg_log_alpha_sq(ratio: Time) -> Time:
    """L of `_vp`, from sigma/alpha: log(1 + ratio**2); `inf` above 1e19, which no path of `_vp` reaches."""
    return jnp.log1p(jnp.square(ratio))


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} = {value} must be a positive finite number (--path.{name.replace('_', '-')})")


@dataclasses.dataclass(frozen=True)
class LinearVP:
    """The variance-preserving SDE with beta(t) linear in t, t in [0, 1].

    alpha = exp(-(beta_max - beta_min) t**2 / 4 - beta_min t / 2). Source: arXiv:2011.13456, Eq. 32-33.
    """

    beta_min: float = 0.1
    """beta(0)."""
    beta_max: float = 20.0
    """beta(1)."""

    t_max = 1.0

    def __post_init__(self) -> None:
        _positive(beta_min=self.beta_min, beta_max=self.beta_max)

    def __call__(self, t: Time) -> Level:
        return _vp(t * (self.beta_min + 0.5 * (self.beta_max - self.beta_min) * t))

    def invert(self, ratio: Time) -> Time:
        # The root of the quadratic in its form without cancellation, capped for ratio = inf.
        neg_log = jnp.minimum(_neg_log_alpha_sq(ratio), 0.5 * (self.beta_min + self.beta_max))
        root = jnp.sqrt(self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * neg_log)
        return 2 * neg_log / (self.beta_min + root)


@dataclasses.dataclass(frozen=True)
class DiscreteVP:
    """A DDPM chain of N steps: t = k is the paper's step k in {1 ... N} and t = 0 is clean.

    alpha_bar_k = prod_{i <= k} (1 - beta_i), alpha = sqrt(alpha_bar). Between the integers log(alpha_bar) is
    interpolated linearly. Source: arXiv:2006.11239, Eq. 4.
    """

    num_steps: int = 1000
    """N."""
    betas: AnyBetas = LinearBetas()
    """The variances of the forward steps."""

    def __post_init__(self) -> None:
        betas = self.betas(self.num_steps) if self.num_steps > 0 else np.zeros(0)
        if not betas.size or not np.all((betas > 0) & (betas < 1)):
            raise ValueError(
                f"num_steps = {self.num_steps} with {self.betas} gives betas outside (0, 1): "
                "more steps or smaller betas (--path.num-steps)"
            )

    @property
    def t_max(self) -> float:
        return float(self.num_steps)

    def _table(self) -> np.ndarray:
        neg_log = -np.cumsum(np.log1p(-self.betas(self.num_steps)))
        return np.concatenate([[0.0], neg_log]).astype(np.float32)

    def __call__(self, t: Time) -> Level:
        return _vp(jnp.interp(t, np.arange(self.num_steps + 1, dtype=np.float32), self._table()))

    def invert(self, ratio: Time) -> Time:
        steps = np.arange(self.num_steps + 1, dtype=np.float32)
        return jnp.interp(_neg_log_alpha_sq(ratio), self._table(), steps)


@dataclasses.dataclass(frozen=True)
class Cosine:
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2), t in [0, 1], its logSNR shifted by -2 log(shift).

    Source: arXiv:2301.11093, Sec. 2; the shift for resolution: Sec. 3.1, Eq. 5 (shift = d / 64).
    """

    shift: float = 1.0
    """Factor on sigma/alpha; 1 for 64 pixels, d/64 for d (more noise for larger images)."""

    t_max = 1.0

    def __post_init__(self) -> None:
        _positive(shift=self.shift)

    def __call__(self, t: Time) -> Level:
        alpha, sigma = jnp.sin(0.5 * jnp.pi * (1 - t)), self.shift * jnp.sin(0.5 * jnp.pi * t)
        norm = jnp.sqrt(jnp.square(alpha) + jnp.square(sigma))
        return Level(alpha / norm, sigma / norm)

    def invert(self, ratio: Time) -> Time:
        return jnp.arctan(ratio / self.shift) * (2 / jnp.pi)


@dataclasses.dataclass(frozen=True)
class Sigmoid:
    """alpha**2 falls from 1 to 0 as a sigmoid of time, t in [0, 1].

    With u = (start + t (end - start)) / tau and S the logistic function:
    alpha**2 = (S(u_1) - S(u)) / (S(u_1) - S(u_0)). Source: arXiv:2301.10972, Alg. 1.
    """

    start: float = -3.0
    """u(0) * tau."""
    end: float = 3.0
    """u(1) * tau, above start."""
    tau: float = 1.0
    """Temperature: smaller is steeper."""

    t_max = 1.0

    def __post_init__(self) -> None:
        _positive(tau=self.tau)
        if not self.start < self.end:
            raise ValueError(f"end = {self.end} must be above start = {self.start} (--path.end)")
        least = max(abs(self.start), abs(self.end)) / 60
        if self.tau < least:
            raise ValueError(f"tau = {self.tau} is too steep for float32: at least {least:g} (--path.tau)")

    # S(a) - S(b) = S(a) S(-b) (1 - exp(b - a)) neither cancels nor overflows; the sum makes both ends exact.
    def __call__(self, t: Time) -> Level:
        u0, u1 = self.start / self.tau, self.end / self.tau
        u = u0 + t * (u1 - u0)
        alpha_sq = jnp.abs(jnp.expm1((t - 1) * (u1 - u0))) * jax.nn.sigmoid(-u) * jax.nn.sigmoid(u1)
        sigma_sq = jnp.abs(jnp.expm1(-t * (u1 - u0))) * jax.nn.sigmoid(u) * jax.nn.sigmoid(-u0)
        total = alpha_sq + sigma_sq
        return Level(jnp.sqrt(alpha_sq / total), jnp.sqrt(sigma_sq / total))

    def invert(self, ratio: Time) -> Time:
        u0, u1 = self.start / self.tau, self.end / self.tau
        clean = jnp.square(ratio) * (jax.nn.sigmoid(u1) / jax.nn.sigmoid(u0))
        noisy = jax.nn.sigmoid(-u0) / jax.nn.sigmoid(-u1) / jnp.square(ratio)
        # t is counted from the nearer end, at which the formula's argument is small.
        near = jnp.minimum(clean, noisy)
        t = (jnp.log1p(near) - jnp.log1p(near * math.exp(u0 - u1))) / (u1 - u0)
        return jnp.where(clean < noisy, t, 1 - t)


@dataclasses.dataclass(frozen=True)
class GeometricVE:
    """The variance-exploding SDE: alpha = 1, sigma = sigma_min (sigma_max / sigma_min)**t, t in [0, 1].

    t = 0 is as clean as it gets: sigma_min. Source: arXiv:2011.13456, Eq. 30-31.
    """

    sigma_min: float = 0.01
    """sigma(0)."""
    sigma_max: float = 50.0
    """sigma(1)."""

    t_max = 1.0

    def __post_init__(self) -> None:
        _positive(sigma_min=self.sigma_min, sigma_max=self.sigma_max)
        if not self.sigma_min < self.sigma_max:
            raise ValueError(
                f"sigma_max = {self.sigma_max} must be above sigma_min = {self.sigma_min} (--path.sigma-max)"
            )

    def __call__(self, t: Time) -> Level:
        rate = math.log(self.sigma_max / self.sigma_min)
        # Each end from its own side, so that sigma(0) and sigma(1) are exact.
        sigma = jnp.where(t < 0.5, self.sigma_min * jnp.exp(rate * t), self.sigma_max * jnp.exp(rate * (t - 1)))
        return Level(jnp.ones_like(sigma), sigma)

    def invert(self, ratio: Time) -> Time:
        t = jnp.log(ratio / self.sigma_min) / math.log(self.sigma_max / self.sigma_min)
        return jnp.clip(t, 0.0, 1.0)


@dataclasses.dataclass(frozen=True)
class Sigma:
    """EDM's schedule: alpha = 1, sigma = t. Source: arXiv:2206.00364, Table 1."""

    sigma_max: float = 80.0
    """The largest sigma, where sampling starts."""

    def __post_init__(self) -> None:
        _positive(sigma_max=self.sigma_max)

    @property
    def t_max(self) -> float:
        return self.sigma_max

    def __call__(self, t: Time) -> Level:
        return Level(jnp.ones_like(t), t)

    def invert(self, ratio: Time) -> Time:
        # A training law may draw a sigma above sigma_max (EDM's log-normal has a tail): it is kept.
        return jnp.where(jnp.isinf(ratio), self.sigma_max, ratio)


@dataclasses.dataclass(frozen=True)
class Linear:
    """Rectified flow: alpha = 1 - s, sigma = s, with s = shift t / (1 + (shift - 1) t), t in [0, 1].

    Source: arXiv:2209.03003, Eq. 1 (time reversed); the shift: arXiv:2403.03206, Sec. 5.3.2.
    """

    shift: float = 1.0
    """Factor on sigma/alpha: SD3's sqrt(m/n); above 1 is noisier."""

    t_max = 1.0

    def __post_init__(self) -> None:
        _positive(shift=self.shift)

    def __call__(self, t: Time) -> Level:
        denominator = (1 - t) + self.shift * t
        return Level((1 - t) / denominator, self.shift * t / denominator)

    def invert(self, ratio: Time) -> Time:
        return 1 / (1 + self.shift / ratio)


def logsnr_rate(path: Path, level: Level) -> Time:
    """-d logSNR / dt at this level of the path: positive, per unit of t; `inf` where alpha or sigma is 0."""

    def log_ratio(t: Time) -> Time:
        alpha, sigma = path(t)
        return 2 * (jnp.log(sigma) - jnp.log(alpha))

    t = path.invert(level.sigma / level.alpha)
    return jax.jvp(log_ratio, (t,), (jnp.ones_like(t),))[1]


FixedPath = LinearVP | DiscreteVP | Cosine | Sigmoid | GeometricVE | Sigma | Linear
"""The schedules that a config may hold."""
