"""Values in units (Hounsfield units, stored 12- or 16-bit values) and what a network sees of them, there and back.

    x = 2 (value - low) / (high - low) - 1,         value = low + (x + 1) / 2 (high - low)

What lies outside the window is clipped, so there and back is exact inside it, up to rounding. Where low is above high,
small values are white.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Shaped


class Window(NamedTuple):
    """The values that become -1 (black) and 1 (white)."""

    low: float
    high: float

    @property
    def swapped(self) -> "Window":
        """Black for white."""
        return Window(self.high, self.low)


def window_of(ends: Sequence[float] | None) -> Window | None:
    """The window of --data.window; None where there is none. Raises: ValueError."""
    if ends is None:
        return None
    window = Window(*map(float, ends))
    if not (np.isfinite(window).all() and window.low < window.high):
        raise ValueError(
            f"--data.window must be two finite numbers, black and then white, the first below the second, got {ends!r}"
        )
    return window


def to_network(values: Shaped[np.ndarray, "..."], window: Window) -> Float32[np.ndarray, "..."]:
    """Values in units as the network sees them: in [-1, 1], clipped."""
    x = 2 * (values.astype(np.float64) - window.low) / (window.high - window.low) - 1
    return np.clip(x, -1, 1).astype(np.float32)


def to_units(x: Float[np.ndarray, "..."], window: Window) -> Float32[np.ndarray, "..."]:
    """What the network says, in units."""
    return (window.low + (x.astype(np.float64) + 1) / 2 * (window.high - window.low)).astype(np.float32)


def range_of(values: Shaped[np.ndarray, "..."], outside: float = 0.0) -> Window:
    """From the least value to the greatest, or between the quantiles that leave a share `outside` at either end.

    Where all values are alike, the window reaches from them to 1 more.
    """
    low, high = (float(v) for v in np.quantile(values, (outside, 1 - outside)))
    return Window(low, high if high > low else low + 1)


def check_finite(values: Float[np.ndarray, "..."]) -> None:
    """Raises ValueError, naming the first, where values are not numbers."""
    bad = ~np.isfinite(values)
    if bad.any():
        first = [int(i) for i in np.argwhere(bad)[0]]
        kind = "NaN" if np.isnan(values[tuple(first)]) else "infinite"
        raise ValueError(
            f"{int(bad.sum())} of its {values.size} values are no numbers, the first, at {first}, is {kind}"
        )
