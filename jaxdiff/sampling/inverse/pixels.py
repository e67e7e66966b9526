"""Operators on single pixels: masks, and colours lost.

mask    y = m x, m being 1 where a pixel is seen        singular values 0 and 1
grey    y = sum_c w_c x_c                               A A^T = sum_c w_c^2
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxdiff.sampling.inverse.operator import Arrays, Image, Linear, Measured, Shape, from_frame, from_svd

LUMA = (0.299, 0.587, 0.114)
"""Grey of red, green and blue. Source: ITU-R BT.601."""


@dataclasses.dataclass(frozen=True)
class Mask:
    """Pixels hidden at random, or those of the array "mask", which is 1 where the picture is to be made anew."""

    hidden: float = 0.5
    """Share of the pixels that is hidden, in (0, 1)."""
    seed: int = 0
    """Which of them."""

    def __post_init__(self) -> None:
        if not 0 < self.hidden < 1:
            raise ValueError(f"hidden = {self.hidden} is not allowed: between 0 and 1 (--operator mask)")

    def on(self, shape: Shape, arrays: Arrays) -> Linear:
        h, w, _ = shape
        if "mask" in arrays:
            return masked(shape, 1.0 - check_mask(arrays["mask"], shape))
        order = np.random.default_rng(self.seed).permutation(h * w)
        return masked(shape, (order >= round(self.hidden * h * w)).reshape(h, w).astype(np.float32))


@dataclasses.dataclass(frozen=True)
class Box:
    """A square hidden in the middle."""

    side: float = 0.5
    """Its side as a share of the picture's, in (0, 1)."""

    def __post_init__(self) -> None:
        if not 0 < self.side < 1:
            raise ValueError(f"side = {self.side} is not allowed: between 0 and 1 (--operator box)")

    def on(self, shape: Shape, arrays: Arrays) -> Linear:
        seen = np.ones(shape[:2], np.float32)
        high, wide = (max(1, round(self.side * n)) for n in seen.shape)
        top, left = (seen.shape[0] - high) // 2, (seen.shape[1] - wide) // 2
        seen[top : top + high, left : left + wide] = 0
        return masked(shape, seen)


@dataclasses.dataclass(frozen=True)
class Grey:
    """Colours lost: the luma of Rec. 601, which is what grey files hold."""

    def on(self, shape: Shape, arrays: Arrays) -> Linear:
        h, w, c = shape
        if c != len(LUMA):
            raise ValueError(f"operator grey is not allowed for pictures of {c} channels: it needs 3 (--operator)")
        weights = jnp.asarray(LUMA, jnp.float32)

        def forward(x: Image) -> Measured:
            return jnp.sum(weights * x, axis=-1, keepdims=True)

        return from_frame(shape, (h, w, 1), forward, lambda y: weights * y, float(np.sum(np.square(LUMA))))


def same(x: Image) -> Image:
    """x."""
    return x


def masked(shape: Shape, seen: Float[np.ndarray, "h w"]) -> Linear:
    """y = m x with m = `seen`, of 0 and 1."""
    m = seen[..., None]
    # The vectors of the decomposition are the pixels themselves.
    return from_svd(shape, shape, m, same, same, same, same, seen=m)


def check_mask(mask: np.ndarray, shape: Shape) -> Float[np.ndarray, "h w"]:
    """The mask as 0 and 1. Raises: ValueError where it is of another size, or of other numbers."""
    if mask.shape != shape[:2]:
        size = "x".join(str(n) for n in mask.shape[::-1])
        raise ValueError(f"a mask of {size} pixels does not fit pictures of {shape[1]}x{shape[0]} (--mask)")
    if not np.isin(mask, (0, 1)).all():
        raise ValueError("a mask must be of 0 and 1 alone: black where the picture stays, white elsewhere (--mask)")
    if mask.all():
        raise ValueError("a mask that hides the whole picture leaves no measurement (--mask)")
    return mask.astype(np.float32)
