"""Grids that visit whole steps of a chain of N: t in [0, t_max] is divided into N equal steps, step 0 is clean.

| n = 3 of N = 10 | visited | then |
|---|---|---|
| Trailing | 10, 7, 3 | 0 |
| Leading | 7, 4, 1 | 0 |
| Linspace | 10, 6, 1 | 0 |

Published schedulers count the steps from 0, end some of their grids at step 1 (`last`), and lay some with one point
more than they visit (`extra`).
"""

import dataclasses

import jax.numpy as jnp
import numpy as np

from jaxdiff.core.levels import check_steps
from jaxdiff.core.types import Level, Path


def _check(num_steps: int, length: int, last: int) -> None:
    check_steps(num_steps)
    if num_steps > length:
        raise ValueError(f"num_steps = {num_steps} is not allowed on a chain of {length}: 1 to {length} (--steps)")
    if last not in (0, 1):
        raise ValueError(f"last = {last} is not allowed: 0 (clean) or 1 (--grid.last)")


def _levels(path: Path, step: np.ndarray, length: int, last: int) -> Level:
    fractions = np.append(step, last) / length
    alpha, sigma = path(jnp.asarray(path.t_max * fractions[: len(step) + last], jnp.float32))
    if last:
        return Level(alpha, sigma)
    return Level(jnp.append(alpha, 1.0), jnp.append(sigma, 0.0))


@dataclasses.dataclass(frozen=True)
class Trailing:
    """Every (N/n)-th step of a chain of N, counted from the noisy end, which is always visited.

    Source: arXiv:2305.08891, Table 2.
    """

    length: int = 1000
    """N: the number of equal steps that t in [0, t_max] is divided into."""
    last: int = 0
    """The step at which the grid ends: 0, which is clean, or 1."""

    def __call__(self, path: Path, num_steps: int) -> Level:
        _check(num_steps, self.length, self.last)
        step = np.round(self.length - np.arange(num_steps) * (self.length / num_steps))
        return _levels(path, step, self.length, self.last)


@dataclasses.dataclass(frozen=True)
class Leading:
    """Steps 1, 1 + c, 1 + 2c ... of a chain of N with c = floor(N/n), visited from the noisiest.

    Source: arXiv:2010.02502, App. D.2; arXiv:2305.08891, Table 2.
    """

    length: int = 1000
    """N: the number of equal steps that t in [0, t_max] is divided into."""
    offset: int = 0
    """Added to every step, not beyond N."""
    extra: int = 0
    """1: one step more is laid, the cleanest, and not visited."""
    last: int = 0
    """The step at which the grid ends: 0, which is clean, or 1."""

    def __call__(self, path: Path, num_steps: int) -> Level:
        _check(num_steps, self.length, self.last)
        stride = self.length // (num_steps + self.extra)
        step = (np.arange(num_steps)[::-1] + self.extra) * stride + 1 + self.offset
        if step[0] > self.length or self.offset < 0 or self.extra not in (0, 1):
            raise ValueError(
                f"num_steps = {num_steps} with offset = {self.offset} leaves the chain of {self.length}: fewer steps, "
                "and an extra of 0 or 1 (--steps, --grid.offset, --grid.extra)"
            )
        return _levels(path, step, self.length, self.last)


@dataclasses.dataclass(frozen=True)
class Linspace:
    """Steps of a chain of N evenly spaced from N to 1, both visited, rounded.

    Source: arXiv:2305.08891, Table 2.
    """

    length: int = 1000
    """N: the number of equal steps that t in [0, t_max] is divided into."""
    rounded: bool = True
    """Whole steps; False: between them too."""
    extra: int = 0
    """1: one step more is laid, the cleanest, and not visited."""
    last: int = 0
    """The step at which the grid ends: 0, which is clean, or 1."""

    def __call__(self, path: Path, num_steps: int) -> Level:
        _check(num_steps, self.length, self.last)
        if self.extra not in (0, 1):
            raise ValueError(f"extra = {self.extra} is not allowed: 0 or 1 (--grid.extra)")
        step = np.linspace(0, self.length - 1, num_steps + self.extra)[::-1][:num_steps]
        return _levels(path, (np.round(step) if self.rounded else step) + 1, self.length, self.last)
