"""EDM's stochastic Heun sampler.

In y = x / alpha and r = sigma / alpha the probability-flow ODE is dy/dr = eps. A step from r to r' < r:

    churn   r^ = (1 + gamma) r,   y^ = y + sqrt(r^**2 - r**2) noise z
    Euler   y' = y^ + (r' - r^) eps(y^, r^)
    Heun    y' = y^ + (r' - r^) (eps(y^, r^) + eps(y', r')) / 2        unless r' = 0

Written in x, Euler is alpha' x0 + sigma' eps (finite at alpha = 0), and Heun adds alpha' (r^/r' - 1) d / 2, d
being what the second call changed of x0. The first step of a path that starts at alpha = 0 has r = inf; there
Heun's rule is taken in u = alpha / sigma instead, where the same ODE reads d(x/sigma)/du = x0: it adds
alpha' (1 - r'/r^) d / 2, with r'/r^ = 0.

Source: arXiv:2206.00364, Alg. 2.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxdiff.core import gaussian
from jaxdiff.core.types import Denoise, Level
from jaxdiff.sampling.sample import normal_like
from jaxdiff.sampling.solver import State, decay, num_steps, vp

Image = Float[Array, "b h w c"]


class Churn(NamedTuple):
    """gamma, and the sigma/alpha of the noisiest level, which churn does not exceed."""

    gamma: Float[Array, ""]
    top: Float[Array, ""]


@dataclasses.dataclass(frozen=True)
class Heun:
    """Two denoisings per step, one in the last; order 2 without churn."""

    churn: float = 0.0
    """S_churn: new noise over the whole run, gamma = min(churn / num_steps, sqrt(2) - 1); 0 is the ODE."""
    churn_min: float = 0.0
    """S_min: no churn below this sigma/alpha."""
    churn_max: float = math.inf
    """S_max: no churn above this sigma/alpha."""
    noise: float = 1.0
    """S_noise: standard deviation of the new noise; EDM used 1.003 on ImageNet-64, 1.007 on CIFAR-10."""

    def __post_init__(self) -> None:
        if not 0 <= self.churn < math.inf:
            raise ValueError(f"churn = {self.churn} is not allowed: a finite number >= 0 (--solver.churn)")

    def init(self, x: Image, levels: Level) -> State:
        gamma = jnp.minimum(self.churn / num_steps(levels), math.sqrt(2) - 1)
        return Churn(gamma, jnp.max(levels.sigma / levels.alpha))

    def step(
        self, keys: Key[Array, "b"], x: Image, state: State, cur: Level, nxt: Level, denoise: Denoise
    ) -> tuple[Image, State]:
        if self.churn > 0:
            x, cur = self._churned(keys, x, cur, state)
        x0, eps, _ = denoise(x, cur, nxt)
        euler = gaussian.diffuse(nxt, x0, eps)

        def corrected() -> Image:
            q = decay(cur, nxt)
            half = 0.5 * nxt.alpha * jnp.where(q > 0, (1 - q) / jnp.where(q > 0, q, 1.0), 1.0)
            return euler + half * (denoise(euler, nxt, nxt).x0 - x0)

        # The network is not called at sigma = 0.
        return jax.lax.cond(nxt.sigma > 0, corrected, lambda: euler), state

    def _churned(self, keys: Key[Array, "b"], x: Image, cur: Level, state: Churn) -> tuple[Image, Level]:
        ratio = cur.sigma / cur.alpha
        inside = (cur.alpha > 0) & (self.churn_min <= ratio) & (ratio <= self.churn_max)
        ratio = jnp.where(inside, ratio, 1.0)
        noisier = jnp.minimum((1 + state.gamma) * ratio, state.top)
        level = vp(noisier)
        added = jnp.sqrt(jnp.maximum(jnp.square(noisier) - jnp.square(ratio), 0.0))
        churned = level.alpha * (x / jnp.where(inside, cur.alpha, 1.0) + self.noise * added * normal_like(keys, x))
        return jax.tree.map(lambda a, b: jnp.where(inside, a, b), (churned, level), (x, cur))

    def nfe(self, levels: Level) -> int:
        return int(2 * num_steps(levels) - jnp.sum((levels.sigma[:-1] > 0) & (levels.sigma[1:] == 0)))
