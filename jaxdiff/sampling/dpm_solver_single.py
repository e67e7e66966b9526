"""DPM-Solver and DPM-Solver++, singlestep: further looks between the two levels of a step.

With lambda = -log(sigma / alpha), h = log(r/r') and looks at lambda + h/2 (order 2), lambda + h/3 and lambda + 2h/3
(order 3), B_i being the belief at look i and B that at the start,

    order 1    x'  = DDIM's step
    order 2    x'  = DDIM's step + c' w0(H) (B_1 - B)
    order 3    x_2 = DDIM's step to the second look + 2 c_2 w1(2H/3) (B_1 - B)
               x'  = DDIM's step + (3/2) c' w1(H) (B_2 - B)

where DPM-Solver++ holds x0 (B = x0, c = alpha, H = h) and DPM-Solver eps (B = eps, c = sigma, H = -h): the same
formulas with the two ends exchanged. w_k is `dpm_solver.weight`. In the SDE forms H = (1 + eta) h, a step keeps
exp(-eta h) of eps, and the noise at a look is the part of the step's noise that has come by then.

Source: arXiv:2206.00927, Alg. 1 and 2; arXiv:2211.01095, Alg. 1.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from jaxdiff.core import gaussian
from jaxdiff.core.types import Denoise, Estimate, Level
from jaxdiff.sampling.dpm_solver import check_eta, fresh_noise, weight
from jaxdiff.sampling.sample import normal_like
from jaxdiff.sampling.solver import State, decay, num_steps, vp

Image = Float[Array, "b h w c"]
Scalar = Float[Array, ""]


class Held(NamedTuple):
    """Which belief is held along a step: B, c, and the sign of H."""

    belief: Callable[[Estimate], Image]
    scale: Callable[[Level], Scalar]
    sign: float


def _held_x0() -> Held:
    return Held(lambda estimate: estimate.x0, lambda level: level.alpha, 1.0)


def _held_eps() -> Held:
    return Held(lambda estimate: estimate.eps, lambda level: level.sigma, -1.0)


def _has_looks(cur: Level, nxt: Level) -> Bool[Array, "*n"]:
    """Whether lambda is finite at both ends, and the step is one."""
    return (cur.alpha > 0) & (nxt.sigma > 0) & (nxt.sigma * cur.alpha != nxt.alpha * cur.sigma)


def _step(
    held: Held, order: int, eta: float, keys: Key[Array, "b"], x: Image, cur: Level, nxt: Level, denoise: Denoise
) -> Image:
    start = denoise(x, cur, nxt)
    h = -jnp.log(decay(cur, nxt))
    big_h = held.sign * (1 + eta * (h > 0)) * h

    def ddim(to: Level, fraction: float) -> Image:
        return gaussian.diffuse(to, start.x0, fresh_noise(eta, fraction * h)[0] * start.eps)

    def noised(to: Level, part: float, noise: Image | Scalar, key: Key[Array, "b"]) -> Image | Scalar:
        """In units of sigma: the noise so far, and what the next part of the step adds to it."""
        if eta == 0:
            return noise
        kept, fresh = fresh_noise(eta, part * h)
        return kept * noise + fresh * normal_like(key, x)

    def plain() -> Image:
        return ddim(nxt, 1.0) + nxt.sigma * noised(nxt, 1.0, jnp.zeros(()), keys)

    def with_looks() -> Image:
        later = jax.vmap(lambda key: jax.random.split(key, order), out_axes=1)(keys)
        noise, part = jnp.zeros(()), 1 / order
        bend, change = jnp.zeros(()), jnp.zeros_like(x)
        for i in range(1, order):
            at = vp(cur.sigma / cur.alpha * jnp.exp(-i * part * h))
            noise = noised(at, part, noise, later[i - 1])
            if i == 2:
                bend = 2 * held.scale(at) * weight(1, 2 * part * big_h) * change
            look = denoise(ddim(at, i * part) + bend + at.sigma * noise, at, nxt)
            change = held.belief(look) - held.belief(start)
        noise = noised(nxt, part, noise, later[-1])
        w = weight(0, big_h) if order == 2 else 1.5 * weight(1, big_h)
        return ddim(nxt, 1.0) + held.scale(nxt) * w * change + nxt.sigma * noise

    if order == 1:
        return plain()
    return jax.lax.cond(_has_looks(cur, nxt), with_looks, plain)


def _nfe(order: int, levels: Level) -> int:
    cur, nxt = jax.tree.map(lambda a: a[:-1], levels), jax.tree.map(lambda a: a[1:], levels)
    return int(num_steps(levels) + (order - 1) * jnp.sum(_has_looks(cur, nxt)))


def _check_order(order: int) -> None:
    if order not in (1, 2, 3):
        raise ValueError(f"order = {order} is not allowed: 1, 2 or 3 (--solver.order)")


@dataclasses.dataclass(frozen=True)
class DPMSolver:
    """DPM-Solver-2S and 3S: `order` denoisings per step, but one from alpha = 0 and one to sigma = 0; of that order."""

    order: int = 3
    """1 (DDIM), 2 or 3."""

    def __post_init__(self) -> None:
        _check_order(self.order)

    def init(self, x: Image, levels: Level) -> State:
        return None

    def step(
        self, keys: Key[Array, "b"], x: Image, state: State, cur: Level, nxt: Level, denoise: Denoise
    ) -> tuple[Image, State]:
        return _step(_held_eps(), self.order, 0.0, keys, x, cur, nxt, denoise), None

    def nfe(self, levels: Level) -> int:
        return _nfe(self.order, levels)


@dataclasses.dataclass(frozen=True)
class DPMSolverPPS:
    """DPM-Solver++ 2S and 3S and their SDE forms: `order` denoisings per step, but one from alpha = 0 and one to
    sigma = 0; of that order for eta = 0, and of weak order 2 at most otherwise."""

    order: int = 2
    """1 (DDIM), 2 or 3."""
    eta: float = 0.0
    """Fresh noise: 0 is the ODE, 1 the reverse SDE (order 1 is then DDPM's ancestral step)."""

    def __post_init__(self) -> None:
        _check_order(self.order)
        check_eta(self.eta)

    def init(self, x: Image, levels: Level) -> State:
        return None

    def step(
        self, keys: Key[Array, "b"], x: Image, state: State, cur: Level, nxt: Level, denoise: Denoise
    ) -> tuple[Image, State]:
        return _step(_held_x0(), self.order, self.eta, keys, x, cur, nxt, denoise), None

    def nfe(self, levels: Level) -> int:
        return _nfe(self.order, levels)
