"""Bytes: of arrays on one device as their shardings say, and of what a compiled program reads from and writes to HBM.

The second is what the roofline needs. Every instruction that is not free reads its operands and writes its result; an
array that the compiler put into on-chip memory costs nothing, a loop's body costs as often as it runs, and of an
operand that a fusion only slices, the slices count (a scan's stacked parameters are read layer by layer).
"""

import math

import jax
from jaxtyping import PyTree

from jaxdiff.planning import hlo

FREE = {
    *("parameter", "constant", "get-tuple-element", "tuple", "bitcast", "while", "conditional", "call", "after-all"),
    *("partition-id", "replica-id", "copy-done", "slice-done", "async-start", "async-update", "async-done", "domain"),
    *("opt-barrier", "add-dependency"),
}
"""Instructions that move nothing, or whose parts are counted for themselves."""

SLICES = ("dynamic-slice", "slice", "gather")


def bytes_per_device(tree: PyTree) -> int:
    """Bytes on one device of arrays, or of `jax.ShapeDtypeStruct`s, with shardings; whole where they have none."""

    def size(leaf) -> int:
        shape = leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)
        return math.prod(shape) * leaf.dtype.itemsize

    return sum(size(leaf) for leaf in jax.tree.leaves(tree))


def moved(module: hlo.Module) -> float:
    """Bytes read from and written to one chip's HBM in a call."""
    total = 0.0
    for computation, times, _ in hlo.runs(module):
        for instruction in computation.instructions.values():
            total += times * moved_by(module, computation, instruction)
    return total


def moved_by(module: hlo.Module, computation: hlo.Computation, instruction: hlo.Instruction) -> int:
    """Bytes that one instruction reads and writes."""
    op = instruction.op
    if op in FREE or op.endswith("-done") or 'custom_call_target="AllocateBuffer"' in instruction.rest:
        return 0
    written = hlo.sizes(instruction.shape, False)
    if op in SLICES:
        return 2 * sum(written)
    if op == "dynamic-update-slice":
        update = computation.instructions[instruction.operands[1]]
        return 2 * sum(hlo.sizes(update.shape, False))
    if op == "fusion":
        inner = module.computations[hlo.called(instruction, "calls")]
        names = zip(hlo.parameters(inner), instruction.operands, strict=True)
        read = sum(read_of(module, inner, name, of(computation, operand)) for name, operand in names)
        return read + written_by(inner, inner.root, written)
    read = sum(of(computation, operand) for operand in instruction.operands)
    if op == "slice-start":
        # Its type is ((source), slice, ...): of the source, only the slice is read.
        return min(read, hlo.sizes(instruction.shape)[1]) + written[1]
    if op.endswith("-start"):
        return read + written[0 if op == "copy-start" else 1]
    return read + sum(written)


def of(computation: hlo.Computation, name: str) -> int:
    """Bytes of HBM that an instruction's result takes."""
    return sum(hlo.sizes(computation.instructions[name].shape, False))


def read_of(module: hlo.Module, inner: hlo.Computation, name: str, whole: int) -> int:
    """Of an operand of `whole` bytes, what a fusion reads that knows it as `name`."""
    if not whole:
        return 0
    total = 0
    for user in inner.users(name):
        if user.op in SLICES and user.operands[0] == name:
            total += sum(hlo.sizes(user.shape))
        elif user.op == "bitcast":
            total += read_of(module, inner, user.name, whole)
        elif user.op == "fusion":
            nested = module.computations[hlo.called(user, "calls")]
            places = [hlo.parameters(nested)[i] for i, operand in enumerate(user.operands) if operand == name]
            total += sum(read_of(module, nested, place, whole) for place in places)
        elif not (user.op == "dynamic-update-slice" and user.operands[0] == name):
            return whole
    return min(total, whole)


def written_by(inner: hlo.Computation, root: str, written: list[int]) -> int:
    """Of a fusion's results, what it writes: only the update where it changes a part of an array in place."""
    last = inner.instructions[root]
    if last.op == "tuple" and len(last.operands) == len(written):
        return sum(written_by(inner, name, [size]) for name, size in zip(last.operands, written, strict=True))
    while last.op == "bitcast":
        last = inner.instructions[last.operands[0]]
    if last.op == "dynamic-update-slice" and len(written) == 1:
        return min(written[0], sum(hlo.sizes(inner.instructions[last.operands[1]].shape)))
    return sum(written)
