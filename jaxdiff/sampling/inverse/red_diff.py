"""RED-diff: a picture is fitted to the measurement, with the denoiser's error at one noise level a step as regulariser.

    loss(m) = mean |y - A(m)|^2 / 2 + weight r mean((eps(alpha m + sigma z) - z) m),      r = sigma / alpha

the bracket taken as constant; Adam moves m from the pseudo-inverse of y (or from 0) on. The state that is scanned is m
itself, so it is a picture at every step. It finds a mode: the spread of its results is that of the optimiser and says
nothing of the posterior's. Source: arXiv:2305.04391, Alg. 1 and Sec. 3.3.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from jaxdiff.core import gaussian
from jaxdiff.core.types import Denoise, Level
from jaxdiff.sampling.inverse.operator import Operator
from jaxdiff.sampling.inverse.problem import Problem, Stepping
from jaxdiff.sampling.sample import normal_like
from jaxdiff.sampling.solver import Solver, State

Image = Float[Array, "b h w c"]


class Fit(NamedTuple):
    """The picture, and what Adam remembers."""

    image: Image
    adam: optax.OptState


@dataclasses.dataclass(frozen=True)
class REDDiff:
    """One denoising a step."""

    rate: float = 0.1
    """Adam's learning rate."""
    weight: float = 0.25
    """Of the regulariser."""

    own_steps = True

    def __post_init__(self) -> None:
        if not self.rate > 0:
            raise ValueError(f"rate = {self.rate} is not allowed: above 0 (--method red-diff)")
        if not self.weight >= 0:
            raise ValueError(f"weight = {self.weight} is not allowed: at least 0 (--method red-diff)")

    def check(self, operator: Operator, noise: float) -> None:
        """Takes any operator, with noise or without."""

    def __call__(self, problem: Problem, solver: Solver) -> Solver:
        operator, adam = problem.operator, optax.adam(self.rate, b1=0.9, b2=0.99)

        def first(x: Image, levels: Level) -> State:
            start = jnp.zeros_like(x) if operator.pinv is None else operator.pinv(problem.y)
            return Fit(start, adam.init(start))

        def distance(image: Image) -> Float[Array, ""]:
            miss = jnp.square(problem.y - operator.forward(image))
            return 0.5 * jnp.sum(jnp.mean(miss, axis=tuple(range(1, miss.ndim))))

        def take(
            keys: Key[Array, "b"], x: Image, state: State, cur: Level, nxt: Level, denoise: Denoise
        ) -> tuple[Image, State]:
            z = normal_like(keys, x)
            error = denoise(gaussian.diffuse(cur, state.image, z), cur, nxt).eps - z
            # At alpha = 0 nothing is seen of the picture.
            weight = self.weight * jnp.where(cur.alpha > 0, cur.sigma / jnp.where(cur.alpha > 0, cur.alpha, 1.0), 0.0)
            gradient = jax.grad(distance)(state.image) + weight * error / error[0].size
            update, memory = adam.update(gradient, state.adam)
            image = state.image + update
            return image, Fit(image, memory)

        return Stepping(take, first)
