"""What a method of editing is, and what it is given."""

from collections.abc import Callable
from typing import ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Array, Float, Key

from jaxdiff.core import grids
from jaxdiff.core.types import Denoise, Level
from jaxdiff.sampling.solver import Solver, num_steps

Image = Float[Array, "b h w c"]
Mask = Float[Array, "b h w 1"]
"""1 where the picture is to be made anew, 0 where it stays."""


MaskUse = Literal["none", "allowed", "needed"]
"""Whether a method takes a mask."""


class Task(NamedTuple):
    """Pictures to be edited, and what is asked about them."""

    keys: Key[Array, "b"]
    """One for each picture, as `sample` takes them."""
    image: Image
    """The pictures, clean."""
    levels: Level
    """The levels that `Method.lay` has laid."""
    denoise: Denoise
    """Told of what the result shall be."""
    source: Denoise
    """Told of what the pictures show, and not guided unless that is asked for."""
    solver: Solver
    mask: Mask | None = None
    other: Image | None = None
    """Second pictures, where two are interpolated."""
    place: Float[Array, "b"] | None = None
    """How far from the first to the second, in [0, 1]."""
    paired: Callable[[Float[Array, "2"]], Denoise] | None = None
    """(sigma/alpha down to which words, and pixels, have the source's attention maps) -> a denoiser of twice as many
    pictures, the first half told of the source."""


@runtime_checkable
class Method(Protocol):
    """A way to edit pictures. Frozen dataclasses."""

    strength: ClassVar[float]
    """The share of the steps that is usual."""
    mask: ClassVar[MaskUse]
    solver: ClassVar[Solver | None]
    """The only solver with which it works; None: the task's."""
    num: ClassVar[int]
    """How many results of a picture are usual: 1 where nothing is left to chance."""

    def lay(self, levels: Level, strength: float) -> Level:
        """The levels that it visits, made of those of a whole sampling; concrete."""
        ...

    def __call__(self, task: Task) -> Image:
        """The edited pictures, clean."""
        ...

    def nfe(self, solver: Solver, levels: Level) -> int | None:
        """Network calls for a picture; None if that differs by picture."""
        ...


def tail(levels: Level, strength: float) -> Level:
    """The last int(n * strength) of the n steps of falling levels, at least one, and clean levels up to the old length.

    So one compilation serves all strengths; levels that do not end clean are only cut. This is the rule of published
    pipelines, of which strength is a share of the steps and not of time. Source: arXiv:2108.01073, Sec. 3.2 (t0).

    Raises: ValueError if `strength` is outside (0, 1].
    """
    kept, last = last_steps(levels, strength), levels.alpha.shape[0] - 1
    return grids.pad(kept, last) if float(kept.sigma[-1]) == 0 else kept


def last_steps(levels: Level, strength: float) -> Level:
    """`tail` without what fills it up."""
    if not 0 < strength <= 1:
        raise ValueError(f"strength = {strength:g} is not allowed: above 0, at most 1 (--strength)")
    steps = int(num_steps(levels))
    first = steps - max(1, int(steps * strength + 1e-6))  # 0.58 * 50 is 28.999... in floating point
    return Level(levels.alpha[first : steps + 1], levels.sigma[first : steps + 1])


def first(levels: Level) -> Level:
    """The level where sampling starts."""
    return Level(levels.alpha[0], levels.sigma[0])
