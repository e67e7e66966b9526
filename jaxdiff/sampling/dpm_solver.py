"""DPM-Solver++, multistep, of the ODE and of the SDEs: x0 is a polynomial through what the last steps saw.

With r = sigma / alpha, lambda = -log(r), h = log(r/r') and H = (1 + eta) h, the exact solution from r to r' for
x0(lambda + s h) = x0 + D1 s + D2 s**2 is

    x' = alpha' x0 + sigma' (exp(-eta h) eps + sqrt(1 - exp(-2 eta h)) z) + alpha' (w1 D1 + w2 D2)
    w_k = integral over s in (0, 1) of H exp(-H (1 - s)) s**k

which is finite at both ends. eta = 0 is the probability-flow ODE, eta = 1 the reverse SDE. Order 2 has
D1 = (h / h_prev) (x0 - x0_prev) with the papers' w1 = (1 - exp(-H)) / 2; order 3 takes the parabola and exact weights,
but w2 times `curvature`.

Source: arXiv:2211.01095, Alg. 2 and Sec. 5 (SDE-DPM-Solver++).
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from jaxdiff.core import gaussian
from jaxdiff.core.types import Denoise, Level
from jaxdiff.sampling.sample import normal_like
from jaxdiff.sampling.solver import State, decay, num_steps

Image = Float[Array, "b h w c"]
Scalar = Float[Array, ""]


def weight(k: int, big_h: Scalar) -> Scalar:
    """The integral over s in (0, 1) of H exp(-H (1 - s)) s**k, for H of either sign; 1 at H = inf."""
    small = jnp.abs(big_h) < 1
    safe = jnp.where(small, 1.0, big_h)
    exact = -jnp.expm1(-safe)
    for j in range(1, k + 1):
        exact = 1 - j * exact / safe
    # The recursion cancels where H is small; there the series, k! sum of (-1)**n H**(n + 1) / (n + k + 1)!.
    h = jnp.where(small, big_h, 0.0)
    series = jnp.zeros_like(h)
    for n in reversed(range(9)):
        series = (-1) ** n * math.factorial(k) / math.factorial(n + k + 1) + h * series
    return jnp.where(small, h * series, exact)


def fresh_noise(eta: float, h: Scalar) -> tuple[Scalar, Scalar]:
    """(exp(-eta h), sqrt(1 - exp(-2 eta h))): what a step of length h leaves of eps, and its fresh noise.

    A step up (h < 0) has no fresh noise.
    """
    if eta == 0:
        return jnp.ones_like(h), jnp.zeros_like(h)
    down = eta * jnp.maximum(h, 0.0)
    return jnp.exp(-down), jnp.sqrt(-jnp.expm1(-2 * down))


def check_eta(eta: float) -> None:
    if not 0 <= eta < math.inf:
        raise ValueError(f"eta = {eta} is not allowed: 0 (the ODE), 1 (the SDE) or any finite number (--solver.eta)")


class History(NamedTuple):
    """What the last steps saw, the latest first: x0 and h, infinite where there is no step to count on."""

    x0: tuple[Image, ...]
    h: tuple[Scalar, ...]
    lowest: Scalar
    """The grid's smallest sigma/alpha above 0, from which the step to sigma = 0 is taken."""


@dataclasses.dataclass(frozen=True)
class DPMSolverPP:
    """DPM-Solver++ 2M and 3M and SDE-DPM-Solver++: one denoising per step; of that order for eta = 0.

    The first steps have the order that their history allows. The step to sigma = 0 is of order 1, the one before it
    of order 2 at most, and so are the first two from alpha = 0, where lambda is infinite.
    """

    order: int = 2
    """1 (DDIM), 2 or 3."""
    eta: float = 0.0
    """Fresh noise: 0 is the ODE, 1 the reverse SDE (order 1 is then DDPM's ancestral step)."""
    curvature: float = 1.0
    """Share of w2 in order 3. Published code has 0.5, which makes it order 2 but steadier with few steps."""

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3):
            raise ValueError(f"order = {self.order} is not allowed: 1, 2 or 3 (--solver.order)")
        check_eta(self.eta)

    def init(self, x: Image, levels: Level) -> State:
        lowest = jnp.min(jnp.where(levels.sigma > 0, levels.sigma / levels.alpha, jnp.inf))
        past = self.order - 1
        return History((jnp.zeros_like(x),) * past, (jnp.float32(jnp.inf),) * past, lowest)

    def step(
        self, keys: Key[Array, "b"], x: Image, state: State, cur: Level, nxt: Level, denoise: Denoise
    ) -> tuple[Image, State]:
        x0, eps, _ = denoise(x, cur, nxt)
        h = -jnp.log(decay(cur, nxt))
        kept, fresh = fresh_noise(self.eta, h)
        x = gaussian.diffuse(nxt, x0, kept * eps) + nxt.alpha * self._bend(x0, h, nxt, state)
        if self.eta > 0:
            x = x + nxt.sigma * fresh * normal_like(keys, x)
        pushed = History((x0, *state.x0)[: self.order - 1], (h, *state.h)[: self.order - 1], state.lowest)
        # A repeated level is no step, and no point of the polynomial.
        return x, jax.tree.map(lambda new, old: jnp.where(h == 0, old, new), pushed, state)

    def _bend(self, x0: Image, h: Scalar, nxt: Level, state: History) -> Image | Scalar:
        """w1 D1 + w2 D2."""

        def follows(h: Scalar, before: Scalar) -> Bool[Array, ""]:
            return jnp.isfinite(h) & jnp.isfinite(before) & (h * before > 0)

        if self.order == 1:
            return jnp.zeros(())
        big_h = (1 + self.eta * (h > 0)) * h
        half = 0.5 * weight(0, big_h)
        second = follows(h, state.h[0])
        d1 = jnp.where(second, h / state.h[0], 0.0) * (x0 - state.x0[0])
        if self.order == 2:
            return half * d1
        third = second & follows(*state.h) & (nxt.sigma > 1.00001 * state.lowest * nxt.alpha)
        before = jnp.where(third, h / state.h[1], 0.0) * (state.x0[0] - state.x0[1])
        d2 = jnp.where(third, h / (state.h[0] + state.h[1]), 0.0) * (d1 - before)
        d1 = d1 + jnp.where(third, state.h[0] / h, 0.0) * d2
        return jnp.where(third, weight(1, big_h), half) * d1 + self.curvature * weight(2, big_h) * d2

    def nfe(self, levels: Level) -> int:
        return int(num_steps(levels))
