"""RePaint: sampling goes back up, again and again, so that the inside of a mask can agree with the outside.

The levels fall to one, rise by `jump` levels and fall again, `times` falls in all over each stretch:

    places (levels before the clean one)    ... 4 3 2   4 3 2   4 3 2 1 0   2 1 0      jump = 2, times = 2

Falls are the solver's with replacement (`keep`), rises the forward process (`Restart`). The paper rises level by
level; one rise over all of them has the same law and is one step. It rises from the clean picture as well, and so
does this.

Source: arXiv:2201.09865, Alg. 1 and App. B.
"""

import dataclasses
from typing import ClassVar

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from jaxdiff.core.types import Level
from jaxdiff.sampling.editing.keep import asked_mask, kept, outside
from jaxdiff.sampling.editing.task import MaskUse, Task, last_steps
from jaxdiff.sampling.restart import Falls, Restart
from jaxdiff.sampling.solver import Solver

Image = Float[Array, "b h w c"]


def places(num_steps: int, jump: int, times: int) -> Int[np.ndarray, "n"]:
    """The levels that are visited, by their places 0 ... num_steps in a falling grid.

    A stretch begins at the clean level and at every `jump` levels above it from which a rise stays below the first
    level, as in the paper's schedule.
    """
    found, above = [0], 0
    for place in range(1, num_steps + 1):
        found.append(place)
        above = num_steps - place  # levels between here and the clean one
        if above % jump == 0 and above + jump < num_steps:
            found += [*range(place - jump, place + 1)] * (times - 1)
    return np.array(found)


def rewound(levels: Level, jump: int, times: int) -> Level:
    """Falling levels with every stretch of `jump` of them visited `times` times. Raises: ValueError."""
    if jump < 1 or times < 1:
        raise ValueError(f"jump = {jump}, times = {times} are not allowed: at least 1 (--method)")
    order = places(levels.alpha.shape[0] - 1, jump, times)
    return jax.tree.map(lambda a: a[order], levels)


@dataclasses.dataclass(frozen=True)
class RePaint:
    """Replacement with resampling."""

    jump: int = 10
    """Levels of a rise (the paper's jump length j)."""
    times: int = 5
    """Falls over each stretch (the paper's number of resamplings r, 10 there); 1: `Replace`."""

    strength: ClassVar[float] = 1.0
    mask: ClassVar[MaskUse] = "needed"
    solver: ClassVar[Solver | None] = None
    num: ClassVar[int] = 4

    def lay(self, levels: Level, strength: float) -> Level:
        return rewound(last_steps(levels, strength), self.jump, self.times)

    def __call__(self, task: Task) -> Image:
        return kept(task, restart(task.solver), outside(asked_mask(task)))

    def nfe(self, solver: Solver, levels: Level) -> int | None:
        return restart(solver).nfe(levels)


def restart(solver: Solver) -> Restart:
    """The solver, made to rise. Raises: ValueError for one that does not begin anew after a rise."""
    if not isinstance(solver, Falls):
        raise ValueError(
            f"{type(solver).__name__} cannot go up again, as this method does: --solver ddpm, ddim, heun, dpmpp-2m, "
            "dpm-2 or dpmpp-2s"
        )
    return Restart(solver)
