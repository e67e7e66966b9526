"""What grids are made of: levels from times or from ratios, and refusals in words.

Times and ratios are laid in float64 and rounded once.
"""

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


def ramp(num_steps: int) -> np.ndarray:
    """From 0 to 1 in num_steps numbers; 0 alone if there is but one."""
    return np.arange(num_steps) / max(num_steps - 1, 1)


def karras(high: float, low: float, rho: float, count: int) -> np.ndarray:
    """`count` ratios from high to low, evenly spaced in their rho-th root. Source: arXiv:2206.00364, Eq. 5."""
    root_high, root_low = high ** (1 / rho), low ** (1 / rho)
    return (root_high + ramp(count) * (root_low - root_high)) ** rho


def ratios_at(path: Path, times: list[float]) -> tuple[float, ...]:
    """sigma/alpha at these times, as numbers even while a caller is being traced."""
    with jax.ensure_compile_time_eval():
        alpha, sigma = path(jnp.array(times))
        return tuple(float(r) for r in sigma / alpha)


def check_steps(num_steps: int) -> None:
    if num_steps < 1:
        raise ValueError(f"num_steps = {num_steps} is not allowed: at least 1 (--steps)")


def check_high(path: Path, name: str, high: float, flag: str, tolerance: float = 1e-5) -> None:
    """Refuses a sigma/alpha above the path's: beyond its ends a path repeats them, steps of no length."""
    (most,) = ratios_at(path, [path.t_max])
    if high > most * (1 + tolerance):
        raise ValueError(f"{name} = {high:g} is not on this path: at most {most:g} ({flag})")


def check_low(path: Path, name: str, low: float, flag: str, tolerance: float = 1e-5) -> None:
    """Refuses a sigma/alpha below the path's."""
    (least,) = ratios_at(path, [0.0])
    if low < least * (1 - tolerance):
        raise ValueError(f"{name} = {low:g} is not on this path: at least {least:g} ({flag})")
