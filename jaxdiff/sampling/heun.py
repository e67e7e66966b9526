"""EDM's stochastic Heun sampler, on any path.

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

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxdiff.core import gaussian
from jaxdiff.core.types import Denoise, Level, Path
from jaxdiff.sampling.sample import normal_like
from jaxdiff.sampling.solver import State, decay

Image = Float[Array, "b h w c"]


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
    path: Path | None = None
    """The network's path, off which churned levels are read; needed with churn > 0 only."""

    def __post_init__(self) -> None:
        if not 0 <= self.churn < math.inf:
            raise ValueError(f"churn = {self.churn} is not allowed: a finite number >= 0 (--solver.churn)")
        if self.churn and self.path is None:
            raise ValueError(f"churn = {self.churn} needs the network's path: Heun(churn=..., path=...)")

    def init(self, x: Image, levels: Level) -> State:
        num_steps = levels.alpha.shape[0] - 1
        return jnp.float32(min(self.churn / num_steps, math.sqrt(2) - 1))

    def step(
        self, keys: Key[Array, "b"], x: Image, state: State, cur: Level, nxt: Level, denoise: Denoise
    ) -> tuple[Image, State]:
        if self.path is not None and self.churn > 0:
            x, cur = self._churned(keys, x, cur, state, self.path)
        x0, eps = denoise(x, cur, nxt)
        euler = gaussian.diffuse(nxt, x0, eps)

        def corrected() -> Image:
            q = decay(cur, nxt)
            half = 0.5 * nxt.alpha * jnp.where(q > 0, (1 - q) / jnp.where(q > 0, q, 1.0), 1.0)
            return euler + half * (denoise(euler, nxt, nxt).x0 - x0)

        # The network is not called at sigma = 0.
        return jax.lax.cond(nxt.sigma > 0, corrected, lambda: euler), state

    def _churned(
        self, keys: Key[Array, "b"], x: Image, cur: Level, gamma: Float[Array, ""], path: Path
    ) -> tuple[Image, Level]:
        ratio = cur.sigma / cur.alpha
        inside = (cur.alpha > 0) & (self.churn_min <= ratio) & (ratio <= self.churn_max)
        # Where nothing is added, `cur` itself and not its round trip through the path.
        ratio = jnp.where(inside, ratio, 1.0)
        level = path(path.invert((1 + gamma) * ratio))
        added = jnp.sqrt(jnp.maximum(jnp.square(level.sigma / level.alpha) - jnp.square(ratio), 0.0))
        churned = level.alpha * (x / jnp.where(inside, cur.alpha, 1.0) + self.noise * added * normal_like(keys, x))
        return jax.tree.map(lambda a, b: jnp.where(inside, a, b), (churned, level), (x, cur))

    def nfe(self, num_steps: int) -> int:
        return 2 * num_steps - 1
