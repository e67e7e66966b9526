"""The variances beta_1 ... beta_N of a DDPM chain's forward steps: values num_steps -> float64[num_steps].

alpha_bar_k = prod_{i <= k} (1 - beta_i) is the share of the picture's variance that is left after k steps.
"""

import dataclasses
from typing import Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class Betas(Protocol):
    """num_steps -> the variances beta_1 ... beta_N of the forward steps, float64."""

    def __call__(self, num_steps: int) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class LinearBetas:
    """DDPM's linear variances, stretched to other lengths by 1000/N.

    Fewer than 21 steps are refused: betas would reach 1. Source: arXiv:2006.11239, Sec. 4.
    """

    first: float = 1e-4
    """beta_1 at 1000 steps."""
    last: float = 0.02
    """beta_N at 1000 steps."""

    def __call__(self, num_steps: int) -> np.ndarray:
        return np.linspace(self.last, self.first, num_steps)[::-1] * (1000 / num_steps)


@dataclasses.dataclass(frozen=True)
class CosineBetas:
    """iDDPM's cosine schedule. Source: arXiv:2102.09672, Eq. 17."""

    offset: float = 0.008
    """The paper's s."""
    largest: float = 0.999
    """Betas are clipped at this."""

    def __call__(self, num_steps: int) -> np.ndarray:
        t = np.arange(num_steps + 1) / num_steps
        alpha_bar = np.cos((t + self.offset) / (1 + self.offset) * np.pi / 2) ** 2
        return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], self.largest)


@dataclasses.dataclass(frozen=True)
class ScaledLinearBetas:
    """Variances whose square roots are even: those of Stable Diffusion, not stretched to other lengths.

    Source: arXiv:2112.10752, the published code.
    """

    first: float = 0.00085
    """beta_1."""
    last: float = 0.012
    """beta_N."""

    def __call__(self, num_steps: int) -> np.ndarray:
        return np.linspace(self.first**0.5, self.last**0.5, num_steps) ** 2


@dataclasses.dataclass(frozen=True)
class ZeroTerminal:
    """Other variances, moved so that next to nothing of the picture is left at the end: alpha_bar_N <= 2**-24.

    sqrt(alpha_bar) is shifted and stretched so that its first value stays and its last would be 0, where a prediction
    of the noise tells nothing. Source: arXiv:2305.08891, Alg. 1.
    """

    betas: LinearBetas | ScaledLinearBetas | CosineBetas = ScaledLinearBetas()
    """The variances that are moved."""

    def __call__(self, num_steps: int) -> np.ndarray:
        root = np.sqrt(np.cumprod(1 - self.betas(num_steps)))
        bar = np.square((root - root[-1]) * (root[0] / (root[0] - root[-1])))
        bar[-1] = min(2.0**-24, bar[-2] / 4)
        return 1 - bar / np.append(1.0, bar[:-1])


AnyBetas = LinearBetas | ScaledLinearBetas | CosineBetas | ZeroTerminal
"""The variances that a `DiscreteVP` may have."""
