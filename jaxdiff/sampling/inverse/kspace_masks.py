"""Which places of k-space a scan visits: 1 where it does, the middle (frequency 0) at (h // 2, w // 2).

All keep `centre` of k-space whole, and `acceleration` is the number of places over the number of those visited.
"""

import numpy as np
from jaxtyping import Bool, Float

GOLDEN = np.pi * (np.sqrt(5) - 1) / 2
"""The angle between spokes, after which any number of them is nearly even. Source: Winkelmann et al., 2007."""


def cartesian(h: int, w: int, acceleration: float, centre: float, seed: int) -> Float[np.ndarray, "h w"]:
    """Whole columns: the middle ones, and others at random."""
    whole = check_centre(round(centre * w), w / acceleration, centre)
    first = w // 2 - whole // 2
    middle = np.arange(first, first + whole)
    others = np.setdiff1d(np.arange(w), middle)
    more = np.random.default_rng(seed).permutation(others)[: round(w / acceleration) - whole]
    columns = np.zeros(w, np.float32)
    columns[np.concatenate([middle, more])] = 1
    return np.broadcast_to(columns, (h, w)).copy()


def radial(h: int, w: int, acceleration: float) -> Float[np.ndarray, "h w"]:
    """Spokes through the middle, each a golden angle on, their points moved to the nearest places of the grid: as many
    spokes as are needed."""
    mask, number = np.zeros((h, w), np.float32), 0
    places = np.linspace(-1, 1, 4 * max(h, w)) * max(h, w) / 2
    while mask.sum() < h * w / acceleration:
        angle = number * GOLDEN
        rows = np.round(h // 2 + places * np.sin(angle) * h / max(h, w)).astype(int)
        columns = np.round(w // 2 + places * np.cos(angle) * w / max(h, w)).astype(int)
        inside = (rows >= 0) & (rows < h) & (columns >= 0) & (columns < w)
        mask[rows[inside], columns[inside]] = 1
        number += 1
    return mask


def poisson_disc(h: int, w: int, acceleration: float, centre: float, seed: int) -> Float[np.ndarray, "h w"]:
    """Places that keep a distance from each other, which grows away from the middle: darts thrown in a random order.

    The distances are chosen such that just enough darts stick. Source: Cook, 1986 (Poisson discs).
    """
    rows, columns = np.mgrid[:h, :w]
    radius = np.hypot((rows - h // 2) / (h / 2), (columns - w // 2) / (w / 2))
    inside = (np.abs(rows - h // 2) < centre * h / 2) & (np.abs(columns - w // 2) < centre * w / 2)
    wanted = round(h * w / acceleration) - check_centre(int(inside.sum()), h * w / acceleration, centre)
    order = np.random.default_rng(seed).permutation(np.flatnonzero(~inside.ravel()))
    low, high = 0.0, float(max(h, w))
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if _darts(order, middle * (0.3 + radius), wanted).size == wanted else (low, middle)
    mask = inside.astype(np.float32)
    mask.ravel()[_darts(order, low * (0.3 + radius), wanted)] = 1
    return mask


def _darts(order: np.ndarray, reach: Float[np.ndarray, "h w"], wanted: int) -> np.ndarray:
    """The first `wanted` of the places in `order` that no earlier one is within its reach of."""
    h, w = reach.shape
    free: Bool[np.ndarray, "h w"] = np.ones((h, w), bool)
    found = []
    for place in order:
        row, column = divmod(int(place), w)
        if not free[row, column]:
            continue
        found.append(place)
        if len(found) == wanted:
            break
        r = reach[row, column]
        n = int(r)
        top, left = max(row - n, 0), max(column - n, 0)
        near = np.s_[top : row + n + 1, left : column + n + 1]
        down, right = np.ogrid[top - row : min(row + n + 1, h) - row, left - column : min(column + n + 1, w) - column]
        free[near] &= down**2 + right**2 > r * r
    return np.array(found, int)


def check_centre(whole: int, wanted: float, centre: float) -> int:
    """The places in the middle. Raises: ValueError where they are more than all that are wanted."""
    if whole > round(wanted):
        raise ValueError(
            f"centre = {centre} is not allowed: the middle alone is more than the acceleration leaves (--operator)"
        )
    return whole
