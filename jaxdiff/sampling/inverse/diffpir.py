"""DiffPIR: half-quadratic splitting, with the denoiser for the prior's half and a least-squares problem for the data's.

    x0' = argmin |y - A x|^2 + lam |x - x0|^2 = x0 + A^T (A A^T + lam I)^-1 (y - A x0),    lam = weight noise^2 / r^2
    x'  = alpha' x0' + sigma' (sqrt(1 - fresh) eps' + sqrt(fresh) z),      eps' = (x - alpha x0') / sigma

with r = sigma / alpha. Source: arXiv:2305.08995, Alg. 1 (weight: lambda; fresh: zeta).
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxdiff.core import gaussian
from jaxdiff.core.types import Denoise, Level
from jaxdiff.sampling.inverse.operator import Linear, Operator
from jaxdiff.sampling.inverse.problem import Problem, Stepping, correction, need_linear
from jaxdiff.sampling.sample import normal_like
from jaxdiff.sampling.solver import Solver, State

Image = Float[Array, "b h w c"]


@dataclasses.dataclass(frozen=True)
class DiffPIR:
    """One denoising a step, and one linear problem."""

    weight: float = 7.0
    """Of the prior against the data; 1 to 25 in the paper."""
    fresh: float = 0.3
    """Share of the noise that is drawn anew in each step, in [0, 1]."""

    own_steps = True

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ValueError(f"weight = {self.weight} is not allowed: above 0 (--method diffpir)")
        if not 0 <= self.fresh <= 1:
            raise ValueError(f"fresh = {self.fresh} is not allowed: 0 to 1 (--method diffpir)")

    def check(self, operator: Operator, noise: float) -> None:
        need_linear("diffpir", operator)

    def __call__(self, problem: Problem, solver: Solver) -> Solver:
        operator = problem.operator
        if not isinstance(operator, Linear):
            raise ValueError("DiffPIR needs a linear operator")

        def take(
            keys: Key[Array, "b"], x: Image, state: State, cur: Level, nxt: Level, denoise: Denoise
        ) -> tuple[Image, State]:
            x0 = denoise(x, cur, nxt).x0
            # From pure noise the least squares would have nothing to lean on: there it is the next level's prior.
            ratio = jnp.where(cur.alpha > 0, cur.alpha / cur.sigma, nxt.alpha / jnp.maximum(nxt.sigma, 1e-12))
            lam = self.weight * jnp.square(problem.noise * ratio)
            x0 = x0 + correction(problem, operator, x0, lam)
            eps = gaussian.from_x0(cur, x, x0).eps
            eps = jnp.sqrt(1 - self.fresh) * eps + jnp.sqrt(self.fresh) * normal_like(keys, x)
            return gaussian.diffuse(nxt, x0, eps), None

        return Stepping(take)
