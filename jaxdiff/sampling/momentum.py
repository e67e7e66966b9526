"""Momentum of guidance: a running average of the difference of two beliefs, over the steps of sampling.

    a_k = d_k + beta a_(k-1),      a_0 = 0

takes the place of d_k, the difference that guidance pushes along, in step k. A `Denoise` remembers nothing and may be
asked several times in a step, so the memory is the solver's: `Momentum` is a solver whose state is another solver's
and a, and which gives that one a denoiser that knows a. All calls of a step see the average of the steps before;
the first difference of the step, which is the one at its own x and level, makes the next one. A step in which
nothing is asked, or nothing is guided (outside an interval), and a repeated level, which is no step, leave it alone.
Solvers whose calls stand in other people's loops (`RK45`) cannot write to it.

Source: arXiv:2410.02416, Alg. 1, where beta is negative: it holds back what the last steps have pushed already.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxdiff.core.types import Denoise, Level
from jaxdiff.sampling.multistep import unless_repeated
from jaxdiff.sampling.solver import Solver, State

Image = Float[Array, "b h w c"]

Push = Callable[[Image], Image]
"""The difference of two beliefs -> the one that guidance uses in its place."""


class Remembered(NamedTuple):
    """The solver's state, and the average of the differences so far."""

    state: State
    average: Image


@dataclasses.dataclass(frozen=True)
class Momentum:
    """The solver's denoisings, no more; the denoiser that `sample` is given is not asked, but the one made here."""

    solver: Solver
    """What moves x."""
    beta: float
    """The share of the old average in the new one, in (-1, 1)."""
    denoise_with: Callable[[Push], Denoise]
    """The denoiser whose guidance uses a push."""

    def init(self, x: Image, levels: Level) -> State:
        return Remembered(self.solver.init(x, levels), jnp.zeros_like(x))

    def step(
        self, keys: Key[Array, "b"], x: Image, state: State, cur: Level, nxt: Level, denoise: Denoise
    ) -> tuple[Image, State]:
        # The solver returns nothing of what its calls see, wherever in its loops and branches they stand: they write
        # it down. The references begin and end within the step, which stays a pure function.
        first, seen = jax.new_ref(state.average), jax.new_ref(jnp.array(False))

        def push(difference: Image) -> Image:
            average = difference + self.beta * state.average
            first[...] = jnp.where(seen[...], first[...], average)
            seen[...] = jnp.array(True)
            return average

        x, inner = self.solver.step(keys, x, state.state, cur, nxt, self.denoise_with(push))
        return x, Remembered(inner, unless_repeated(cur, nxt, first[...], state.average))

    def nfe(self, levels: Level) -> int | None:
        return self.solver.nfe(levels)
