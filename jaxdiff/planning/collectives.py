"""What the chips send each other in one call, read from the compiled program.

Of a group of n chips, `payload` being the whole array (what an all-gather makes, a reduce-scatter takes), a chip sends

    all-reduce                                  2 (n - 1) / n x payload
    all-gather, reduce-scatter, all-to-all        (n - 1) / n x payload
    collective-permute, broadcast                               payload

which is what rings need, and no way needs less. A collective that runs beside other work appears in the text in several
pieces of one channel, and counts once.
"""

import math
import re
from typing import NamedTuple

from jaxdiff.planning import hlo

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")


class Traffic(NamedTuple):
    """Of one kind of collective, per chip."""

    count: float
    """How often in a call."""
    payload: float
    """Bytes of the whole arrays."""
    sent: float
    """Bytes that a chip sends."""


def collectives(module: hlo.Module) -> dict[str, Traffic]:
    """The traffic of each kind that occurs."""
    total: dict[str, Traffic] = {}
    for computation, times, _ in hlo.runs(module):
        seen: set[str] = set()
        for kind, channel, payload, group in found_in(module, computation):
            if group < 2 or (channel and channel in seen):
                continue
            seen.add(channel)
            old = total.get(kind, Traffic(0, 0, 0))
            sent = payload * {"all-reduce": 2 * (group - 1) / group}.get(kind, (group - 1) / group)
            if kind in ("collective-permute", "collective-broadcast"):
                sent = payload
            total[kind] = Traffic(old.count + times, old.payload + times * payload, old.sent + times * sent)
    return total


def found_in(module: hlo.Module, computation: hlo.Computation) -> list[tuple[str, str, int, int]]:
    """(kind, channel, payload, size of the group) of the collectives of a computation and of the fusions in it."""
    found = []
    for instruction in computation.instructions.values():
        if instruction.op == "fusion":
            found += found_in(module, module.computations[hlo.called(instruction, "calls")])
            continue
        kind = instruction.op.removesuffix("-start")
        kind = kind.removeprefix("ragged-")
        if kind not in KINDS:
            continue
        group = group_size(instruction, module.devices)
        payload = sum(sum(hlo.sizes(computation.instructions[name].shape)) for name in instruction.operands)
        channel = re.search(r"channel_id=(\d+)", instruction.rest)
        scale = group if kind == "all-gather" else 1
        found.append((kind, channel[1] if channel else "", payload * scale, group))
    return found


def group_size(instruction: hlo.Instruction, devices: int) -> int:
    """How many chips take part in one collective, in any of the three ways in which groups are written."""
    if "source_target_pairs=" in instruction.rest:
        return 2
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", instruction.rest)
    if listed:
        return len(listed[1].split(","))
    iota = re.search(r"replica_groups=\[\d+,(\d+)\]", instruction.rest)
    if iota:
        return int(iota[1])
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", instruction.rest)
    if mesh:
        axes = dict(re.findall(r"'([^']+)'=(\d+)", mesh[1]))
        # An axis, or a part of it: 'x':(2)4 is the part of size 4 after one of 2.
        parts = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", mesh[2])
        return math.prod(int(part or axes[axis]) for axis, part in parts)
    return devices
