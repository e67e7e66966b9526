"""TPU chips and slices: the published figures, and the names by which slices are asked for.

Published figures are those of cloud.google.com/tpu/docs (v4, v5e, v5p, v6e); the links of v4 are from arXiv:2304.01433.
Their "inter-chip interconnect" is the sum over the links of a chip, here the figure of one link in one direction. `hbm`
is not the published capacity but what the compiler lets a program use, as it says itself where one does not fit
(libtpu 0.0.42).
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import NamedTuple

GIB = 2.0**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of chip."""

    name: str
    flops: float
    """Peak of bfloat16 matrix products in FLOP/s; float32 ones run as bfloat16 unless asked to be exact."""
    capacity: float
    """HBM in bytes, as published."""
    hbm: float
    """HBM in bytes that a program may use."""
    bandwidth: float
    """Of the HBM, in bytes/s."""
    link: float
    """Of one link to a neighbour, in one direction, in bytes/s."""
    dimensions: int
    """Of the slices: a chip has two links in each."""
    ring: int
    """A dimension of a multiple of this many chips is closed to a ring; a shorter one is a line."""
    cores: int = 1
    """What slices' names count: chips (1), or TensorCores of which a chip has two (2)."""
    config: str = ""
    """The compiler's name for a chip whose cores work as one device, where that is not the default."""


CHIPS: Mapping[str, Chip] = {
    chip.name: chip
    for chip in (
        Chip("v4", 275e12, 32 * GIB, 30.75 * GIB, 1200e9, 50e9, 3, ring=4, cores=2, config="megacore"),
        Chip("v5e", 197e12, 16e9, 15.75 * GIB, 819e9, 50e9, 2, ring=16),
        Chip("v5p", 459e12, 95e9, 95.74 * GIB, 2765e9, 100e9, 3, ring=4, cores=2),
        Chip("v6e", 918e12, 32e9, 31.25 * GIB, 1600e9, 100e9, 2, ring=16),
    )
}
"""Every chip by the name that its slices begin with."""

SHAPES: Mapping[int, Mapping[int, tuple[int, ...]]] = {
    2: {1: (1, 1), 4: (2, 2), 8: (2, 4), 16: (4, 4), 32: (4, 8), 64: (8, 8), 128: (8, 16), 256: (16, 16)},
    3: {
        **{4: (2, 2, 1), 8: (2, 2, 2), 16: (2, 2, 4), 32: (2, 4, 4), 64: (4, 4, 4), 128: (4, 4, 8), 256: (4, 8, 8)},
        **{512: (8, 8, 8), 1024: (8, 8, 16), 2048: (8, 16, 16), 4096: (16, 16, 16)},
    },
}
"""Slices of two and of three dimensions by their number of chips."""


class Slice(NamedTuple):
    """Chips that are wired together."""

    chip: Chip
    shape: tuple[int, ...]

    @property
    def chips(self) -> int:
        return math.prod(self.shape)

    @property
    def name(self) -> str:
        """`v5e:2x4`, as the compiler wants it."""
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def interconnect(self) -> float:
        """Bytes/s that every chip can send at once along rings through all chips: two links a ring, one a line."""
        links = sum(0 if n == 1 else 2 if n % self.chip.ring == 0 else 1 for n in self.shape)
        return links * self.chip.link


def parse_slice(text: str) -> Slice:
    """`v5e:16x16`, `v5e-256`, `v5p-128` (TensorCores: 64 chips) ... Raises: ValueError, naming what is allowed."""
    kind, mark, rest = text.partition(":") if ":" in text else text.partition("-")
    chip = CHIPS.get(kind)
    if chip is None or not rest:
        raise ValueError(f"topology = {text!r} is unknown: allowed are {examples(tuple(CHIPS.values()))} (--topology)")
    if mark == ":":
        sizes = rest.split("x")
        if len(sizes) == chip.dimensions and all(size.isdecimal() and 1 <= int(size) <= 64 for size in sizes):
            return Slice(chip, tuple(map(int, sizes)))
    else:
        shapes = SHAPES[chip.dimensions]
        count = int(rest) if rest.isdecimal() else 0
        if count % chip.cores == 0 and count // chip.cores in shapes:
            return Slice(chip, shapes[count // chip.cores])
    raise ValueError(f"topology = {text!r} is no slice of {kind}: allowed are {examples((chip,))} (--topology)")


def examples(chips: tuple[Chip, ...]) -> str:
    """Names of slices, for an error's line."""
    words = []
    for chip in chips:
        shape = "AxBxC" if chip.dimensions == 3 else "AxB"
        counts = [n * chip.cores for n in SHAPES[chip.dimensions]]
        many = ", ".join(map(str, counts)) if len(chips) == 1 else f"{counts[0]} ... {counts[-1]}"
        words.append(f"{chip.name}:{shape}, {chip.name}-N with N = {many}")
    return "; ".join(words)
