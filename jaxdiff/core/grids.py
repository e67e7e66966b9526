"""The levels that a sampler visits: values (path, num_steps) -> Level[num_steps + 1], falling, the last one clean.

A network is called at the first num_steps of them. `start` moves the first level off pure noise, for
predictions that cannot be solved at alpha = 0.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiff.core.types import Level, Path


def from_times(path: Path, t: Float[Array, "n"]) -> Level:
    """The levels of falling times, followed by the clean level (alpha = 1, sigma = 0)."""
    alpha, sigma = path(t)
    return Level(jnp.append(alpha, 1.0), jnp.append(sigma, 0.0))


def from_ratios(path: Path, ratio: Float[Array, "n"]) -> Level:
    """The levels of falling sigma/alpha, followed by the clean level."""
    return from_times(path, path.invert(ratio))


def _check_steps(num_steps: int) -> None:
    if num_steps < 1:
        raise ValueError(f"num_steps = {num_steps} is not allowed: at least 1 (--steps)")


def _ramp(num_steps: int, first: float, last: float) -> Float[Array, "n"]:
    return jnp.linspace(first, last, num_steps) if num_steps > 1 else jnp.full((1,), first)


@dataclasses.dataclass(frozen=True)
class UniformT:
    """Times evenly spaced from start * t_max to 0."""

    start: float = 1.0
    """The first time, as a fraction of t_max, in (0, 1]."""

    def __call__(self, path: Path, num_steps: int) -> Level:
        _check_steps(num_steps)
        return from_times(
            path, path.t_max * self.start * jnp.linspace(1.0, 0.0, num_steps + 1)[:-1]
        )


@dataclasses.dataclass(frozen=True)
class Polynomial:
    """t_i = start * t_max * (1 - i/n)**power: dense near the clean end. Source: arXiv:2206.00927, App. E.4."""

    power: float = 2.0
    """1 is `UniformT`; DPM-Solver and DEIS use 2."""
    start: float = 1.0
    """The first time, as a fraction of t_max, in (0, 1]."""

    def __call__(self, path: Path, num_steps: int) -> Level:
        _check_steps(num_steps)
        u = jnp.linspace(1.0, 0.0, num_steps + 1)[:-1]
        return from_times(path, path.t_max * self.start * u**self.power)


@dataclasses.dataclass(frozen=True)
class UniformLogSNR:
    """logSNR evenly spaced between the levels of two times, then clean. Source: arXiv:2206.00927, Sec. 3.4."""

    start: float = 1.0
    """The first time, as a fraction of t_max; below 1 where the path ends at alpha = 0."""
    end: float = 1e-3
    """The time before the clean level, as a fraction of t_max, above 0."""

    def __call__(self, path: Path, num_steps: int) -> Level:
        _check_steps(num_steps)
        ends = path(path.t_max * jnp.array([self.start, self.end]))
        log_ratio = jnp.log(ends.sigma) - jnp.log(ends.alpha)
        if not bool(jnp.all(jnp.isfinite(log_ratio))):
            raise ValueError(
                f"start = {self.start:g}, end = {self.end:g} reach an infinite logSNR on this path: "
                "allowed are 0 < end < start < 1 (--grid.start, --grid.end)"
            )
        u = _ramp(num_steps, 0.0, 1.0)
        return from_ratios(path, jnp.exp(log_ratio[0] + u * (log_ratio[1] - log_ratio[0])))


@dataclasses.dataclass(frozen=True)
class Karras:
    """sigma/alpha = (max**(1/rho) + u (min**(1/rho) - max**(1/rho)))**rho, then clean.

    Source: arXiv:2206.00364, Eq. 5.
    """

    sigma_min: float = 0.002
    """The last sigma/alpha above zero."""
    sigma_max: float = 80.0
    """The first sigma/alpha."""
    rho: float = 7.0
    """Larger puts more steps at low noise; 1 is even spacing."""

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max:
            raise ValueError(
                f"sigma_min = {self.sigma_min} must lie in (0, sigma_max = {self.sigma_max}) (--grid.sigma-min)"
            )

    def __call__(self, path: Path, num_steps: int) -> Level:
        _check_steps(num_steps)
        root_max, root_min = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        return from_ratios(
            path, (root_max + _ramp(num_steps, 0.0, 1.0) * (root_min - root_max)) ** self.rho
        )


def _check_chain(path: Path, num_steps: int, length: int) -> None:
    _check_steps(num_steps)
    if num_steps > length:
        raise ValueError(
            f"num_steps = {num_steps} is not allowed on a chain of {length}: 1 to {length} (--steps)"
        )


@dataclasses.dataclass(frozen=True)
class Trailing:
    """Every (N/n)-th step of a chain of N, counted from the noisy end, which is always visited.

    Source: arXiv:2305.08891, Table 2.
    """

    length: int = 1000
    """N: the number of equal steps that t in [0, t_max] is divided into."""

    def __call__(self, path: Path, num_steps: int) -> Level:
        _check_chain(path, num_steps, self.length)
        step = jnp.round(self.length - jnp.arange(num_steps) * (self.length / num_steps))
        return from_times(path, step * (path.t_max / self.length))


@dataclasses.dataclass(frozen=True)
class Leading:
    """Steps 1, 1 + c, 1 + 2c ... of a chain of N with c = floor(N/n), visited from the noisiest.

    Source: arXiv:2010.02502, Sec. 4.2; arXiv:2305.08891, Table 2.
    """

    length: int = 1000
    """N: the number of equal steps that t in [0, t_max] is divided into."""

    def __call__(self, path: Path, num_steps: int) -> Level:
        _check_chain(path, num_steps, self.length)
        step = jnp.arange(num_steps)[::-1] * (self.length // num_steps) + 1
        return from_times(path, step * (path.t_max / self.length))
