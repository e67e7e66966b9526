"""What posterior methods share: the problem, what a measurement says of a belief, and solvers made of a step.

A method is a value; called with a problem and the run's solver it is a solver of the one scan:

    sample(keys, x, levels, denoise, PiGDM()(Problem(operator, y, noise), DDIM()))

With x0 = E[x0 | x] of the denoiser and e = y - A x0, the likelihood of x is taken to be

    p(y | x) = N(y; A x0, r^2 A A^T + noise^2 I),      r = s sigma / sqrt(alpha^2 s^2 + sigma^2)

where r is the deviation that pixels would have around x0 if they were independent normals of deviation s. Its slope in
x is  (dx0/dx)^T A^T (r^2 A A^T + noise^2 I)^-1 e.  Source: Song, Vahdat, Mardani and Kautz, "Pseudoinverse-Guided
Diffusion Models for Inverse Problems", ICLR 2023, Eq. 6-7.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxdiff.core.types import Denoise, Estimate, Level, Transform
from jaxdiff.sampling.inverse.operator import Linear, Measured, NonLinear, Operator
from jaxdiff.sampling.solver import Solver, State, num_steps

Image = Float[Array, "b h w c"]

Step = Callable[[Key[Array, "b"], Image, State, Level, Level, Denoise], tuple[Image, State]]
"""``(keys, x, state, cur, nxt, denoise) -> (x, state)``: as `Solver.step`."""

ANY = "dps, red-diff, daps, tds and fk take any operator"


class Problem(NamedTuple):
    """y = A(x0) + noise n with n ~ N(0, I), one y an example."""

    operator: Operator
    y: Measured
    noise: Float[Array, ""]
    """Standard deviation; may be traced."""


@runtime_checkable
class Method(Protocol):
    """How a denoiser is made to draw from the posterior."""

    @property
    def own_steps(self) -> bool:
        """Whether it moves x by a rule of its own, in place of the run's solver."""
        ...

    def check(self, operator: Operator, noise: float) -> None:
        """Raises: ValueError, one line, where the method cannot solve such a problem."""
        ...

    def __call__(self, problem: Problem, solver: Solver) -> Solver:
        """The solver that draws from the posterior."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Stepping:
    """A solver made of functions."""

    take: Step
    first: Callable[[Image, Level], State] = lambda x, levels: None
    """The state before the first step."""
    calls: int = 1
    """Of the denoiser in each step."""

    def init(self, x: Image, levels: Level) -> State:
        return self.first(x, levels)

    def step(
        self, keys: Key[Array, "b"], x: Image, state: State, cur: Level, nxt: Level, denoise: Denoise
    ) -> tuple[Image, State]:
        return self.take(keys, x, state, cur, nxt, denoise)

    def nfe(self, levels: Level) -> int:
        return self.calls * int(num_steps(levels))


@dataclasses.dataclass(frozen=True, eq=False)
class Steered:
    """A solver whose denoiser is transformed."""

    solver: Solver
    transform: Transform

    def init(self, x: Image, levels: Level) -> State:
        return self.solver.init(x, levels)

    def step(
        self, keys: Key[Array, "b"], x: Image, state: State, cur: Level, nxt: Level, denoise: Denoise
    ) -> tuple[Image, State]:
        return self.solver.step(keys, x, state, cur, nxt, self.transform(denoise))

    def nfe(self, levels: Level) -> int | None:
        return self.solver.nfe(levels)


def spread(level: Level, std: float) -> Float[Array, ""]:
    """r: how far x0 lies from its mean given x, for independent pixels of deviation `std`."""
    return std * level.sigma / jnp.hypot(std * level.alpha, level.sigma)


def with_pull(denoise: Denoise, x: Image, cur: Level, nxt: Level) -> tuple[Estimate, Callable[[Image], Image]]:
    """The belief, and v -> (dx0/dx)^T v."""

    def asked(x: Image) -> tuple[Image, Estimate]:
        believed = denoise(x, cur, nxt)
        return believed.x0, believed

    _, pull, believed = jax.vjp(asked, x, has_aux=True)
    return believed, lambda v: pull(v)[0]


def correction(problem: Problem, operator: Linear, x0: Image, lam: Float[Array, ""]) -> Image:
    """A^T (A A^T + lam I)^-1 (y - A x0): added to x0 it minimises |y - A x|^2 + lam |x - x0|^2."""
    return operator.adjoint(operator.solve(problem.y - operator.forward(x0), lam))


def likelihood(problem: Problem, x0: Image, r: Float[Array, ""]) -> tuple[Float[Array, "b"], Image]:
    """(log p(y | x) but for a constant, its slope in x0). For an operator that is not linear r^2 takes the place of
    r^2 A A^T."""
    operator = problem.operator
    if isinstance(operator, Linear):
        miss = problem.y - operator.forward(x0)
        found = operator.solve(miss, jnp.square(problem.noise / r)) / jnp.square(r)
        return -0.5 * each(miss * found), operator.adjoint(found)
    variance = jnp.square(problem.noise) + jnp.square(r)

    def total(x0: Image) -> tuple[Float[Array, ""], Float[Array, "b"]]:
        found = -0.5 * each(jnp.square(problem.y - operator.forward(x0))) / variance
        return jnp.sum(found), found

    (_, found), slope = jax.value_and_grad(total, has_aux=True)(x0)
    return found, slope


def each(values: Float[Array, "b ..."]) -> Float[Array, "b"]:
    """The sum over each example."""
    return jnp.sum(values, axis=tuple(range(1, values.ndim)))


def need_linear(name: str, operator: Operator) -> None:
    """Raises: ValueError for an operator that is not linear."""
    if isinstance(operator, NonLinear):
        raise ValueError(
            f"method {name} is not allowed here, where the operator is not linear (as none is through a decoder): "
            f"{ANY} (--method)"
        )


def need_noise(name: str, noise: float) -> None:
    """Raises: ValueError for a measurement without noise."""
    if not noise > 0:
        raise ValueError(f"noise = {noise} is not allowed with {name}: above 0 (--noise)")
