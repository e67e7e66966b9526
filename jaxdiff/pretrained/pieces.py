"""Tensors of one naming scheme made of those of another: renamed, cut apart, transposed; never computed with.

A table says for each tensor that is wanted which tensor of the file it is a piece of.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from jaxdiff.pretrained.exchange import Origins, Shape, leaves
from jaxdiff.pretrained.pickles import one_line


class Piece(NamedTuple):
    """A tensor, or consecutive rows of one."""

    name: str
    """Of the tensor in the file."""
    first: int = 0
    """The piece begins with this part of the rows."""
    last: int = 1
    """It ends before this one."""
    parts: int = 1
    """So many equal parts."""
    change: Callable[[np.ndarray], np.ndarray] | None = None
    """What is done to the piece; None: nothing."""


Pieces = Mapping[str, Piece]
"""By the names that are wanted."""


def swapped(array: np.ndarray) -> np.ndarray:
    """The two halves of the rows the other way round: shift and scale as scale and shift."""
    return np.roll(array, len(array) // 2, axis=0)


def between(shapes: Mapping[str, object], wanted: Origins, file: Origins) -> dict[str, Piece]:
    """The table from one naming to another, of parameters of ours of these shapes."""
    found = {}
    for path, leaf in leaves(shapes):
        names = zip(wanted(path, leaf.shape).names, file(path, leaf.shape).names, strict=True)
        found |= {new: Piece(old) for new, old in names}
    return found


def pieced(
    arrays: Mapping[str, np.ndarray], pieces: Pieces, shapes: Mapping[str, Shape], where: str = ""
) -> dict[str, np.ndarray]:
    """The tensors of these names and shapes. Axes of length one at the end are left out where they are not wanted.

    `where` stands before the names in the file. Raises ValueError that names every tensor which is missing, left over
    or misshapen, by its name there.
    """
    used = {pieces[name].name for name in shapes if name in pieces}
    faults = [f"{where}{name} is missing" for name in sorted(used) if name not in arrays]
    faults += [f"{name} is missing" for name in shapes if name not in pieces]
    faults += [f"{where}{name} is not known" for name in arrays if name not in used]
    found = {}
    for name, shape in shapes.items():
        if name not in pieces or pieces[name].name not in arrays:
            continue
        piece = pieces[name]
        whole = arrays[piece.name]
        array = whole if piece.parts == 1 else _rows(whole, piece)
        array = array if piece.change is None else piece.change(array)
        if array.shape[len(shape) :] == (1,) * (array.ndim - len(shape)):
            array = array.reshape(array.shape[: len(shape)])
        if array.shape != shape:
            faults.append(
                f"{where}{piece.name} is {list(whole.shape)}, which makes {list(array.shape)}, not {list(shape)}"
            )
        found[name] = array
    if faults:
        raise ValueError(f"weights of another network: {one_line('; '.join(faults))}")
    return found


def _rows(array: np.ndarray, piece: Piece) -> np.ndarray:
    rows = len(array) if array.ndim else 0
    return array[rows * piece.first // piece.parts : rows * piece.last // piece.parts]
