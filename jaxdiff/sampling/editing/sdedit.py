"""SDEdit: noise hides the details of a picture, and sampling makes them anew.

    x = alpha x0 + sigma z        at the level where the last steps begin; from there the solver as ever

Source: arXiv:2108.01073, Alg. 1-2.
"""

import dataclasses
from typing import ClassVar

from jaxtyping import Array, Float, Key

from jaxdiff.core import gaussian
from jaxdiff.core.types import Level
from jaxdiff.sampling.editing.task import MaskUse, Task, first, tail
from jaxdiff.sampling.sample import fold, initial, normal_like, sample
from jaxdiff.sampling.solver import Solver

Image = Float[Array, "b h w c"]


def noised(keys: Key[Array, "b"], x0: Image, level: Level) -> Image:
    """alpha x0 + sigma z with the noise that `initial` has; so at alpha = 0 it is `initial`."""
    return gaussian.diffuse(level, x0, normal_like(fold(keys, 0), x0))


@dataclasses.dataclass(frozen=True)
class SDEdit:
    """The picture is noised and sampled from there; other keys make other variations of it."""

    strength: ClassVar[float] = 0.6
    mask: ClassVar[MaskUse] = "none"
    solver: ClassVar[Solver | None] = None
    num: ClassVar[int] = 4

    def lay(self, levels: Level, strength: float) -> Level:
        return tail(levels, strength)

    def __call__(self, task: Task) -> Image:
        x = noised(task.keys, task.image, first(task.levels))
        return sample(task.keys, x, task.levels, task.denoise, task.solver)

    def nfe(self, solver: Solver, levels: Level) -> int | None:
        return solver.nfe(levels)


@dataclasses.dataclass(frozen=True)
class Generate:
    """A new picture of the shape of the old one, of which nothing else is used: large canvases, textures."""

    strength: ClassVar[float] = 1.0
    mask: ClassVar[MaskUse] = "none"
    solver: ClassVar[Solver | None] = None
    num: ClassVar[int] = 4

    def lay(self, levels: Level, strength: float) -> Level:
        return tail(levels, strength)

    def __call__(self, task: Task) -> Image:
        _, height, width, channels = task.image.shape
        x = initial(task.keys, (height, width, channels), first(task.levels))
        return sample(task.keys, x, task.levels, task.denoise, task.solver)

    def nfe(self, solver: Solver, levels: Level) -> int | None:
        return solver.nfe(levels)
