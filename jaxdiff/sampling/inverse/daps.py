"""Decoupled annealing posterior sampling (DAPS): a picture is drawn given x and y, and noise put on it anew.

    x^   the end of the probability-flow ODE from x, in a few steps
    x0 ~ N(x0; x^, r^2 I) N(y; A(x0), noise^2 I), normalised
    x'   = alpha' x0 + sigma' z

Steps at successive levels depend on each other through x0 alone, so large errors of early ones are mended. For a
linear operator x0 is drawn exactly: with v ~ N(x^, r^2 I) and n ~ N(0, noise^2 I) it is
v + A^T (A A^T + (noise / r)^2 I)^-1 (y + n - A v). Otherwise by Langevin steps from x^, as in the paper. r is that of
independent pixels of deviation `std` (`problem.spread`; the paper takes sigma / alpha, which is its limit for small
noise). Source: arXiv:2407.01521, Alg. 1 and Eq. 7-9.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxdiff.core import gaussian
from jaxdiff.core.types import Denoise, Level
from jaxdiff.sampling.ddim import DDIM
from jaxdiff.sampling.inverse.operator import Linear, NonLinear, Operator, seen_of
from jaxdiff.sampling.inverse.problem import Problem, Stepping, correction, likelihood, need_noise, spread
from jaxdiff.sampling.sample import fold, normal, normal_like, sample
from jaxdiff.sampling.solver import Solver, State

Image = Float[Array, "b h w c"]


@dataclasses.dataclass(frozen=True)
class DAPS:
    """`ode_steps` denoisings a step."""

    ode_steps: int = 5
    """Steps of DDIM from x to x^."""
    langevin: int = 100
    """Steps where the operator is not linear."""
    step: float = 0.1
    """Length of a Langevin step, as a share of half of the longest that is stable; in (0, 1]."""
    std: float = 1.0
    """Deviation of the data's pixels, from which r follows."""

    own_steps = True

    def __post_init__(self) -> None:
        for name in ("ode_steps", "langevin"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)} is not allowed: at least 1 (--method daps)")
        if not 0 < self.step <= 1:
            raise ValueError(f"step = {self.step} is not allowed: above 0, at most 1 (--method daps)")
        if not self.std > 0:
            raise ValueError(f"std = {self.std} is not allowed: above 0 (--method daps)")

    def check(self, operator: Operator, noise: float) -> None:
        if isinstance(operator, NonLinear):
            need_noise("daps and an operator that is not linear", noise)

    def __call__(self, problem: Problem, solver: Solver) -> Solver:
        operator = problem.operator

        def exactly(keys: Key[Array, "b"], middle: Image, r: Float[Array, ""]) -> Image:
            assert isinstance(operator, Linear)
            v = middle + r * normal_like(keys, middle)
            n = problem.noise * seen_of(operator) * normal(fold(keys, 1), operator.measured)
            return v + correction(problem._replace(y=problem.y + n), operator, v, jnp.square(problem.noise / r))

        def slowly(keys: Key[Array, "b"], middle: Image, r: Float[Array, ""]) -> Image:
            exact = jnp.zeros(())  # the likelihood of x0 itself
            length = self.step / (1 / jnp.square(r) + 1 / jnp.square(problem.noise))

            def moved(number, x0: Image) -> Image:
                slope = likelihood(problem, x0, exact)[1] - (x0 - middle) / jnp.square(r)
                return x0 + length * slope + jnp.sqrt(2 * length) * normal_like(fold(keys, number + 2), x0)

            return jax.lax.fori_loop(0, self.langevin, moved, middle)

        def take(
            keys: Key[Array, "b"], x: Image, state: State, cur: Level, nxt: Level, denoise: Denoise
        ) -> tuple[Image, State]:
            # Steps of one angle each: finite from alpha = 0.
            angles = jnp.arctan2(cur.sigma, cur.alpha) * jnp.linspace(1.0, 0.0, self.ode_steps + 1)
            way = Level(jnp.cos(angles), jnp.sin(angles))
            middle = sample(keys, x / jnp.hypot(*cur), way, denoise, DDIM())
            draw = exactly if isinstance(operator, Linear) else slowly
            x0 = draw(keys, middle, spread(cur, self.std))
            return gaussian.diffuse(nxt, x0, normal_like(fold(keys, 0), x)), None

        return Stepping(take, calls=self.ode_steps)
