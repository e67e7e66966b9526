"""DDIM: keep what the denoiser believes, put it at the next level.

    x' = alpha' x0 + sigma' (sqrt(1 - f) eps + sqrt(f) z),     f = eta**2 (1 - (r'/r)**2),  r = sigma / alpha

For a variance-preserving path sigma' sqrt(f) is the paper's eta sqrt((1-a')/(1-a)) sqrt(1 - a/a') with
a = alpha**2; this form holds on every path and stays finite at alpha = 0. eta = 0 is Euler's method in
sigma/alpha, and so Euler for EDM's ODE and for rectified flow. eta = 1 is DDPM's ancestral step with the
posterior's variance.

Source: arXiv:2010.02502, Eq. 12 and 16.
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
class DDIM:
    """One denoising per step; order 1. Rising levels give DDIM inversion (eta = 0)."""

    eta: float = 0.0
    """Share of fresh noise, in [0, 1]: 0 is deterministic, 1 is DDPM's ancestral sampling."""

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta = {self.eta} is not allowed: 0 (deterministic) to 1 (--solver.eta)")

    def init(self, x: Image, levels: Level) -> State:
        return None

    def step(
        self, keys: Key[Array, "b"], x: Image, state: State, cur: Level, nxt: Level, denoise: Denoise
    ) -> tuple[Image, State]:
        x0, eps, _ = denoise(x, cur, nxt)
        if self.eta > 0:
            # Rising levels have no posterior variance: no fresh noise there.
            fresh = self.eta**2 * jnp.maximum(1 - jnp.square(decay(cur, nxt)), 0.0)
            eps = jnp.sqrt(1 - fresh) * eps + jnp.sqrt(fresh) * normal_like(keys, x)
        return gaussian.diffuse(nxt, x0, eps), None

    def nfe(self, levels: Level) -> int:
        return int(num_steps(levels))
