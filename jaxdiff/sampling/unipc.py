"""UniPC: a predictor that sees the last x0, and a corrector that sees the one it led to.

    predict   x' = alpha' x0 + sigma' eps + alpha' h sum_j a_j (x0_j - x0)            p - 1 older x0_j
    correct   x' = alpha' x0 + sigma' eps + alpha' h sum_j c_j (x0_j - x0)            those and x0' = x0(predicted x')

where x0' is asked for by the next step in any case. A step returns the prediction and remembers what the corrector
needs; the next one corrects the x it is given before it goes on. The last x is not corrected.

The order conditions fix the weights of three values and more (they are Adams', `multistep.py`), whatever B(h) is.
Of two values they leave freedom: the paper takes half of B(h), and B is that choice. Order p with the corrector is
p + 1 asymptotically.

Source: arXiv:2302.04867, Sec. 3.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxdiff.core import gaussian
from jaxdiff.core.types import Denoise, Level
from jaxdiff.sampling.multistep import (
    Unfinished,
    adams,
    allowed,
    combine,
    correction,
    half_logsnr,
    nodes,
    push,
    stride,
    unfinished,
    unless_repeated,
)
from jaxdiff.sampling.solver import State, num_steps

Image = Float[Array, "b h w c"]


@dataclasses.dataclass(frozen=True)
class B1:
    """B(h) = h."""

    def __call__(self, h: Float[Array, ""]) -> Float[Array, ""]:
        return h


@dataclasses.dataclass(frozen=True)
class B2:
    """B(h) = 1 - exp(-h)."""

    def __call__(self, h: Float[Array, ""]) -> Float[Array, ""]:
        return -jnp.expm1(-h)


@dataclasses.dataclass(frozen=True)
class UniPC:
    """One denoising per step; order 1 to 3, one more with the corrector.

    The order rises from 1 at the start. Steps from alpha = 0 and to sigma = 0 are DDIM's and are not corrected.
    """

    order: int = 2
    """p: the number of x0 that the predictor sees, 1 to 3; the corrector sees one more."""
    b: B1 | B2 = B2()
    """B(h) of the rule for two values."""
    corrector: bool = True
    """False leaves the predictor, UniP."""
    lower_order_final: bool = True
    """Order 2 and then 1 in the last two steps, which is steadier with few steps."""

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3):
            raise ValueError(f"order = {self.order} is not allowed: 1, 2 or 3 (--solver.order)")

    def init(self, x: Image, levels: Level) -> State:
        return unfinished(x, levels, self.order)

    def step(
        self, keys: Key[Array, "b"], x: Image, state: Unfinished, cur: Level, nxt: Level, denoise: Denoise
    ) -> tuple[Image, State]:
        x0, eps, _ = denoise(x, cur, nxt)
        at = half_logsnr(cur)
        if self.corrector:
            # The step goes on from the corrected x with the x0 that was believed at the predicted one.
            eps = eps + correction(state, x0, at) / cur.sigma
        history = push(state.history, x0, at)
        h, usable = stride(cur, nxt)
        order = jnp.where(usable, allowed(history, self.order, self.lower_order_final), 1)
        older, pair = nodes(history, h), self.b(h) / (2 * h)
        added = nxt.alpha * combine(adams(h, older, order, pair), history.values[1:], x0)
        weights = nxt.alpha * adams(h, [jnp.ones_like(h), *older], jnp.where(usable, order + 1, 1), pair)
        moved = gaussian.diffuse(nxt, x0, eps) + added, Unfinished(history, added, weights)
        return unless_repeated(cur, nxt, moved, (x, state))

    def nfe(self, levels: Level) -> int:
        return int(num_steps(levels))
