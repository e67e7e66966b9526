"""DPM-Solver++(2M): DDIM, plus a straight line through the last two x0 in the log of the noise ratio.

With r = sigma / alpha, lambda = -log(r) and h = log(r/r') the paper's data-prediction multistep update is

    x' = (sigma'/sigma) x + alpha' (1 - r'/r) D,     D = x0 + h / (2 h_prev) (x0 - x0_prev)
       = alpha' x0 + sigma' eps + alpha' (1 - r'/r) h / (2 h_prev) (x0 - x0_prev)

and the second form is finite at both ends. Source: arXiv:2211.01095, Alg. 2.
"""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxdiff.core import gaussian
from jaxdiff.core.types import Denoise, Level
from jaxdiff.sampling.solver import State, decay, num_steps

Image = Float[Array, "b h w c"]


class Previous(NamedTuple):
    """What the last step saw: x0 and h; infinite h where there is no line to draw."""

    x0: Image
    h: Float[Array, ""]


@dataclasses.dataclass(frozen=True)
class DPMSolverPP2M:
    """One denoising per step; order 2. The first step is DDIM's, and so are those from alpha = 0 and to sigma = 0,
    where lambda is infinite, and the one after alpha = 0."""

    def init(self, x: Image, levels: Level) -> State:
        return Previous(jnp.zeros_like(x), jnp.float32(jnp.inf))

    def step(
        self, keys: Key[Array, "b"], x: Image, state: State, cur: Level, nxt: Level, denoise: Denoise
    ) -> tuple[Image, State]:
        x0, eps, _ = denoise(x, cur, nxt)
        q = decay(cur, nxt)
        h = -jnp.log(q)
        # A line needs two finite steps of lambda, and a grid may repeat a level (h_prev = 0).
        line = jnp.isfinite(h) & (state.h != 0)
        slope = jnp.where(line, nxt.alpha * (1 - q) * h / (2 * state.h), 0.0)
        return gaussian.diffuse(nxt, x0, eps) + slope * (x0 - state.x0), Previous(x0, h)

    def nfe(self, levels: Level) -> int:
        return int(num_steps(levels))
