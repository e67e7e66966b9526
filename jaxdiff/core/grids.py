"""The levels that a sampler visits: (path, num_steps) -> Level[num_steps + 1], falling, the last one clean.

A network is called at the first num_steps of them. `start` moves the first level off pure noise, for
predictions that cannot be solved at alpha = 0. Times and ratios are laid in float64 and rounded once.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdiff.core.types import Level, Path


def from_times(path: Path, t: Float[Array, "n"]) -> Level:
    """The levels of falling times, followed by the clean level (alpha = 1, sigma = 0)."""
    alpha, sigma = path(t)
    return Level(jnp.append(alpha, 1.0), jnp.append(sigma, 0.0))


def from_ratios(path: Path, ratio: Float[Array, "n"]) -> Level:
    """The levels of falling sigma/alpha, followed by the clean level."""
    return from_times(path, path.invert(ratio))


def _at(path: Path, fraction: np.ndarray) -> Level:
    return from_times(path, jnp.asarray(path.t_max * fraction, jnp.float32))


def _check_steps(num_steps: int) -> None:
    if num_steps < 1:
        raise ValueError(f"num_steps = {num_steps} is not allowed: at least 1 (--steps)")


def _check_start(start: float) -> None:
    if not 0 < start <= 1:
        raise ValueError(f"start = {start} is not allowed: above 0, at most 1 (--grid.start)")


def _ratios(path: Path, times: list[float]) -> tuple[float, ...]:
    """sigma/alpha at these times, as numbers even while a caller is being traced."""
    with jax.ensure_compile_time_eval():
        alpha, sigma = path(jnp.array(times))
        return tuple(float(r) for r in sigma / alpha)


def _ramp(num_steps: int) -> np.ndarray:
    """From 0 to 1 in num_steps numbers; 0 alone if there is but one."""
    return np.arange(num_steps) / max(num_steps - 1, 1)


@dataclasses.dataclass(frozen=True)
class UniformT:
    """Times evenly spaced from start * t_max to 0."""

    start: float = 1.0
    """The first time, as a fraction of t_max, in (0, 1]."""

    def __post_init__(self) -> None:
        _check_start(self.start)

    def __call__(self, path: Path, num_steps: int) -> Level:
        _check_steps(num_steps)
        return _at(path, self.start * (1 - np.arange(num_steps) / num_steps))


@dataclasses.dataclass(frozen=True)
class Polynomial:
    """t_i = start * t_max * (1 - i/n)**power: dense at the clean end. Source: arXiv:2010.02502, App. D.2."""

    power: float = 2.0
    """1 is `UniformT`; DDIM's quadratic spacing is 2."""
    start: float = 1.0
    """The first time, as a fraction of t_max, in (0, 1]."""

    def __post_init__(self) -> None:
        _check_start(self.start)
        if not self.power > 0:
            raise ValueError(f"power = {self.power} must be above 0 (--grid.power)")

    def __call__(self, path: Path, num_steps: int) -> Level:
        _check_steps(num_steps)
        return _at(path, self.start * (1 - np.arange(num_steps) / num_steps) ** self.power)


@dataclasses.dataclass(frozen=True)
class UniformLogSNR:
    """logSNR evenly spaced between two times, then clean. Source: arXiv:2206.00927, Sec. 3 (time steps)."""

    start: float = 1.0
    """The first time, as a fraction of t_max; below 1 where the path ends at alpha = 0."""
    end: float = 1e-3
    """The time before the clean level, as a fraction of t_max, above 0."""

    def __post_init__(self) -> None:
        _check_start(self.start)
        if not 0 <= self.end < self.start:
            raise ValueError(f"end = {self.end} must lie in [0, start = {self.start}) (--grid.end)")

    def __call__(self, path: Path, num_steps: int) -> Level:
        _check_steps(num_steps)
        first, last = _ratios(path, [path.t_max * self.start, path.t_max * self.end])
        if not (last > 0 and np.isfinite(first)):
            raise ValueError(
                f"start = {self.start:g}, end = {self.end:g} reach an infinite logSNR on this path: "
                "allowed are 0 < end < start < 1 (--grid.start, --grid.end)"
            )
        return from_ratios(path, jnp.asarray(first * (last / first) ** _ramp(num_steps), jnp.float32))


@dataclasses.dataclass(frozen=True)
class Karras:
    """sigma/alpha = (max**(1/rho) + u (min**(1/rho) - max**(1/rho)))**rho, then clean.

    Raises: ValueError if the path does not reach from sigma_min to sigma_max.
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
                f"sigma_min = {self.sigma_min} must lie between 0 and sigma_max = {self.sigma_max} "
                "(--grid.sigma-min, --grid.sigma-max)"
            )
        if not self.rho > 0:
            raise ValueError(f"rho = {self.rho} must be above 0 (--grid.rho)")

    def __call__(self, path: Path, num_steps: int) -> Level:
        _check_steps(num_steps)
        # Beyond its ends a path repeats them: steps of no length.
        most, least = _ratios(path, [path.t_max, 0.0])
        if self.sigma_max > most * (1 + 1e-5):
            raise ValueError(f"sigma_max = {self.sigma_max:g} is not on this path: at most {most:g} (--grid.sigma-max)")
        if self.sigma_min < least * (1 - 1e-5):
            raise ValueError(
                f"sigma_min = {self.sigma_min:g} is not on this path: at least {least:g} (--grid.sigma-min)"
            )
        root_max, root_min = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        ratio = (root_max + _ramp(num_steps) * (root_min - root_max)) ** self.rho
        return from_ratios(path, jnp.asarray(ratio, jnp.float32))


def _check_chain(num_steps: int, length: int) -> None:
    _check_steps(num_steps)
    if num_steps > length:
        raise ValueError(f"num_steps = {num_steps} is not allowed on a chain of {length}: 1 to {length} (--steps)")


@dataclasses.dataclass(frozen=True)
class Trailing:
    """Every (N/n)-th step of a chain of N, counted from the noisy end, which is always visited.

    Source: arXiv:2305.08891, Table 2.
    """

    length: int = 1000
    """N: the number of equal steps that t in [0, t_max] is divided into."""

    def __call__(self, path: Path, num_steps: int) -> Level:
        _check_chain(num_steps, self.length)
        step = np.round(self.length - np.arange(num_steps) * (self.length / num_steps))
        return _at(path, step / self.length)


@dataclasses.dataclass(frozen=True)
class Leading:
    """Steps 1, 1 + c, 1 + 2c ... of a chain of N with c = floor(N/n), visited from the noisiest.

    Source: arXiv:2010.02502, App. D.2; arXiv:2305.08891, Table 2.
    """

    length: int = 1000
    """N: the number of equal steps that t in [0, t_max] is divided into."""

    def __call__(self, path: Path, num_steps: int) -> Level:
        _check_chain(num_steps, self.length)
        step = np.arange(num_steps)[::-1] * (self.length // num_steps) + 1
        return _at(path, step / self.length)


def pad(levels: Level, num_steps: int) -> Level:
    """The levels followed by clean ones, num_steps + 1 in all: grids of several lengths in one shape.

    Raises: ValueError if there are more steps than that already.
    """
    extra = num_steps + 1 - levels.alpha.shape[0]
    if extra < 0:
        raise ValueError(f"num_steps = {num_steps} is not allowed: at least {num_steps - extra}, the grid's own")
    return Level(jnp.append(levels.alpha, jnp.ones(extra)), jnp.append(levels.sigma, jnp.zeros(extra)))


AnyGrid = UniformT | Polynomial | UniformLogSNR | Karras | Trailing | Leading
"""The grids that a config may hold."""
