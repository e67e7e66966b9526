"""Diffusion posterior sampling (DPS): after each step, a step down the squared distance from the measurement.

    x' = DDIM(eta)(x) - scale / |y - A(x0)| grad_x |y - A(x0(x))|^2

in the units of a variance-preserving path (x / hypot(alpha, sigma)); any operator that can be differentiated. The
step's length does not follow from the noise: `scale` is to be chosen, larger for fewer steps (the paper takes 1,000 of
them), and neither the mean nor the covariance of the posterior is matched. Source: arXiv:2209.14687, Alg. 1.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxdiff.core.types import Denoise, Estimate, Level
from jaxdiff.sampling.ddim import DDIM
from jaxdiff.sampling.inverse.operator import Operator
from jaxdiff.sampling.inverse.problem import Problem, Stepping, each
from jaxdiff.sampling.solver import Solver, State

Image = Float[Array, "b h w c"]

TINY = 1e-12
"""Keeps the length of a step finite where the measurement is met."""


@dataclasses.dataclass(frozen=True)
class DPS:
    """One denoising a step, and one product with its derivative."""

    scale: float = 1.0
    """Length of the steps towards the measurement; 0.3 to 1 in the paper."""
    eta: float = 1.0
    """Share of fresh noise, in [0, 1]; 1 in the paper."""

    own_steps = True

    def __post_init__(self) -> None:
        if not self.scale >= 0:
            raise ValueError(f"scale = {self.scale} is not allowed: at least 0 (--method dps)")
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta = {self.eta} is not allowed: 0 to 1 (--method dps)")

    def check(self, operator: Operator, noise: float) -> None:
        """Takes any operator, with noise or without."""

    def __call__(self, problem: Problem, solver: Solver) -> Solver:
        def take(
            keys: Key[Array, "b"], x: Image, state: State, cur: Level, nxt: Level, denoise: Denoise
        ) -> tuple[Image, State]:
            def asked(x: Image) -> tuple[Float[Array, ""], tuple[Estimate, Float[Array, "b"]]]:
                believed = denoise(x, cur, nxt)
                square = each(jnp.square(problem.y - problem.operator.forward(believed.x0)))
                return jnp.sum(square), (believed, square)

            gradient, (believed, square) = jax.grad(asked, has_aux=True)(x)
            moved, _ = DDIM(self.eta).step(keys, x, None, cur, nxt, lambda *_: believed)
            length = self.scale / jnp.sqrt(square + TINY) * jnp.hypot(*cur) * jnp.hypot(*nxt)
            return moved - length[:, None, None, None] * gradient, None

        return Stepping(take)
