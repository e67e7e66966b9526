"""PNDM: linear multistep and Runge-Kutta rules with DDIM's step in place of a straight line.

A mean of eps over the step is guessed and put where DDIM has its eps ("pseudo-numerical" methods):

    x' = (alpha'/alpha) x + (sigma' - alpha' r) mean = alpha' x0 + sigma' eps + (sigma' - alpha' r) (mean - eps)

    4 eps:   mean = (55 eps - 59 eps_1 + 37 eps_2 - 9 eps_3) / 24
    3 eps:   mean = (23 eps - 16 eps_1 + 5 eps_2) / 12
    2 eps:   mean = (3 eps - eps_1) / 2

and for the start the classical Runge-Kutta rule, whose mean is (eps_a + 2 eps_b + 2 eps_c + eps_d) / 6 with eps_b,
eps_c half way, here in r = sigma/alpha, or the improved Euler rule's mean of both ends. The weights do not look at
the step sizes: in y = x/alpha, where DDIM's step is the straight line y' = y + (r' - r) eps, they have order 4 if the
levels are even in r, and order 2 on other smooth grids, which is what the paper proves.

Source: arXiv:2202.09778, Sec. 3.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from jaxdiff.core import gaussian
from jaxdiff.core.types import Denoise, Estimate, Level
from jaxdiff.sampling.multistep import History, begin, push, unless_repeated
from jaxdiff.sampling.solver import State, decay, num_steps, vp

Image = Float[Array, "b h w c"]

ADAMS = (
    (1.0, 0.0, 0.0, 0.0),
    (3 / 2, -1 / 2, 0.0, 0.0),
    (23 / 12, -16 / 12, 5 / 12, 0.0),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
"""Adams-Bashforth weights for equal steps, the newest first."""

LARGE = 1e30
"""Stands for sigma/alpha at alpha = 0."""

KUTTA = (1 / 6, ((0.5, 1 / 3), (0.5, 1 / 3), (1.0, 1 / 6)))
"""The first eps' weight; then, for each further stage, its place in the step and its weight."""

IMPROVED_EULER = (1 / 2, ((1.0, 1 / 2),))
"""The same of the rule that takes the mean of both ends."""


def _remembered(history: History, eps: Image, cur: Level) -> History:
    # Unlike lambda this is finite at alpha = 0, whose eps counts: the weights do not look at the levels.
    return push(history, eps, -jnp.minimum(cur.sigma / cur.alpha, LARGE))


def _transfer(estimate: Estimate, mean: Image, cur: Level, nxt: Level, last: bool) -> Image:
    """DDIM's step with `mean` for its eps; the estimate's own from alpha = 0, where r is infinite, and, if `last`, in
    the step to sigma = 0, where extrapolation would leave noise."""
    ends = (nxt.sigma > 0) | (not last)
    reach = jnp.where((cur.alpha > 0) & ends, nxt.sigma - nxt.alpha * cur.sigma / cur.alpha, 0.0)
    return gaussian.diffuse(nxt, estimate.x0, estimate.eps) + reach * (mean - estimate.eps)


def _bashforth(history: History, order: Int[Array, ""]) -> Image:
    table = jnp.asarray(ADAMS, history.values.dtype)[:, : history.at.size]
    return jnp.tensordot(table[order - 1], history.values, axes=1)


@dataclasses.dataclass(frozen=True)
class PLMS:
    """One denoising per step, of orders 1, 2, 3 in the first three.

    Steps from alpha = 0 and on rising levels are DDIM's.
    """

    order: int = 4
    """The number of eps that a step sees, 1 (DDIM) to 4."""
    lower_order_final: bool = True
    """Take the step to sigma = 0 by DDIM; False keeps its order, as published code does, and leaves noise."""

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3, 4):
            raise ValueError(f"order = {self.order} is not allowed: 1 to 4 (--solver.order)")

    def init(self, x: Image, levels: Level) -> State:
        return begin(x, levels, self.order)

    def step(
        self, keys: Key[Array, "b"], x: Image, state: History, cur: Level, nxt: Level, denoise: Denoise
    ) -> tuple[Image, State]:
        estimate = denoise(x, cur, nxt)
        history = _remembered(state, estimate.eps, cur)
        mean = _bashforth(history, jnp.where(decay(cur, nxt) < 1, history.count, 1))
        return unless_repeated(
            cur, nxt, (_transfer(estimate, mean, cur, nxt, self.lower_order_final), history), (x, state)
        )

    def nfe(self, levels: Level) -> int:
        return int(num_steps(levels))


@dataclasses.dataclass(frozen=True)
class PNDM:
    """PLMS of order 4 with a start of the paper's kind; then one denoising per step.

    A step of the start is DDIM's or PLMS's where its rule would ask at sigma = 0 or from alpha = 0.
    """

    runge_kutta: bool = True
    """Whether three steps of the Runge-Kutta rule (four denoisings each) start the run; otherwise one of the improved
    Euler rule (two denoisings) and PLMS of orders 2 and 3."""
    lower_order_final: bool = True
    """Take the step to sigma = 0 by DDIM; False keeps its order, as published code does, and leaves noise."""

    def init(self, x: Image, levels: Level) -> State:
        return begin(x, levels, 4)

    def step(
        self, keys: Key[Array, "b"], x: Image, state: History, cur: Level, nxt: Level, denoise: Denoise
    ) -> tuple[Image, State]:
        estimate = denoise(x, cur, nxt)
        history = _remembered(state, estimate.eps, cur)
        falls = decay(cur, nxt) < 1
        starting = falls & (history.count <= (3 if self.runge_kutta else 1)) & (cur.alpha > 0) & (nxt.sigma > 0)
        mean = jax.lax.cond(
            starting,
            lambda: self._kutta(x, estimate.eps, cur, nxt, denoise),
            lambda: _bashforth(history, jnp.where(falls, history.count, 1)),
        )
        return unless_repeated(
            cur, nxt, (_transfer(estimate, mean, cur, nxt, self.lower_order_final), history), (x, state)
        )

    def _kutta(self, x: Image, eps: Image, cur: Level, nxt: Level, denoise: Denoise) -> Image:
        """The rule's mean of eps over the step."""
        first, stages = KUTTA if self.runge_kutta else IMPROVED_EULER
        y, r = x / cur.alpha, cur.sigma / cur.alpha
        length = nxt.sigma / nxt.alpha - r

        def stage(carry: tuple[Image, Image], inputs: Float[Array, "2"]) -> tuple[tuple[Image, Image], None]:
            slope, mean = carry
            part, weight = inputs
            level = vp(r + part * length)
            slope = denoise(level.alpha * (y + part * length * slope), level, level).eps
            return (slope, mean + weight * slope), None

        (_, mean), _ = jax.lax.scan(stage, (eps, first * eps), jnp.asarray(stages, eps.dtype))
        return mean

    def nfe(self, levels: Level) -> int:
        ratio = np.asarray(levels.sigma, np.float64) / np.maximum(np.asarray(levels.alpha, np.float64), 1e-300)
        calls, count, extra = 0, 0, 3 if self.runge_kutta else 1
        for i, (r, s) in enumerate(itertools.pairwise(ratio)):
            if not (r > 0 or s > 0):
                continue
            seen = (0 if i and r > ratio[i - 1] else count) + 1
            starting = seen <= extra and levels.alpha[i] > 0 and 0 < s < r
            calls += 1 + (extra if starting else 0)
            count = count if s == r else seen
        return calls
