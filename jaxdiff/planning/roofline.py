"""The least time that a program can take: by its arithmetic, by its memory, by its links, whichever is longest.

    compute        FLOPs of a chip / peak of bfloat16 products
    memory         bytes moved by a chip / bandwidth of its HBM
    interconnect   bytes sent by a chip / bandwidth of the rings through it

Source: doi:10.1145/1498765.1498785 (the roofline model), with the links as a third roof.
"""

from typing import NamedTuple

from jaxdiff.planning.chips import Slice


class Roofline(NamedTuple):
    """Seconds."""

    compute: float
    memory: float
    interconnect: float

    @property
    def seconds(self) -> float:
        return max(self)

    @property
    def bound(self) -> str:
        """Which of the three is longest."""
        return max(self._asdict().items(), key=lambda item: item[1])[0]


def roofline(slice_: Slice, flops: float, moved: float, sent: float) -> Roofline:
    """From the FLOPs of all chips together, and the bytes that one chip moves and sends."""
    links = slice_.interconnect
    return Roofline(
        flops / slice_.chips / slice_.chip.flops,
        moved / slice_.chip.bandwidth,
        sent / links if links else 0.0,
    )
