"""SA-Solver: Adams' predictor and corrector for a family of reverse SDEs, from the ODE (tau = 0) to DDPM's (tau = 1).

With h = lambda' - lambda, lambda = log(alpha / sigma), and H = (1 + tau**2) h a step is

    x' = alpha' x0 + sigma' (exp(-tau**2 h) eps + sqrt(1 - exp(-2 tau**2 h)) z)
         + alpha' H sum_j w_j (x0_j - x0),       w_j = integral of exp(-(1 - t) H) L_j(t) dt over t from 0 to 1

with the older x0_j in the predictor, and in the corrector also the x0 believed at the predicted x', which the next
step asks for in any case, with the same z. A step returns the prediction and remembers what the corrector needs; the
next one corrects the x it is given before it goes on. The last x is not corrected.

Where two values are seen, half of H takes the place of the line's integral, as in the authors' code: the same to the
order. Order 1 without corrector is DDIM(eta=0) for tau = 0 and DDIM(eta=1) for tau = 1.

Source: arXiv:2309.05019, Sec. 5 (predictor, corrector).
"""

import dataclasses
import math

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
    moments,
    nodes,
    push,
    steps_after,
    stride,
    unfinished,
    unless_repeated,
)
from jaxdiff.sampling.sample import normal_like
from jaxdiff.sampling.solver import State, decay, num_steps

Image = Float[Array, "b h w c"]


@dataclasses.dataclass(frozen=True)
class SASolver:
    """One denoising per step. With tau = 0 its order is the predictor's, or with a corrector the corrector's, though
    at most one more than the predictor's; the paper bounds the noise's part by a term in tau h besides.

    The order rises from 1 at the start. Steps from alpha = 0 and to sigma = 0 are of order 1 and are not corrected.
    """

    tau: float = 1.0
    """Noise of the SDE: 0 is the ODE, 1 DDPM's SDE; above 1 is allowed."""
    tau_min: float = 0.0
    """No noise is added by steps that start below this sigma/alpha (CIFAR-10 in the paper: 0.05)."""
    tau_max: float = math.inf
    """No noise is added by steps that start above this sigma/alpha (CIFAR-10 in the paper: 1)."""
    predictor_order: int = 3
    """The number of x0 that the predictor sees, 1 to 3."""
    corrector_order: int = 4
    """The number of x0 that the corrector sees, the new one among them, 1 to 4; 0 is no corrector."""
    lower_order_final: bool = True
    """Predictors of order 2 and then 1 in the last two steps, and correctors of one order more."""

    def __post_init__(self) -> None:
        if not 0 <= self.tau < math.inf:
            raise ValueError(f"tau = {self.tau} is not allowed: a finite number >= 0 (--solver.tau)")
        if self.predictor_order not in (1, 2, 3):
            raise ValueError(
                f"predictor_order = {self.predictor_order} is not allowed: 1, 2 or 3 (--solver.predictor-order)"
            )
        if self.corrector_order not in (0, 1, 2, 3, 4):
            raise ValueError(
                f"corrector_order = {self.corrector_order} is not allowed: 0 (none) to 4 (--solver.corrector-order)"
            )

    def init(self, x: Image, levels: Level) -> State:
        return unfinished(x, levels, max(self.predictor_order, self.corrector_order - 1))

    def step(
        self, keys: Key[Array, "b"], x: Image, state: Unfinished, cur: Level, nxt: Level, denoise: Denoise
    ) -> tuple[Image, State]:
        x0, eps, _ = denoise(x, cur, nxt)
        at = half_logsnr(cur)
        if self.corrector_order:
            # The step goes on from the corrected x with the x0 that was believed at the predicted one.
            eps = eps + correction(state, x0, at) / cur.sigma
        history = push(state.history, x0, at)
        square = jnp.zeros(())
        if self.tau > 0:
            ratio = cur.sigma / cur.alpha
            square = jnp.where((self.tau_min <= ratio) & (ratio <= self.tau_max), self.tau**2, 0.0)
            # exp(-tau**2 h), which is 0 from alpha = 0; rising levels have no noise of their own.
            kept = jnp.where(square > 0, jnp.minimum(decay(cur, nxt), 1.0) ** square, 1.0)
            eps = kept * eps + jnp.sqrt(1 - kept * kept) * normal_like(keys, x)

        h, usable = stride(cur, nxt)
        scaled, older, pair = (1 + square) * h, nodes(history, h), jnp.full_like(h, 0.5)
        # Of a longer history, kept for the corrector, the predictor sees the newest.
        order = jnp.where(usable, allowed(history, self.predictor_order, self.lower_order_final), 1)
        added = nxt.alpha * combine(adams(scaled, older, order, pair), history.values[1:], x0)
        weights = jnp.zeros_like(state.weights)
        if self.corrector_order:
            most = jnp.minimum(self.corrector_order, history.count + 1)
            most = jnp.minimum(most, steps_after(history) + 2) if self.lower_order_final else most
            rule = adams(scaled, [jnp.ones_like(h), *older], most, pair)
            # The corrector of order 1 is backward Euler's: the new x0 alone.
            alone = jnp.zeros_like(rule).at[0].set(scaled * moments(scaled, 0)[0])
            weights = nxt.alpha * jnp.where(usable, jnp.where(most == 1, alone, rule), 0.0)
        moved = gaussian.diffuse(nxt, x0, eps) + added, Unfinished(history, added, weights)
        return unless_repeated(cur, nxt, moved, (x, state))

    def nfe(self, levels: Level) -> int:
        return int(num_steps(levels))
