"""DDIM inversion: the noise from which the deterministic sampler makes a picture.

The sampler's step from the noisier level to the cleaner one is, with y = x / alpha and r = sigma / alpha,

    y = y' + (r - r') eps(x', r')          so          y' = y + (r' - r) eps(x', r')

with x' on both sides. Plain inversion puts eps(x, r), known already, in its place; each further iteration puts the x'
found so far. At high noise the same equation is solved for x0(x', r'), which there depends less on x':

    y' = x0(x') + r' (x - alpha x0(x')) / sigma

(whichever has the smaller slope for data of unit variance), and from the clean level, where a network cannot be
asked, even plain inversion asks at r'. The iterations make the round trip exact for any number of steps, where they
converge: without guidance they do.

Sources: arXiv:2010.02502, Sec. 4.3 and 5.3; arXiv:2305.16807, Sec. 3 (the negative prompt as the source's);
arXiv:2403.14602, Alg. 1 (the iterations).
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxdiff.core import gaussian
from jaxdiff.core.types import Denoise, Estimate, Level, Transform
from jaxdiff.sampling.ddim import DDIM
from jaxdiff.sampling.editing.task import Mask, MaskUse, Task, tail
from jaxdiff.sampling.sample import sample
from jaxdiff.sampling.solver import Solver, State, num_steps

Image = Float[Array, "b h w c"]


@dataclasses.dataclass(frozen=True)
class Inverse:
    """`DDIM()` undone, on rising levels: 1 + `iterations` denoisings per step."""

    iterations: int = 0
    """How often the equation's right side is taken anew; 0 is plain DDIM inversion, of order 1."""

    def init(self, x: Image, levels: Level) -> State:
        return None

    def step(
        self, keys: Key[Array, "b"], x: Image, state: State, cur: Level, nxt: Level, denoise: Denoise
    ) -> tuple[Image, State]:
        noisy = cur.sigma * nxt.sigma > cur.alpha * nxt.alpha
        some = jnp.where(cur.sigma > 0, cur.sigma, 1.0)

        def improved(i: Int[Array, ""], found: Image) -> Image:
            near = (i == 0) & (cur.sigma > 0)
            at, asked = jax.tree.map(lambda a, b: jnp.where(near, a, b), (cur, x), (nxt, found))
            x0, eps, _ = denoise(asked, at, at)
            by_eps = (x - cur.sigma * eps) / cur.alpha, eps
            by_x0 = x0, (x - cur.alpha * x0) / some
            return gaussian.diffuse(nxt, *jax.tree.map(lambda a, b: jnp.where(noisy, a, b), by_x0, by_eps))

        return jax.lax.fori_loop(0, 1 + self.iterations, improved, nxt.alpha / cur.alpha * x), None

    def nfe(self, levels: Level) -> int:
        return (1 + self.iterations) * int(num_steps(levels))


def risen(levels: Level) -> Level:
    """The levels from the last to the first."""
    return jax.tree.map(lambda a: a[::-1], levels)


def inverted(task: Task, image: Image, iterations: int) -> Image:
    """The noise of the pictures, at the first of the task's levels."""
    return sample(task.keys, image, risen(task.levels), task.source, Inverse(iterations))


def imposed(image: Image, mask: Mask) -> Transform:
    """The belief outside the mask is the picture itself, and eps follows; x keeps the noise that it has there."""

    def transform(denoise: Denoise) -> Denoise:
        def believed(x: Image, cur: Level, nxt: Level) -> Estimate:
            x0, _, v = denoise(x, cur, nxt)
            return gaussian.from_x0(cur, x, jnp.where(mask > 0.5, x0, image), v)

        return believed

    return transform


def slerp(a: Image, b: Image, place: Float[Array, "b"]) -> Image:
    """From a (place 0) to b (place 1) along the great circle, image by image; noise keeps its norm.

        sin((1 - u) t) / sin(t) a + sin(u t) / sin(t) b,       t the angle between a and b

    Source: arXiv:2010.02502, App. D.5.
    """
    u, axes = place[:, None, None, None], (1, 2, 3)
    dot = jnp.sum(a * b, axes, keepdims=True)
    norms = jnp.sqrt(jnp.sum(a * a, axes, keepdims=True) * jnp.sum(b * b, axes, keepdims=True))
    angle = jnp.arccos(jnp.clip(dot / jnp.maximum(norms, 1e-30), -1.0, 1.0))
    small = jnp.sin(angle) < 1e-4  # nearly one direction, or opposite ones, between which any circle is great
    safe = jnp.where(small, 1.0, angle)
    weights = [jnp.where(small, v, jnp.sin(v * safe) / jnp.sin(safe)) for v in (1 - u, u)]
    return weights[0] * a + weights[1] * b


@dataclasses.dataclass(frozen=True)
class DDIMInversion:
    """The noise of the picture under the source's words, sampled under the target's.

    Where both are guided, the reference of guidance should be the source's words (negative-prompt inversion): then the
    source's own words give the picture back at any scale.
    """

    iterations: int = 2
    """Iterations of each step of the inversion; 0: plain."""

    strength: ClassVar[float] = 1.0
    mask: ClassVar[MaskUse] = "allowed"
    solver: ClassVar[Solver | None] = DDIM()
    num: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_iterations(self.iterations)

    def lay(self, levels: Level, strength: float) -> Level:
        return tail(levels, strength)

    def __call__(self, task: Task) -> Image:
        x = inverted(task, task.image, self.iterations)
        denoise = task.denoise if task.mask is None else imposed(task.image, task.mask)(task.denoise)
        return sample(task.keys, x, task.levels, denoise, DDIM())

    def nfe(self, solver: Solver, levels: Level) -> int | None:
        return Inverse(self.iterations).nfe(levels) + DDIM().nfe(levels)


@dataclasses.dataclass(frozen=True)
class Interpolate:
    """What lies between two pictures: their noises are interpolated by `slerp`, and sampled."""

    iterations: int = 2
    """Iterations of each step of the inversion; 0: plain."""

    strength: ClassVar[float] = 1.0
    mask: ClassVar[MaskUse] = "none"
    solver: ClassVar[Solver | None] = DDIM()
    num: ClassVar[int] = 8

    def __post_init__(self) -> None:
        check_iterations(self.iterations)

    def lay(self, levels: Level, strength: float) -> Level:
        return tail(levels, strength)

    def __call__(self, task: Task) -> Image:
        if task.other is None or task.place is None:
            raise ValueError("interpolation needs a second picture (--image2)")
        both = jnp.stack([task.image, task.other])
        first, second = jax.lax.map(lambda image: inverted(task, image, self.iterations), both)
        return sample(task.keys, slerp(first, second, task.place), task.levels, task.denoise, DDIM())

    def nfe(self, solver: Solver, levels: Level) -> int | None:
        return 2 * Inverse(self.iterations).nfe(levels) + DDIM().nfe(levels)


def check_iterations(iterations: int) -> None:
    """Raises: ValueError."""
    if not 0 <= iterations <= 1000:
        raise ValueError(f"iterations = {iterations} is not allowed: 0 (plain inversion) to 1000 (--method)")
