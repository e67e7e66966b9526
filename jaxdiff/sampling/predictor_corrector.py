"""Predictor-corrector sampling: a solver's step, then Langevin dynamics at the level where it ended.

    x <- x + e score + sqrt(2 e) z,     e = 2 (snr |z| / |score|)**2

With score = -eps / sigma and e = sigma**2 d this reads

    x <- x + sigma (sqrt(2 d) z - d eps),     d = 2 (snr |z| / |eps|)**2

so that only sigma / alpha matters. The paper takes the norms' means over the batch, by which images depend on their
neighbours; here each image has its own. The paper's variance-preserving form multiplies e by 1 - beta of the step,
which is left out. Source: arXiv:2011.13456, Alg. 1-5.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxdiff.core.types import Denoise, Level
from jaxdiff.sampling.ancestral import Ancestral
from jaxdiff.sampling.ddim import DDIM
from jaxdiff.sampling.dpm_solver import DPMSolverPP
from jaxdiff.sampling.euler_maruyama import EulerMaruyama
from jaxdiff.sampling.heun import Heun
from jaxdiff.sampling.sample import normal_like
from jaxdiff.sampling.solver import State

Image = Float[Array, "b h w c"]


def _norm(x: Image) -> Float[Array, "b 1 1 1"]:
    return jnp.sqrt(jnp.sum(jnp.square(x), axis=(1, 2, 3), keepdims=True))


@dataclasses.dataclass(frozen=True)
class PredictorCorrector:
    """The predictor's denoisings, and `corrections` more at each level but the first and the clean one."""

    predictor: EulerMaruyama | Ancestral | DDIM | Heun | DPMSolverPP = EulerMaruyama()
    """What goes from level to level. EulerMaruyama is the paper's reverse diffusion, Ancestral the other."""
    corrections: int = 1
    """Langevin steps at each level (the paper's M)."""
    snr: float = 0.16
    """Signal-to-noise ratio of a Langevin step (the paper's r), which sets its size; 0.16 for VE, 0.01 for subVP."""

    def __post_init__(self) -> None:
        if self.corrections < 0:
            raise ValueError(f"corrections = {self.corrections} is not allowed: at least 0 (--solver.corrections)")
        if not 0 < self.snr < math.inf:
            raise ValueError(f"snr = {self.snr} must be a positive finite number (--solver.snr)")

    def init(self, x: Image, levels: Level) -> State:
        return self.predictor.init(x, levels)

    def step(
        self, keys: Key[Array, "b"], x: Image, state: State, cur: Level, nxt: Level, denoise: Denoise
    ) -> tuple[Image, State]:
        first, *others = jax.vmap(lambda key: jax.random.split(key, 1 + self.corrections), out_axes=1)(keys)
        x, state = self.predictor.step(first, x, state, cur, nxt, denoise)

        def corrected() -> Image:
            y = x
            for key in others:
                z, eps = normal_like(key, y), denoise(y, nxt, nxt).eps
                d = 2 * jnp.square(self.snr * _norm(z) / _norm(eps))
                y = y + nxt.sigma * (jnp.sqrt(2 * d) * z - d * eps)
            return y

        # The network is not called at sigma = 0.
        return jax.lax.cond(nxt.sigma > 0, corrected, lambda: x), state

    def nfe(self, levels: Level) -> int:
        return self.predictor.nfe(levels) + self.corrections * int(jnp.sum(levels.sigma[1:] > 0))
