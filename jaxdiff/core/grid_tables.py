"""Grids that were found by optimisation: tables of sigma/alpha, for other numbers of steps log-linear between."""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Literal

import jax.numpy as jnp
import numpy as np

from jaxdiff.core.levels import check_high, check_low, check_steps, from_ratios
from jaxdiff.core.types import Level, Path

# Published ratios have four digits, so the ends of the path that they were made for are met to those.
_TOLERANCE = 1e-3


def _resampled(table: Sequence[float], count: int) -> np.ndarray:
    """`count` entries of the table, its logarithm being linear from entry to entry."""
    place = np.linspace(0, len(table) - 1, count)
    return np.exp(np.interp(place, np.arange(len(table)), np.log(table)))


def _levels(path: Path, ratios: np.ndarray, name: str, flag: str) -> Level:
    check_high(path, f"{name}'s first sigma/alpha", float(ratios[0]), flag, _TOLERANCE)
    check_low(path, f"{name}'s last sigma/alpha", float(ratios[-1]), flag, _TOLERANCE)
    return from_ratios(path, jnp.asarray(ratios, jnp.float32))


@dataclasses.dataclass(frozen=True)
class Table:
    """These sigma/alpha, then clean; with another number of steps, as many from the first to the last."""

    ratios: tuple[float, ...]
    """sigma/alpha at which the network is called: falling, above 0."""

    def __post_init__(self) -> None:
        ends = (math.inf, *self.ratios, 0.0)
        if not self.ratios or any(a <= b for a, b in itertools.pairwise(ends)):
            raise ValueError(f"ratios = {self.ratios} must be finite, above 0 and falling (--grid.ratios)")

    def __call__(self, path: Path, num_steps: int) -> Level:
        check_steps(num_steps)
        if len(self.ratios) == 1 < num_steps:
            raise ValueError(f"num_steps = {num_steps} is not allowed with a table of one level: 1 is (--steps)")
        return _levels(path, _resampled(self.ratios, num_steps), "the table", "--grid.ratios")


def _align_your_steps(model: str) -> tuple[float, ...]:
    """Ten steps: the last entry is the clean end of the model's own path."""
    return {
        "sd15": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
        "sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
        "deepfloyd-if": (160.41, 8.081, 3.315, 1.885, 1.207, 0.785, 0.553, 0.293, 0.186, 0.030, 0.006),
        "svd": (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
    }[model]


@dataclasses.dataclass(frozen=True)
class AlignYourSteps:
    """The published ten-step schedule of a model, its end being clean; log-linear for other numbers of steps.

    Raises: ValueError if the path does not reach the first level. Source: arXiv:2404.14507, Table 3.
    """

    model: Literal["sd15", "sdxl", "deepfloyd-if", "svd"] = "sd15"
    """Stable Diffusion 1.5, SDXL, DeepFloyd IF (stage 1, in pixels), Stable Video Diffusion."""

    def __call__(self, path: Path, num_steps: int) -> Level:
        check_steps(num_steps)
        # The network is not called at the table's end, which stands for clean.
        ratios = _resampled(_align_your_steps(self.model), num_steps + 1)[:-1]
        return _levels(path, ratios, self.model, "--grid.model")
