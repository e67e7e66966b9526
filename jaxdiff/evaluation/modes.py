"""Which modes a generator reaches, and how evenly: for data whose modes are known and equally likely.

    KL(p || uniform) = sum_k p_k log(K p_k),        0 (even) to log K (one mode), in nats

p is the share of the generated samples in each of the K modes: the reverse KL of the literature. On Stacked-MNIST
(three digits, one per colour, K = 1000) the mode is the number that a classifier reads. The shares of n samples of
an even generator give about (K - 1) / (2 n), not 0.

Source: arXiv:1705.07761 (VEEGAN), arXiv:1712.04086 (PacGAN).
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


class Modes(NamedTuple):
    """covered: modes with a sample. reverse_kl: in nats. in_mode: the share of samples that belong to a mode."""

    covered: int
    reverse_kl: float
    in_mode: float


def modes(mode: Int[np.ndarray, "n"], num_modes: int = 1000) -> Modes:
    """Modes covered by samples of the modes 0 to num_modes - 1; -1 is a sample of none, left out of the shares.

    Without any sample in a mode the divergence is nan. Raises: ValueError if a number is out of range.
    """
    if not mode.size:
        raise ValueError("0 samples cover no modes: at least 1 is needed (--num)")
    if mode.min() < -1 or mode.max() >= num_modes:
        bad = mode.min() if mode.min() < -1 else mode.max()
        raise ValueError(f"mode {bad} is not allowed: 0 to {num_modes - 1}, or -1 for none")
    counts = np.bincount(mode[mode >= 0], minlength=num_modes)
    inside = int(counts.sum())
    if not inside:
        return Modes(0, float("nan"), 0.0)
    p = counts[counts > 0] / inside
    return Modes(len(p), float(np.sum(p * np.log(p * num_modes))), inside / len(mode))


def nearest(
    samples: Float[np.ndarray, "n d"], centres: Float[np.ndarray, "k d"], radius: float
) -> Int[np.ndarray, "n"]:
    """The number of the nearest centre, or -1 farther than `radius` from it: the modes of a grid of Gaussians.

    The literature's radius is three standard deviations.
    """
    squared = np.square(samples[:, None].astype(np.float64) - centres).sum(axis=-1)
    closest = squared.argmin(axis=1)
    return np.where(squared.min(axis=1) <= radius**2, closest, -1)
