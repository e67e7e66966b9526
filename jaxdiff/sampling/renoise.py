"""Renoise: keep the believed x0, and put fresh noise in place of eps. Multistep consistency sampling.

    x' = alpha' x0 + sigma' z

The paper's networks begin at a small sigma = epsilon, where its noise is sqrt(sigma'**2 - epsilon**2) z; here the
clean level is sigma = 0. Source: arXiv:2303.01469, Alg. 1.
"""

import dataclasses

from jaxtyping import Array, Float, Key

from jaxdiff.core import gaussian
from jaxdiff.core.types import Denoise, Level
from jaxdiff.sampling.sample import normal_like
from jaxdiff.sampling.solver import State, num_steps

Image = Float[Array, "b h w c"]


@dataclasses.dataclass(frozen=True)
class Renoise:
    """One denoising per step. For networks whose x0 is a sample (consistency models), not the mean of x0 given x."""

    def init(self, x: Image, levels: Level) -> State:
        return None

    def step(
        self, keys: Key[Array, "b"], x: Image, state: State, cur: Level, nxt: Level, denoise: Denoise
    ) -> tuple[Image, State]:
        return gaussian.diffuse(nxt, denoise(x, cur, nxt).x0, normal_like(keys, x)), None

    def nfe(self, levels: Level) -> int:
        return int(num_steps(levels))
