"""The probability-flow ODE by an adaptive Runge-Kutta rule: Dormand-Prince 5(4), image by image.

A step of the grid integrates dz/dphi = cos(phi) eps - sin(phi) x0 from its level to the next (`adaptive.py`), with as
many steps of its own as the tolerances ask for. The grid only says where to stop on the way, so one step is the
natural grid. The clean level is reached by integrating to sigma/alpha = `end` and putting the x0 believed there.

Source: arXiv:2011.13456, Sec. 4.3 and App. D.4.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxdiff.core.types import Denoise, Level
from jaxdiff.sampling.adaptive import angle, at_angle, probability_flow, solve_each
from jaxdiff.sampling.solver import State

Image = Float[Array, "b h w c"]


class Evaluations(NamedTuple):
    """Calls of `denoise` that each image needed so far; the batch makes as many as the slowest at every step."""

    nfe: Int[Array, "b"]


@dataclasses.dataclass(frozen=True)
class RK45:
    """As many denoisings as the tolerances ask for: 1 + 6 for each step tried, and one more to the clean level.

    An image that needs more than `max_steps` is nan. Needs diffrax; not for differentiation.
    """

    rtol: float = 1e-4
    """Relative tolerance of one step, on x / hypot(alpha, sigma)."""
    atol: float = 1e-4
    """Absolute tolerance of one step, on x / hypot(alpha, sigma)."""
    end: float = 2e-3
    """sigma/alpha at which a step to the clean level asks for x0."""
    max_steps: int = 1000
    """Most steps in one step of the grid, taken or refused."""

    def __post_init__(self) -> None:
        if not (self.rtol > 0 and self.atol > 0):
            raise ValueError(f"rtol = {self.rtol}, atol = {self.atol} must be above 0 (--solver.rtol, --solver.atol)")
        if not self.end > 0:
            raise ValueError(f"end = {self.end} is not allowed: above 0 (--solver.end)")

    def init(self, x: Image, levels: Level) -> State:
        return Evaluations(jnp.zeros(x.shape[0], jnp.int32))

    def step(
        self, keys: Key[Array, "b"], x: Image, state: State, cur: Level, nxt: Level, denoise: Denoise
    ) -> tuple[Image, State]:
        start, stop = angle(cur), angle(nxt)
        # A level below `end` is left as it is before the clean one.
        stop = jnp.where(nxt.sigma > 0, stop, jnp.minimum(start, jnp.arctan(self.end)))
        z, nfe, there = solve_each(
            probability_flow(denoise),
            x / jnp.hypot(cur.alpha, cur.sigma),
            start,
            stop,
            self.rtol,
            self.atol,
            self.max_steps,
        )
        z = jnp.where(there[:, None, None, None], z, jnp.nan)

        def cleaned() -> Image:
            level = at_angle(stop)
            return nxt.alpha * denoise(z, level, nxt).x0

        clean = nxt.sigma == 0
        x = jax.lax.cond(clean, cleaned, lambda: jnp.hypot(nxt.alpha, nxt.sigma) * z)
        return x, Evaluations(state.nfe + nfe + clean)

    def nfe(self, levels: Level) -> None:
        return None
