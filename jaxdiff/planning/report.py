"""What is known of a program before it runs, and in how many words it is said."""

from collections.abc import Mapping
from typing import NamedTuple

from jaxdiff.planning.chips import GIB, Slice
from jaxdiff.planning.collectives import Traffic
from jaxdiff.planning.flops import Flops
from jaxdiff.planning.roofline import Roofline


class Program(NamedTuple):
    """A program for a slice: one training step, or the sampling of one batch."""

    fits: bool
    trouble: str
    """The compiler's words where it does not fit; "" where it does."""
    hbm: Mapping[str, float]
    """Bytes on each chip by what they hold; only what the shardings tell where it does not fit."""
    flops: Flops
    """On all chips together."""
    traffic: Mapping[str, Traffic]
    """By kind of collective; empty where it does not fit."""
    moved: float
    """Bytes that a chip reads from and writes to its HBM."""
    roofline: Roofline | None
    """None where it does not fit."""
    notes: tuple[str, ...]
    """What could not be counted exactly."""
    compile_seconds: float

    def to_json(self) -> dict[str, object]:
        """Plain values."""
        line = self.roofline
        return {
            "fits": self.fits,
            "trouble": self.trouble,
            "hbm_bytes_per_chip": dict(self.hbm) | {"total": sum(self.hbm.values())},
            "flops": {"dot": self.flops.dot, "conv": self.flops.conv, "total": self.flops.total},
            "collectives_per_chip": {kind: traffic._asdict() for kind, traffic in self.traffic.items()},
            "hbm_bytes_moved_per_chip": self.moved,
            "roofline_seconds": None if line is None else line._asdict() | {"total": line.seconds, "bound": line.bound},
            "notes": list(self.notes),
            "compile_seconds": round(self.compile_seconds, 1),
        }


def describe(program: Program, slice_: Slice) -> list[str]:
    """The program in lines."""
    hbm, chip = sum(program.hbm.values()), slice_.chip
    parts = ", ".join(f"{name} {size / GIB:.3g}" for name, size in program.hbm.items())
    lines = []
    if program.fits:
        lines.append(f"fits: {hbm / GIB:.3g} of {chip.hbm / GIB:.4g} GiB of HBM per chip ({parts})")
    else:
        lines.append(f"does not fit into {chip.hbm / GIB:.4g} GiB of HBM per chip ({parts}): {program.trouble}")
    flops = program.flops
    lines.append(f"{flops.total:.4g} FLOPs ({flops.dot:.3g} in matrix products, {flops.conv:.3g} in convolutions)")
    for kind, traffic in program.traffic.items():
        lines.append(
            f"{kind}: {traffic.count:.0f} of {traffic.payload / 1e6:.4g} MB together, "
            f"{traffic.sent / 1e6:.4g} MB sent per chip"
        )
    if not program.traffic and program.fits:
        lines.append("no collectives")
    if program.roofline is not None:
        line = program.roofline
        each = ", ".join(f"{name} {1e3 * seconds:.3g}" for name, seconds in line._asdict().items())
        lines.append(f"at least {1e3 * line.seconds:.4g} ms, bound by {line.bound} ({each} ms)")
    lines += [f"note: {note}" for note in program.notes]
    lines.append(f"compiled in {program.compile_seconds:.0f} s")
    return lines
