"""Pickles from strangers: read as data, never run.

A pickle is a program that may name any function on the machine and call it. Here it may not:

1. its opcodes are read before anything is built; those of plain containers, numbers, strings, names and calls
   pass, all others (the old ways to make instances, and the tables of the interpreter) are refused;
2. a name stands for what the caller's table holds under it, one of our own builders; any other name is refused,
   and nothing is ever imported;
3. an index into the memo is below the number of opcodes, so that memory is bounded by the size of the file.
"""

import contextlib
import io
import pickle
import pickletools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

Names = Mapping[tuple[str, str], object]
"""What (module, name) stands for: a `Builder`, or a class of ours that holds what it is given and does nothing."""

ALLOWED = """
PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT
BINUNICODE SHORT_BINUNICODE BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES
EMPTY_DICT SETITEM SETITEMS EMPTY_LIST APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3
BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET GLOBAL STACK_GLOBAL REDUCE BUILD BINPERSID
NEWOBJ
"""
"""The opcodes that PyTorch and NumPy write for dictionaries of arrays. NEWOBJ makes an instance of a class,
and a table of names holds none but holders of ours: it passes so that a refusal can tell the class's name."""


class Builder(NamedTuple):
    """A function as a pickle may hold it: it can be called, and nothing of it can be set."""

    build: Callable[..., object]

    def __call__(self, *args: object) -> object:
        return self.build(*args)


class State(dict):
    """A dictionary that ignores the attributes which a pickle wants to give it (`_metadata` of a state dict)."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        pass


@contextlib.contextmanager
def refusing(path: Path) -> Iterator[None]:
    """Turns whatever goes wrong inside into a ValueError of one line that begins with the file's name."""
    try:
        yield
    except (FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    # A damaged or hostile file may end in any exception at all: they are one and the same to the user.
    except Exception as error:
        reason = one_line(str(error)) or type(error).__name__
        raise ValueError(f"{path}: {reason}") from error


def one_line(text: str) -> str:
    """The text, which may come from a stranger's file, in one line without control characters."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))


def scan(file: io.BytesIO, more: tuple[str, ...] = ()) -> bytes:
    """The bytes of the pickle that begins where `file` stands, which is left behind it.

    `more`: opcodes that are allowed as well. Raises ValueError for one that is not allowed, or a cut-off file.
    """
    start, allowed = file.tell(), frozenset((*ALLOWED.split(), *more))
    for count, (opcode, arg, _) in enumerate(pickletools.genops(file)):
        if opcode.name not in allowed:
            raise ValueError(f"refused, its pickle uses {opcode.name}, which arrays do not need")
        if opcode.name in ("BINPUT", "LONG_BINPUT") and isinstance(arg, int) and arg > count:
            raise ValueError(f"refused, its pickle asks for memo {arg} after {count} opcodes")
    size = file.tell() - start
    file.seek(start)
    return file.read(size)


def load(pickled: bytes, names: Names, outside: Callable[[object], object]) -> object:
    """What the scanned pickle holds, built of `names`, and of `outside(id)` for what lies outside the pickle.

    Raises ValueError that tells the name which is not in `names`, and other exceptions where it is damaged.
    """
    unpickler = _Unpickler(io.BytesIO(pickled), encoding="utf-8")
    unpickler.names, unpickler.outside = names, outside
    return unpickler.load()


def nothing_outside(pid: object) -> object:
    """For `load`, of a pickle that should be whole: raises ValueError."""
    raise ValueError("refused, its pickle refers to something outside it")


class _Unpickler(pickle.Unpickler):
    # To inherit is pickle's way to say what a name means.
    names: Names
    outside: Callable[[object], object]

    def find_class(self, module_name: str, global_name: str) -> object:
        if (module_name, global_name) not in self.names:
            raise ValueError(
                f"refused, its pickle names {module_name[:60]}.{global_name[:60]}, which is no array "
                "(only arrays, numbers, strings and containers are read)"
            )
        return self.names[module_name, global_name]

    def persistent_load(self, pid: object) -> object:
        return self.outside(pid)
