"""XLA's compiled text as computations of instructions, and how often each computation runs in one call.

A loop's number of turns is the compiler's own word (`known_trip_count`), or else is read from the loop: a counter that
starts at a constant (0 if it comes from elsewhere) and is compared with a constant. Where it is neither, the loop
counts once, and `runs` says so.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

DTYPE_BITS = {
    **{"pred": 8, "s4": 4, "u4": 4, "s2": 2, "u2": 2, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "s32": 32, "u32": 32},
    **{"s64": 64, "u64": 64, "bf16": 16, "f16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128, "f4e2m1fn": 4},
}
"""Bits of an element; types that begin with f8 have 8, and tokens none."""

ARRAY = re.compile(r"\b([a-z]+[0-9a-z]*)\[([0-9,]*)\](?:\{([^{}]*)\})?")
NAME = re.compile(r"%([^\s,(){}]+)")
HEAD = re.compile(r"^(ENTRY )?%?(\S+) \(.*\{$")
END = re.compile(r"^\}(, execution_thread=.*)?$")


class Instruction(NamedTuple):
    """One line."""

    name: str
    shape: str
    """Type and layout of the result, as written."""
    op: str
    operands: tuple[str, ...]
    inside: str
    """What stands between the parentheses."""
    rest: str
    """The attributes."""


class Computation(NamedTuple):
    """A named list of instructions."""

    instructions: dict[str, Instruction]
    root: str

    def users(self, name: str) -> list[Instruction]:
        """The instructions that take `name`."""
        return [i for i in self.instructions.values() if name in i.operands]


class Module(NamedTuple):
    """A compiled program, as one device runs it."""

    computations: dict[str, Computation]
    entry: str
    devices: int


def parse(text: str) -> Module:
    """The module of `compiled.as_text()`."""
    found = [
        re.search(rf"\b{word}=(\d+)", text[:100_000].split("\n", 1)[0]) for word in ("replica_count", "num_partitions")
    ]
    devices = math.prod(int(number[1]) for number in found if number)
    computations: dict[str, Computation] = {}
    name, entry, root, here = "", "", "", {}
    for line in whole_lines(text):
        head = HEAD.match(line)
        if head and not line.startswith(" "):
            name, root, here = head[2], "", {}
            entry = name if head[1] else entry
        elif END.match(line) and name:
            computations[name] = Computation(here, root)
            name = ""
        elif name and " = " in line:
            instruction = parse_line(line)
            here[instruction.name] = instruction
            if line.lstrip().startswith("ROOT "):
                root = instruction.name
    return Module(computations, entry, devices)


def whole_lines(text: str) -> Iterator[str]:
    """The lines, with those that go on (the metadata of a kernel may hold line breaks) as one.

    Inside of a computation an instruction begins with a space, and what begins with none goes on.
    """
    whole, inside = "", False
    for line in text.splitlines():
        ends = bool(END.match(line))
        if inside and line and not line.startswith(" ") and not ends:
            whole += line
            continue
        yield whole
        whole, inside = line, not ends and (inside or bool(HEAD.match(line)))
    yield whole


def parse_line(line: str) -> Instruction:
    """`[ROOT] %name = shape op(operands), attributes`."""
    left, right = line.strip().removeprefix("ROOT ").split(" = ", 1)
    end = closing(right, 0) + 1 if right.startswith("(") else right.index(" ")
    shape, right = right[:end], right[end:].lstrip()
    start = right.index("(")
    stop = closing(right, start)
    inside = right[start + 1 : stop]
    return Instruction(left.lstrip("%"), shape, right[:start], tuple(NAME.findall(inside)), inside, right[stop + 1 :])


def closing(text: str, start: int) -> int:
    """The place of the parenthesis that closes the one at `start`."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if depth == 0:
            return i
    raise ValueError(f"a parenthesis is not closed in {text[:80]!r}")


