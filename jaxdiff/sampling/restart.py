"""Restart: where levels rise, fresh noise of the forward process; where they fall, another solver.

    up      x' = (alpha'/alpha) x + sqrt(sigma'**2 - (alpha'/alpha)**2 sigma**2) z
    down    the solver's step; after every rise it begins anew

The levels come from a grid that rises: `grids.Restarts`, or any other that goes back and forth.
Source: arXiv:2306.14878, Eq. 3 and Alg. 1-2.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from jaxdiff.core.types import Denoise, Level
from jaxdiff.sampling.ancestral import Ancestral
from jaxdiff.sampling.ddim import DDIM
from jaxdiff.sampling.dpm_solver import DPMSolverPP
from jaxdiff.sampling.dpm_solver_single import DPMSolver, DPMSolverPPS
from jaxdiff.sampling.heun import Heun
from jaxdiff.sampling.sample import normal_like
from jaxdiff.sampling.solver import State

Image = Float[Array, "b h w c"]


Falls = Heun | DDIM | Ancestral | DPMSolverPP | DPMSolver | DPMSolverPPS
"""The solvers that may go down between rises."""


class Inner(NamedTuple):
    """The inner solver's state, and the levels from which it begins anew."""

    state: State
    levels: Level


def _rises(cur: Level, nxt: Level) -> Bool[Array, "*n"]:
    return nxt.sigma * cur.alpha > nxt.alpha * cur.sigma


@dataclasses.dataclass(frozen=True)
class Restart:
    """The inner solver's denoisings; a rising step costs none. Without rising levels it is the inner solver."""

    solver: Falls = Heun()
    """What goes down; Heun in the paper."""
    noise: float = 1.0
    """Standard deviation of the fresh noise; the paper's S_noise is 1.003."""

    def __post_init__(self) -> None:
        if not self.noise > 0:
            raise ValueError(f"noise = {self.noise} must be above 0 (--solver.noise)")

    def init(self, x: Image, levels: Level) -> State:
        return Inner(self.solver.init(x, levels), levels)

    def step(
        self, keys: Key[Array, "b"], x: Image, state: State, cur: Level, nxt: Level, denoise: Denoise
    ) -> tuple[Image, State]:
        def up() -> tuple[Image, State]:
            ratio = nxt.alpha / cur.alpha
            std = jnp.sqrt(jnp.square(nxt.sigma) - jnp.square(ratio * cur.sigma))
            return ratio * x + self.noise * std * normal_like(keys, x), self.solver.init(x, state.levels)

        def down() -> tuple[Image, State]:
            return self.solver.step(keys, x, state.state, cur, nxt, denoise)

        x, inner = jax.lax.cond(_rises(cur, nxt), up, down)
        return x, Inner(inner, state.levels)

    def nfe(self, levels: Level) -> int:
        rises = _rises(jax.tree.map(lambda a: a[:-1], levels), jax.tree.map(lambda a: a[1:], levels))
        starts = [0, *(int(i) + 1 for i in jnp.flatnonzero(rises))]
        ends = [*starts[1:], levels.alpha.shape[0]]
        falls = [jax.tree.map(lambda a, i=i, j=j: a[i:j], levels) for i, j in zip(starts, ends, strict=True)]
        return sum(self.solver.nfe(fall) for fall in falls)
