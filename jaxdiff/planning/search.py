"""The largest number that fits, where only trying tells."""

from collections.abc import Callable


def largest(fits: Callable[[int], bool], unit: int, start: int, most: int) -> int:
    """The largest multiple of `unit`, up to `most`, that fits; 0 where none does. All that is smaller must fit too.

    From `start`, rounded to a multiple, by doubling or halving until it stands between two, then by bisection. Nothing
    is tried twice.
    """
    top = most // unit
    if top < 1:
        return 0
    low, high = 0, top + 1  # in units: `low` fits, `high` does not
    trial = min(max(1, start // unit), top)
    while high - low > 1:
        if fits(trial * unit):
            low = trial
        else:
            high = trial
        if high == top + 1:
            trial = min(2 * low, top)
        elif low == 0:
            trial = high // 2
        else:
            trial = (low + high) // 2
    return low * unit