def sizes(shape: str, everywhere: bool = True) -> list[int]:
    """Bytes of each array of a type; without `everywhere` 0 for those that do not lie in HBM (memory space 0)."""
    found = []
    for dtype, dims, layout in ARRAY.findall(shape):
        bits = 8 if dtype.startswith("f8") else DTYPE_BITS.get(dtype, 0)
        elsewhere = not everywhere and re.search(r"S\([1-9]\d*\)", layout)
        found.append(0 if elsewhere else math.prod(map(int, filter(None, dims.split(",")))) * bits // 8)
    return found


def called(instruction: Instruction, attribute: str) -> str:
    """The computation that an attribute (`calls`, `body` ...) names; "" where there is none."""
    found = re.search(rf"\b{attribute}=%?([^\s,(){{}}]+)", instruction.rest)
    return found[1] if found else ""


def branches(instruction: Instruction) -> list[str]:
    """The computations among which a conditional chooses."""
    many = re.search(r"branch_computations=\{([^}]*)\}", instruction.rest)
    if many:
        return [name.strip().lstrip("%") for name in many[1].split(",")]
    return [name for name in (called(instruction, f"{which}_computation") for which in ("true", "false")) if name]


def runs(module: Module, name: str = "", times: float = 1.0) -> Iterator[tuple[Computation, float, bool]]:
    """(computation, times it runs, whether that is known) for the entry, and all bodies of loops, calls and branches.

    Each branch of a conditional counts as often as the conditional. Fusions are instructions of those that call them.
    """
    computation = module.computations[name or module.entry]
    yield computation, times, True
    for instruction in computation.instructions.values():
        if instruction.op == "while":
            turns = trip_count(module, computation, instruction)
            for inner, n, known in runs(module, called(instruction, "body"), times * (turns or 1)):
                yield inner, n, known and turns is not None
        elif instruction.op == "conditional":
            for branch in branches(instruction):
                yield from runs(module, branch, times)
        elif instruction.op == "call":
            yield from runs(module, called(instruction, "to_apply"), times)
        elif instruction.op == "async-start" and called(instruction, "calls"):
            yield from runs(module, called(instruction, "calls"), times)


def trip_count(module: Module, computation: Computation, loop: Instruction) -> int | None:
    """The turns of a loop; None where they are not known."""
    stated = re.search(r'known_trip_count":\{"n":"(\d+)"', loop.rest)
    if stated:
        return int(stated[1])
    condition = module.computations[called(loop, "condition")]
    test = condition.instructions[condition.root]
    if test.op == "fusion":
        inner = module.computations[called(test, "calls")]
        outer = dict(zip(parameters(inner), test.operands, strict=True))
        root = inner.instructions[inner.root]
        operands = [outer.get(follow(inner, o), o) for o in root.operands]
        lookup = condition.instructions | inner.instructions
        test, condition = root._replace(operands=tuple(operands)), Computation(lookup, condition.root)
    if test.op != "compare" or "direction=LT" not in test.rest:
        return None
    counter, limit = (condition.instructions.get(follow(condition, name)) for name in test.operands)
    if counter is None or counter.op != "get-tuple-element" or limit is None:
        return None
    stop = constant(limit)
    first = value_of(computation, loop, index_of(counter))
    if stop is None or first is None:
        return None
    return max(0, -(-(stop - first) // stride(module.computations[called(loop, "body")], index_of(counter))))


def parameters(computation: Computation) -> list[str]:
    """The parameters' names, in order."""
    found = [i for i in computation.instructions.values() if i.op == "parameter"]
    return [i.name for i in sorted(found, key=lambda i: int(i.inside))]


def index_of(element: Instruction) -> int:
    """Which part of a tuple a `get-tuple-element` takes."""
    return int(re.search(r"index=(\d+)", element.rest)[1])  # pyright: ignore[reportOptionalSubscript]


def constant(instruction: Instruction) -> int | None:
    """The value of an integer constant."""
    is_integer = instruction.op == "constant" and re.fullmatch(r"-?\d+", instruction.inside.strip())
    return int(instruction.inside) if is_integer else None


def follow(computation: Computation, name: str) -> str:
    """What `name` is a copy of."""
    while (i := computation.instructions.get(name)) and i.op in (
        "copy",
        "bitcast",
        "copy-done",
        "copy-start",
        "convert",
    ):
        name = i.operands[0]
    return name


def stride(body: Computation, index: int) -> int:
    """By how much a turn moves the counter; 1 where that cannot be read."""
    state = body.instructions[body.root]
    step = body.instructions.get(follow(body, state.operands[index])) if state.op == "tuple" else None
    if step is None or step.op != "add":
        return 1
    values = [constant(i) for name in step.operands if (i := body.instructions.get(follow(body, name)))]
    return next((value for value in values if value), 1)


def value_of(computation: Computation, loop: Instruction, index: int) -> int | None:
    """The constant with which a part of a loop's state begins; 0 where it is handed on from outside."""
    state = computation.instructions.get(follow(computation, loop.operands[0]))
    if state is None or state.op != "tuple":
        return 0
    first = computation.instructions.get(follow(computation, state.operands[index]))
    value = constant(first) if first else None
    return 0 if value is None else value
