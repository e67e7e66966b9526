"""What a solver is: a pair of pure functions, like an optax optimiser; `sample` scans it over levels."""

from typing import Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from jaxdiff.core.types import Denoise, Level

Image = Float[Array, "b h w c"]

State = PyTree[Array]
"""What a solver remembers between steps (fixed shapes): `None` if nothing."""


@runtime_checkable
class Solver(Protocol):
    """Moves x from one level to the next by calls of `denoise`."""

    def init(self, x: Image, levels: Level) -> State:
        """The state before the first step. `levels` are all that will be visited, Level[num_steps + 1]."""
        ...

    def step(
        self, keys: Key[Array, "b"], x: Image, state: State, cur: Level, nxt: Level, denoise: Denoise
    ) -> tuple[Image, State]:
        """x at `nxt`, given x at `cur` (scalar levels). `keys` are this step's own, one per image."""
        ...

    def nfe(self, levels: Level) -> int | None:
        """Calls of `denoise` for an image on its way down these concrete levels; None if that differs by image."""
        ...


def num_steps(levels: Level) -> Int[Array, ""]:
    """Steps of a grid, not counting those from clean to clean that pad it; may be traced."""
    return jnp.sum((levels.sigma[:-1] > 0) | (levels.sigma[1:] > 0))


def vp(ratio: Float[Array, "*b"]) -> Level:
    """The level of sigma / alpha = ratio with alpha**2 + sigma**2 = 1: where a solver asks off the grid."""
    alpha = 1 / jnp.hypot(ratio, 1.0)
    return Level(alpha, jnp.where(jnp.isinf(ratio), 1.0, ratio * alpha))


def decay(cur: Level, nxt: Level) -> Float[Array, "*b"]:
    """r' / r with r = sigma / alpha at `cur` and r' at `nxt`: exactly 0 from alpha = 0 and to sigma = 0."""
    return (nxt.sigma * cur.alpha) / (nxt.alpha * cur.sigma)
