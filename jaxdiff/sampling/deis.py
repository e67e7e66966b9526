"""DEIS (tAB): DDIM, plus a polynomial through the last eps.

The paper's tAB extrapolates eps by a polynomial in the time t of the variance-preserving SDE, which a solver that is
given levels does not know. Here the polynomial is in log(rho), rho = sigma / alpha, as in the widely used
implementation called "log-rho": then rules and levels alone decide, and the integrals are closed:

    x' = alpha' x0 + sigma' eps - sigma' sum_j w_j (eps_j - eps),
    w_j = integral of exp(h - s) L_j(s) ds over s from 0 to h,       h = log(rho / rho')

Source: arXiv:2204.13902, Sec. 3 (tAB); `multistep.py` for the integrals.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxdiff.core import gaussian
from jaxdiff.core.types import Denoise, Level
from jaxdiff.sampling.multistep import (
    History,
    adams,
    allowed,
    begin,
    combine,
    half_logsnr,
    nodes,
    push,
    stride,
    unless_repeated,
)
from jaxdiff.sampling.solver import State, num_steps

Image = Float[Array, "b h w c"]


@dataclasses.dataclass(frozen=True)
class DEIS:
    """One denoising per step; order 1 (DDIM), 2 or 3.

    The order rises from 1 at the start, and steps from alpha = 0 and to sigma = 0 are DDIM's.
    """

    order: int = 3
    """The number of eps that a step sees, 1 to 3."""
    lower_order_final: bool = True
    """Order 2 and then 1 in the last two steps, which is steadier with few steps."""

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3):
            raise ValueError(f"order = {self.order} is not allowed: 1, 2 or 3 (--solver.order)")

    def init(self, x: Image, levels: Level) -> State:
        return begin(x, levels, self.order)

    def step(
        self, keys: Key[Array, "b"], x: Image, state: History, cur: Level, nxt: Level, denoise: Denoise
    ) -> tuple[Image, State]:
        x0, eps, _ = denoise(x, cur, nxt)
        history = push(state, eps, half_logsnr(cur))
        h, usable = stride(cur, nxt)
        order = jnp.where(usable, allowed(history, self.order, self.lower_order_final), 1)
        # The weight exp(h - s) grows towards the noisy end: Adams' rule with -h, which changes its sign too.
        weights = adams(-h, nodes(history, h), order)
        added = nxt.sigma * combine(weights, history.values[1:], eps)
        return unless_repeated(cur, nxt, (gaussian.diffuse(nxt, x0, eps) + added, history), (x, state))

    def nfe(self, levels: Level) -> int:
        return int(num_steps(levels))
