"""DDPM's ancestral sampling: a draw from the posterior of the step, x0 being what is believed.

With r = sigma / alpha and q = r'/r the posterior q(x' | x, x0) has mean alpha' x0 + sigma' q eps and variance
beta_tilde = sigma'**2 (1 - q**2); the forward step's is beta = sigma**2 - (alpha/alpha')**2 sigma'**2
= sigma**2 (1 - q**2), for a variance-preserving path 1 - (alpha/alpha')**2. So

    log variance = u log(beta) + (1 - u) log(beta_tilde)
    x' = alpha' x0 + sigma' q eps + sigma**u sigma'**(1 - u) sqrt(1 - q**2) z

Source: arXiv:2006.11239, Alg. 2 and Sec. 3.2 (u = 0 or 1); arXiv:2102.09672, Eq. 15 (u learned).
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
class Ancestral:
    """One denoising per step; weak order 1. The step to sigma = 0 returns x0, without noise."""

    u: float | None = 0.0
    """The variance: 0 is small (the posterior's, `DDIM(eta=1)`), 1 is large (the forward step's, in the units of the
    grid's path), none is the network's own, which must have learned it."""

    def __post_init__(self) -> None:
        if self.u is not None and not 0 <= self.u <= 1:
            raise ValueError(f"u = {self.u} is not allowed: 0 (small) to 1 (large), or none: learned (--solver.u)")

    def init(self, x: Image, levels: Level) -> State:
        return None

    def step(
        self, keys: Key[Array, "b"], x: Image, state: State, cur: Level, nxt: Level, denoise: Denoise
    ) -> tuple[Image, State]:
        x0, eps, v = denoise(x, cur, nxt)
        if self.u is not None:
            u = jnp.float32(self.u)
        elif v is not None:
            u = 0.5 * (v + 1)
        else:
            raise ValueError("u = None is not allowed: this network has learned no variance, 0 to 1 are (--solver.u)")
        # A rising level has no posterior: eps is kept, as by DDIM.
        q = jnp.minimum(decay(cur, nxt), 1.0)
        std = jnp.sqrt(1 - jnp.square(q)) * cur.sigma**u * jnp.where(nxt.sigma > 0, nxt.sigma, 1.0) ** (1 - u)
        mean = gaussian.diffuse(nxt, x0, q * eps)
        return mean + jnp.where(nxt.sigma > 0, std, 0.0) * normal_like(keys, x), None

    def nfe(self, levels: Level) -> int:
        return int(num_steps(levels))
