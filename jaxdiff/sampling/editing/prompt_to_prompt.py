"""Prompt-to-prompt: the source's attention maps keep the layout while the words change.

The source's and the target's pictures are sampled side by side from the same noise, which is the picture's own
(`inversion`). While the noise is above some level, the target's words that the source has too, or that stand in the
place of as many others, look where the source's do, and pixels look at the pixels that they do there.

Source: arXiv:2208.01626, Alg. 1 and Sec. 3.
"""

import dataclasses
import difflib
from collections.abc import Sequence
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxdiff.core.types import Level
from jaxdiff.sampling.ddim import DDIM
from jaxdiff.sampling.editing.inversion import Inverse, check_iterations, imposed, inverted
from jaxdiff.sampling.editing.task import MaskUse, Task, tail
from jaxdiff.sampling.sample import sample
from jaxdiff.sampling.solver import Solver, num_steps

Image = Float[Array, "b h w c"]


def aligned(source: Sequence[int], target: Sequence[int]) -> Int[np.ndarray, "n"]:
    """Of each of the target's tokens the place of the same one in the source, -1 where there is none.

    Words in place of as many others take theirs (the paper's word swap), added ones have none (its added phrase).
    Tokens below 0 are no tokens.
    """
    words = [[token for token in tokens if token >= 0] for tokens in (source, target)]
    found = np.full(len(target), -1, np.int32)
    for kind, a, b, c, d in difflib.SequenceMatcher(None, *words, autojunk=False).get_opcodes():
        if kind == "equal" or (kind == "replace" and b - a == d - c):
            found[c:d] = np.arange(a, b)
    return found


def ratio_after(levels: Level, share: float) -> Float[Array, ""]:
    """A sigma/alpha between the levels of the first `share` of the steps and the others."""
    ratios = levels.sigma / levels.alpha
    count = jnp.round(share * num_steps(levels)).astype(jnp.int32)
    last, after = ratios[jnp.maximum(count - 1, 0)], ratios[jnp.minimum(count, ratios.shape[0] - 1)]
    between = jnp.where(jnp.isinf(last), 2 * after, 0.5 * (last + after))
    return jnp.where(count > 0, between, jnp.inf)


@dataclasses.dataclass(frozen=True)
class PromptToPrompt:
    """The picture with other words, and its own attention maps for a part of the steps."""

    words: float = 0.8
    """Share of the steps in which words look where the source's do (the paper's tau, 0.8 there)."""
    pixels: float = 0.4
    """Share of the steps in which pixels look at the pixels that they look at in the source."""
    iterations: int = 2
    """Iterations of each step of the inversion; 0: plain."""

    strength: ClassVar[float] = 1.0
    mask: ClassVar[MaskUse] = "allowed"
    solver: ClassVar[Solver | None] = DDIM()
    num: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_iterations(self.iterations)
        if not (0 <= self.words <= 1 and 0 <= self.pixels <= 1):
            raise ValueError(
                f"words = {self.words}, pixels = {self.pixels} are not allowed: 0 to 1, shares of the steps (--method)"
            )

    def lay(self, levels: Level, strength: float) -> Level:
        return tail(levels, strength)

    def __call__(self, task: Task) -> Image:
        if task.paired is None:
            raise ValueError("prompt-to-prompt needs a network that attends to words (--method)")
        x = inverted(task, task.image, self.iterations)
        keys, twice, image = (jnp.concatenate([a, a]) for a in (task.keys, x, task.image))
        denoise = task.paired(jnp.stack([ratio_after(task.levels, share) for share in (self.words, self.pixels)]))
        if task.mask is not None:
            denoise = imposed(image, jnp.concatenate([task.mask, task.mask]))(denoise)
        return sample(keys, twice, task.levels, denoise, DDIM())[x.shape[0] :]

    def nfe(self, solver: Solver, levels: Level) -> int | None:
        return Inverse(self.iterations).nfe(levels) + 2 * DDIM().nfe(levels)
