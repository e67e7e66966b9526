"""The levels that a sampler visits: (path, num_steps) -> Level[num_steps + 1], falling, the last one clean.

A network is called at the first num_steps of them. `start` moves the first level off pure noise, for
predictions that cannot be solved at alpha = 0. Tables are in `grid_tables`, what grids are made of in `levels`.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.core.chain_grids import Leading, Linspace, Trailing
from jaxdiff.core.grid_tables import AlignYourSteps, Table
from jaxdiff.core.levels import (
    check_high,
    check_low,
    check_steps,
    from_ratios,
    from_times,
    karras,
    ramp,
    ratios_at,
)
from jaxdiff.core.types import Level, Path


def _at(path: Path, fraction: np.ndarray) -> Level:
    return from_times(path, jnp.asarray(path.t_max * fraction, jnp.float32))


def _check_start(start: float) -> None:
    if not 0 < start <= 1:
        raise ValueError(f"start = {start} is not allowed: above 0, at most 1 (--grid.start)")


@dataclasses.dataclass(frozen=True)
class UniformT:
    """Times evenly spaced from start * t_max to 0."""

    start: float = 1.0
    """The first time, as a fraction of t_max, in (0, 1]."""

    def __post_init__(self) -> None:
        _check_start(self.start)

    def __call__(self, path: Path, num_steps: int) -> Level:
        check_steps(num_steps)
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
        check_steps(num_steps)
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
        check_steps(num_steps)
        first, last = ratios_at(path, [path.t_max * self.start, path.t_max * self.end])
        if not (last > 0 and np.isfinite(first)):
            raise ValueError(
                f"start = {self.start:g}, end = {self.end:g} reach an infinite logSNR on this path: "
                "allowed are 0 < end < start < 1 (--grid.start, --grid.end)"
            )
        return from_ratios(path, jnp.asarray(first * (last / first) ** ramp(num_steps), jnp.float32))


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
        check_steps(num_steps)
        check_high(path, "sigma_max", self.sigma_max, "--grid.sigma-max")
        check_low(path, "sigma_min", self.sigma_min, "--grid.sigma-min")
        ratio = karras(self.sigma_max, self.sigma_min, self.rho, num_steps)
        return from_ratios(path, jnp.asarray(ratio, jnp.float32))


@dataclasses.dataclass(frozen=True)
class Spread:
    """Times evenly spaced from start * t_max to end * t_max, both visited, then clean."""

    start: float = 1.0
    """The first time, as a fraction of t_max, in (0, 1]."""
    end: float = 1e-3
    """The last time before the clean level, as a fraction of t_max, above 0."""

    def __post_init__(self) -> None:
        _check_start(self.start)
        if not 0 < self.end < self.start:
            raise ValueError(f"end = {self.end} must lie between 0 and start = {self.start} (--grid.end)")

    def __call__(self, path: Path, num_steps: int) -> Level:
        check_steps(num_steps)
        return _at(path, self.start + (self.end - self.start) * ramp(num_steps))


def pad(levels: Level, num_steps: int) -> Level:
    """The levels followed by clean ones, num_steps + 1 in all: grids of several lengths in one shape.

    Raises: ValueError if there are more steps than that already.
    """
    extra = num_steps + 1 - levels.alpha.shape[0]
    if extra < 0:
        raise ValueError(f"num_steps = {num_steps} is not allowed: at least {num_steps - extra}, the grid's own")
    return Level(jnp.append(levels.alpha, jnp.ones(extra)), jnp.append(levels.sigma, jnp.zeros(extra)))


PlainGrid = (
    UniformT | Polynomial | UniformLogSNR | Karras | Spread | Trailing | Leading | Linspace | Table | AlignYourSteps
)
"""The grids that fall all the way."""


@dataclasses.dataclass(frozen=True)
class RestartInterval:
    """sigma/alpha between which sampling goes back and forth. Source: arXiv:2306.14878, Tables 3 and 5."""

    low: float = 0.06
    """Where it goes back: the level of the grid nearest to this sigma/alpha (t_min)."""
    high: float = 0.3
    """The sigma/alpha to which it goes back (t_max)."""
    times: int = 2
    """How often it goes back (K)."""
    steps: int = 2
    """Steps from high to low, spaced as by `Karras`: one less than the paper's N_restart, which counts levels."""

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high < np.inf:
            raise ValueError(f"low = {self.low} must lie between 0 and high = {self.high} (--grid.intervals)")
        if self.times < 0 or self.steps < 1:
            raise ValueError(
                f"times = {self.times}, steps = {self.steps} are not allowed: at least 0 and 1 (--grid.intervals)"
            )

    def loop(self, path: Path, low: Level) -> Level:
        """`times` times from high to the level `low`, Level[times * steps]."""
        ratio = float(low.sigma / low.alpha)
        if ratio >= self.high:
            raise ValueError(
                f"high = {self.high:g} must be above {ratio:g}, the grid's level nearest to low = {self.low:g} "
                "(--grid.intervals)"
            )
        check_high(path, "high", self.high, "--grid.intervals")
        down = from_ratios(path, jnp.asarray(karras(self.high, ratio, 7.0, self.steps + 1), jnp.float32))
        once = jax.tree.map(lambda inner, end: jnp.append(inner[: self.steps], end), down, low)
        return jax.tree.map(lambda a: jnp.tile(a, self.times), once)


@dataclasses.dataclass(frozen=True)
class Restarts:
    """The levels of `grid` with intervals visited again and again: num_steps + the sum of times * (steps + 1) steps.

    One of every steps + 1 rises, which needs a solver that goes up: `Restart` with noise, `DDIM` without.
    Raises: ValueError if an interval does not lie above the grid's level at which it begins.
    """

    grid: PlainGrid = Karras()
    """The main grid, of num_steps."""
    intervals: tuple[RestartInterval, ...] = (RestartInterval(),)
    """The intervals, each entered once the grid has reached its low end."""

    def __call__(self, path: Path, num_steps: int) -> Level:
        # Where the loops go in depends on the levels' values, which a caller's trace must not hide.
        with jax.ensure_compile_time_eval():
            levels = self.grid(path, num_steps)
            alpha, sigma = (np.asarray(v, np.float64)[:-1] for v in levels)
            ratio = np.divide(sigma, alpha, out=np.full(num_steps, np.inf), where=alpha > 0)
            places = [int(np.argmin(np.abs(ratio - interval.low))) for interval in self.intervals]
            parts = []
            for i in range(num_steps + 1):
                here = jax.tree.map(lambda a, i=i: a[i], levels)
                parts.append(jax.tree.map(lambda a: a[None], here))
                parts += [
                    interval.loop(path, here) for interval, at in zip(self.intervals, places, strict=True) if at == i
                ]
            return jax.tree.map(lambda *a: jnp.concatenate(a), *parts)


AnyGrid = PlainGrid | Restarts
"""The grids that a config may hold."""
