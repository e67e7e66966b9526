"""Tensors of a PyTorch file as parameters of ours, and back: one table of names for both directions.

Each parameter of ours has an `Origin`, which says what tensors it is made of. The arrays are rearranged, never computed
with, so that what was loaded is dumped as it was, bit for bit:

    convolution    [out, in, h, w]      <->    [h, w, in, out]
    dense          [out, in]            <->    [in, out], or [in, ...] where the outputs have axes of their own
    else           as it is
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.core.types import Params
from jaxdiff.pretrained.pickles import one_line
from jaxdiff.pretrained.weights import Where

Shape = tuple[int, ...]


class Origin(NamedTuple):
    """What a parameter of ours is made of: one tensor of the file, or several of one shape."""

    names: tuple[str, ...]
    """Names of the tensors."""
    stacked: bool = False
    """Several tensors lie along a new first axis; False: one after the other along the last axis."""
    ones: int = 0
    """Axes of length one that the file's kernel has at its end: a convolution there, a dense layer here."""
    order: tuple[int, ...] | None = None
    """Which of the file's outputs are ours, one after the other; None: in the same order."""


Origins: TypeAlias = Callable[[Where, Shape], Origin]
"""The origin of our parameter of a path and a shape."""


def load(
    arrays: Mapping[str, np.ndarray], shapes: Mapping[str, object], origins: Origins, unused: tuple[str, ...] = ()
) -> Params:
    """Float32 parameters of the tree `shapes` (of `jax.eval_shape`) from a file's arrays, each read once.

    Arrays whose names end with one of `unused` may be left over. Raises ValueError that names every array which is
    missing, left over or misshapen.
    """
    wanted = [(path, leaf.shape, origins(path, leaf.shape)) for path, leaf in leaves(shapes)]
    known = {name for _, _, origin in wanted for name in origin.names}
    faults = [f"{name} is missing" for name in sorted(known) if name not in arrays]
    faults += [f"{name} is not known" for name in arrays if name not in known and not name.endswith(unused)]
    params = {}
    for path, shape, origin in wanted:
        part, pieces = piece_shape(shape, origin), []
        expected = torch_shape(path, part, origin.ones)
        for name in origin.names:
            if name not in arrays:
                continue
            array = arrays[name]
            if array.shape == expected:
                pieces.append(_to_ours(path, array, part, origin))
            else:
                faults.append(f"{name} is {list(array.shape)} and not {list(expected)}")
        if not faults:
            node = params
            for part_name in path[:-1]:
                node = node.setdefault(part_name, {})
            whole = np.stack(pieces) if origin.stacked else np.concatenate(pieces, axis=-1)
            node[path[-1]] = jnp.asarray(whole, jnp.float32)
    if faults:
        raise ValueError(f"weights of another network: {one_line('; '.join(faults))}")
    return params


def dump(params: Mapping[str, object], origins: Origins) -> dict[str, np.ndarray]:
    """The file's arrays of these parameters: the inverse of `load`."""
    arrays = {}
    for path, leaf in leaves(params):
        whole = np.asarray(leaf)
        origin = origins(path, whole.shape)
        count = len(origin.names)
        pieces = list(whole) if origin.stacked else np.split(whole, count, axis=-1)
        for name, piece in zip(origin.names, pieces, strict=True):
            arrays[name] = _to_torch(path, piece, origin)
    return arrays


def torch_shapes(shapes: Mapping[str, object], origins: Origins) -> dict[str, Shape]:
    """The shapes of the file's arrays of the tree `shapes`, by name."""
    found = {}
    for path, leaf in leaves(shapes):
        origin = origins(path, leaf.shape)
        found |= dict.fromkeys(origin.names, torch_shape(path, piece_shape(leaf.shape, origin), origin.ones))
    return found


def piece_shape(shape: Shape, origin: Origin) -> Shape:
    """The shape of what one of the tensors becomes."""
    return shape[1:] if origin.stacked else (*shape[:-1], shape[-1] // len(origin.names))


def torch_shape(path: Where, shape: Shape, ones: int = 0) -> Shape:
    """The file's shape of a parameter, or of a piece of one."""
    if path[-1] == "kernel" and len(shape) == 4:
        return (shape[3], shape[2], shape[0], shape[1])
    if path[-1] == "kernel":
        return (math.prod(shape[1:]), shape[0], *(1,) * ones)
    return (math.prod(shape),) if path[-1] == "bias" else shape


def _to_ours(path: Where, array: np.ndarray, shape: Shape, origin: Origin) -> np.ndarray:
    if path[-1] == "kernel":
        array = np.moveaxis(array, (0, 1), (-1, -2))
    array = array.reshape(shape)
    return array if origin.order is None else array[..., list(origin.order)]


def _to_torch(path: Where, array: np.ndarray, origin: Origin) -> np.ndarray:
    shape = torch_shape(path, array.shape, origin.ones)
    if origin.order is not None:
        array = array[..., np.argsort(origin.order)]
    if path[-1] == "kernel":
        wide = array if array.ndim == 4 else array.reshape(array.shape[0], -1)
        array = np.moveaxis(wide, (-1, -2), (0, 1))
    return np.ascontiguousarray(array.reshape(shape))


def leaves(tree: Mapping[str, object]) -> list[tuple[Where, jax.ShapeDtypeStruct | jax.Array]]:
    """The parameters of the tree, or their shapes, with their paths."""
    found, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [(tuple(str(key.key) for key in path), leaf) for path, leaf in found]
