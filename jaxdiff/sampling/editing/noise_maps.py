"""Edit-friendly DDPM inversion: a noise for every step, which makes the ancestral sampler give a picture back.

Each level's x is drawn by itself, x_k = alpha_k x0 + sigma_k z_k, and not along a chain; what the sampler's mean lacks
of the next one is the step's map:

    m_k = x_{k+1} - mean(x_k),       mean(x) = alpha' x0(x) + sigma' q eps(x),       q = r'/r

With the source's words the maps lead back to the picture; with other words they carry its structure over. The paper
divides m by the step's standard deviation, which multiplies it again and depends on nothing else, and has none in the
last step, whose standard deviation is 0; here that step has what is left, so that the picture comes back exactly.
x_{k+1} is replaced by mean + m, so that rounding does not add up.

Source: arXiv:2304.06140, Alg. 1 and Sec. 3.3.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxdiff.core import gaussian
from jaxdiff.core.types import Denoise, Level
from jaxdiff.sampling.ddim import DDIM
from jaxdiff.sampling.editing.inversion import imposed
from jaxdiff.sampling.editing.sdedit import noised
from jaxdiff.sampling.editing.task import MaskUse, Task, first, tail
from jaxdiff.sampling.sample import fold, normal_like, sample
from jaxdiff.sampling.solver import Solver, State, decay, num_steps

Image = Float[Array, "b h w c"]
Maps = Float[Array, "n b h w c"]


def mean(x: Image, cur: Level, nxt: Level, denoise: Denoise) -> Image:
    """The mean of the ancestral step."""
    x0, eps, _ = denoise(x, cur, nxt)
    return gaussian.diffuse(nxt, x0, decay(cur, nxt) * eps)


def noise_maps(keys: Key[Array, "b"], x0: Image, levels: Level, denoise: Denoise) -> tuple[Image, Maps]:
    """(x at the first level, the map of each step down these levels)."""

    def step(x: Image, inputs: tuple) -> tuple[Image, Image]:
        number, cur, nxt = inputs
        drawn = gaussian.diffuse(nxt, x0, normal_like(fold(keys, number), x0))
        there = jax.lax.cond(cur.sigma > 0, lambda: mean(x, cur, nxt, denoise), lambda: drawn)
        return there + (drawn - there), drawn - there

    x = noised(keys, x0, first(levels))
    cur, nxt = jax.tree.map(lambda a: a[:-1], levels), jax.tree.map(lambda a: a[1:], levels)
    _, maps = jax.lax.scan(step, x, (jnp.arange(1, levels.alpha.shape[0]), cur, nxt))
    return x, maps


@dataclasses.dataclass(frozen=True)
class Replay:
    """Ancestral sampling with the noise of each step given, one denoising per step."""

    maps: Maps

    def init(self, x: Image, levels: Level) -> State:
        return jnp.int32(0)

    def step(
        self, keys: Key[Array, "b"], x: Image, state: State, cur: Level, nxt: Level, denoise: Denoise
    ) -> tuple[Image, State]:
        return mean(x, cur, nxt, denoise) + self.maps[state], state + 1

    def nfe(self, levels: Level) -> int:
        return int(num_steps(levels))


@dataclasses.dataclass(frozen=True)
class DDPMInversion:
    """The picture's noise maps under the source's words, replayed under the target's; other keys, other maps."""

    # 64 of 100 steps in the paper.
    strength: ClassVar[float] = 0.64
    mask: ClassVar[MaskUse] = "allowed"
    solver: ClassVar[Solver | None] = DDIM(eta=1.0)
    num: ClassVar[int] = 4

    def lay(self, levels: Level, strength: float) -> Level:
        return tail(levels, strength)

    def __call__(self, task: Task) -> Image:
        source, target = task.source, task.denoise
        if task.mask is not None:
            # Of both, so that the maps outside are those that lead to the picture.
            source, target = (imposed(task.image, task.mask)(denoise) for denoise in (source, target))
        x, maps = noise_maps(task.keys, task.image, task.levels, source)
        return sample(task.keys, x, task.levels, target, Replay(maps))

    def nfe(self, solver: Solver, levels: Level) -> int | None:
        return 2 * int(num_steps(levels))
