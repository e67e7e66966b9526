"""Euler-Maruyama on the reverse-time SDE, stepped in r**2.

In y = x / alpha and r = sigma / alpha every path is dy = sqrt(d(r**2)) dw, whose reverse has the drift
-score d(r**2) with score = -eps / r. One step from r to r' < r:

    y' = y - (r**2 - r'**2) eps / r + sqrt(r**2 - r'**2) z
    x' = alpha' x0 + sigma' (r'/r) eps + alpha' sqrt(r**2 - r'**2) z

Source: arXiv:2011.13456, Eq. 6 (the reverse SDE) and Sec. 4.1.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxdiff.core import gaussian
from jaxdiff.core.types import Denoise, Level
from jaxdiff.sampling.sample import normal_like
from jaxdiff.sampling.solver import State, decay, num_steps

Image = Float[Array, "b h w c"]


@dataclasses.dataclass(frozen=True)
class EulerMaruyama:
    """One denoising per step; weak order 1, so use many steps. The step to sigma = 0 returns x0.

    A step's noise exceeds the marginal's when sigma/alpha falls by a large factor, as it does near alpha = 0:
    start the grid below t_max. A step from alpha = 0 itself, where the SDE's diffusion is infinite, adds the
    noise of `DDIM(eta=1)`.
    """

    def init(self, x: Image, levels: Level) -> State:
        return None

    def step(
        self, keys: Key[Array, "b"], x: Image, state: State, cur: Level, nxt: Level, denoise: Denoise
    ) -> tuple[Image, State]:
        x0, eps, _ = denoise(x, cur, nxt)
        q = decay(cur, nxt)
        # alpha' sqrt(r**2 - r'**2) = sigma' sqrt(1/q**2 - 1).
        safe = jnp.where(q > 0, q, 1.0)
        std = nxt.sigma * jnp.where(q > 0, jnp.sqrt(jnp.maximum(1 - q * q, 0.0)) / safe, 1.0)
        return gaussian.diffuse(nxt, x0, q * eps) + std * normal_like(keys, x), None

    def nfe(self, levels: Level) -> int:
        return int(num_steps(levels))
