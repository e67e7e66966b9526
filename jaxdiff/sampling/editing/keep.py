"""Keeping a part of a picture while the rest is sampled: after every step what is kept is put in, as noisy as x is.

    x' = merge(solver's x',  alpha' y + sigma' z)        y: the picture, z: fresh noise

Replacement (inpainting)      merge(x, y) = y outside the mask, x inside
ILVR (reference structure)    merge(x, y) = x + phi(y - x),     phi: means of blocks, a projection

Replacement lets the inside follow the outside step by step, but not the outside of later steps: its law is not the
conditional one, which `repaint` comes closer to. ILVR's paper has a bicubic phi; with a projection the low
frequencies of the result are exactly the picture's.

Source: arXiv:2011.13456, App. I.2; arXiv:2201.09865, Eq. 8; arXiv:2108.02938, Alg. 1.
"""

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxdiff.core import gaussian
from jaxdiff.core.types import Denoise, Level
from jaxdiff.sampling.editing.sdedit import noised
from jaxdiff.sampling.editing.task import Mask, MaskUse, Task, first, tail
from jaxdiff.sampling.sample import fold, normal_like, sample
from jaxdiff.sampling.solver import Solver, State

Image = Float[Array, "b h w c"]

Merge = Callable[[Image, Image], Image]
"""``(x, y) -> x`` with what is kept of y, both at one level."""

KEPT = 0x6B
"""Folded into a step's keys for the noise of what is kept, so that the solver's own noise is what it would be."""


def outside(mask: Mask) -> Merge:
    """y where the mask is 0, exactly."""
    return lambda x, y: jnp.where(mask > 0.5, x, y)


def low_frequencies(factor: int) -> Merge:
    """The means over blocks of `factor` x `factor` pixels are y's; `factor` must divide the sides."""

    def low(x: Image) -> Image:
        b, h, w, c = x.shape
        blocks = x.reshape(b, h // factor, factor, w // factor, factor, c)
        return jnp.broadcast_to(blocks.mean((2, 4), keepdims=True), blocks.shape).reshape(x.shape)

    return lambda x, y: x + low(y - x)


@dataclasses.dataclass(frozen=True)
class Keep:
    """The solver's denoisings, no more. Where levels rise nothing is put in: what was kept is noised with the rest."""

    solver: Solver
    """What moves x."""
    picture: Image
    """What is kept of, clean."""
    merge: Merge
    """How."""
    until: float | Float[Array, ""] = 0.0
    """Steps that end below this sigma/alpha keep nothing."""

    def init(self, x: Image, levels: Level) -> State:
        return self.solver.init(x, levels)

    def step(
        self, keys: Key[Array, "b"], x: Image, state: State, cur: Level, nxt: Level, denoise: Denoise
    ) -> tuple[Image, State]:
        x, state = self.solver.step(keys, x, state, cur, nxt, denoise)
        there = gaussian.diffuse(nxt, self.picture, normal_like(fold(keys, KEPT), x))
        falls = nxt.sigma * cur.alpha <= nxt.alpha * cur.sigma
        keeps = falls & (nxt.sigma >= self.until * nxt.alpha)
        return jnp.where(keeps, self.merge(x, there), x), state

    def nfe(self, levels: Level) -> int | None:
        return self.solver.nfe(levels)


@dataclasses.dataclass(frozen=True)
class Replace:
    """What lies outside the mask is replaced by the picture, noised, after every step."""

    strength: ClassVar[float] = 1.0
    mask: ClassVar[MaskUse] = "needed"
    solver: ClassVar[Solver | None] = None
    num: ClassVar[int] = 4

    def lay(self, levels: Level, strength: float) -> Level:
        return tail(levels, strength)

    def __call__(self, task: Task) -> Image:
        return kept(task, task.solver, outside(asked_mask(task)))

    def nfe(self, solver: Solver, levels: Level) -> int | None:
        return solver.nfe(levels)


@dataclasses.dataclass(frozen=True)
class ILVR:
    """A new picture with the colours and the rough structure of the given one."""

    factor: int = 8
    """Side of the blocks whose means are kept, in the network's pixels."""
    until: float = 0.0
    """Steps that end below this sigma/alpha are free; 0: none."""

    strength: ClassVar[float] = 1.0
    mask: ClassVar[MaskUse] = "none"
    solver: ClassVar[Solver | None] = None
    num: ClassVar[int] = 4

    def __post_init__(self) -> None:
        if self.factor < 1 or not self.until >= 0:
            raise ValueError(
                f"factor = {self.factor}, until = {self.until} are not allowed: at least 1 and 0 (--method)"
            )

    def check_size(self, height: int, width: int) -> None:
        """Raises: ValueError where blocks do not fill pictures of this size."""
        if height % self.factor or width % self.factor:
            raise ValueError(f"factor = {self.factor} does not divide pictures of {width} x {height} (--method)")

    def lay(self, levels: Level, strength: float) -> Level:
        return tail(levels, strength)

    def __call__(self, task: Task) -> Image:
        self.check_size(*task.image.shape[1:3])
        return kept(task, task.solver, low_frequencies(self.factor), self.until)

    def nfe(self, solver: Solver, levels: Level) -> int | None:
        return solver.nfe(levels)


def kept(task: Task, solver: Solver, merge: Merge, until: float = 0.0) -> Image:
    """Samples from the noised picture, of which `merge` keeps something."""
    x = noised(task.keys, task.image, first(task.levels))
    return sample(task.keys, x, task.levels, task.denoise, Keep(solver, task.image, merge, until))


def asked_mask(task: Task) -> Mask:
    """The task's mask. Raises: ValueError where there is none."""
    if task.mask is None:
        raise ValueError("this method needs a mask, white where the picture is to be made anew (--mask)")
    return task.mask
