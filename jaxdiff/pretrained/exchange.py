"""Tensors of a PyTorch file as parameters of ours, and back: one table of names for both directions.

Each parameter of ours has an `Origin`, which says what tensors it is made of. The arrays are rearranged, never computed
with, so that what was loaded is dumped as it was, bit for bit:

    convolution    [out, in, h, w]      <->    [h, w, in, out]
    dense          [out, in]            <->    [in, out], or [in, ...] where the outputs have axes of their own
    else           as it is

Several tensors may lie side by side, their outputs one after the other (query, key and value), and those of equal
blocks along a first axis.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.core.types import Params
from jaxdiff.pretrained.pickles import one_line
from jaxdiff.pretrained.weights import Where

Shape = tuple[int, ...]


class Layout(NamedTuple):
    """How one tensor is stored there; `theirs` is the inverse of `ours`."""

    ours: Callable[[np.ndarray], np.ndarray]
    """From a kernel there to a matrix [in, out], or from another tensor to ours."""
    theirs: Callable[[np.ndarray], np.ndarray]


class Origin(NamedTuple):
    """What a parameter of ours is made of: one tensor of the file, or several of one shape."""

    names: tuple[str, ...]
    """Names of the tensors, block by block."""
    stacked: bool = False
    """The tensors of each block lie along a new first axis; False: all lie side by side."""
    beside: int = 1
    """Of stacked tensors, so many lie side by side in each block."""
    ones: int = 0
    """Axes of length one that the file's kernel has at its end: a convolution there, a dense layer here."""
    order: tuple[int, ...] | None = None
    """Which of the file's outputs are ours, one after the other; None: in the same order."""
    layout: Layout | None = None
    """Of a kernel, or of a parameter that is neither kernel nor bias; None for the table above."""
    copies: bool = False
    """The parameter is here once, and there in every block."""


Origins: TypeAlias = Callable[[Where, Shape], Origin]
"""The origin of our parameter of a path and a shape."""


def load(
    arrays: Mapping[str, np.ndarray], shapes: Mapping[str, object], origins: Origins, unused: tuple[str, ...] = ()
) -> Params:
    """Float32 parameters of the tree `shapes` (of `jax.eval_shape`) from a file's arrays, each read once.

    Arrays whose names end with one of `unused` may be left over. Raises ValueError that names every array which is
    missing, left over, misshapen or unlike its copies.
    """
    wanted = [(path, leaf.shape, origins(path, leaf.shape)) for path, leaf in leaves(shapes)]
    expected = torch_shapes(shapes, origins)
    faults = [f"{name} is missing" for name in expected if name not in arrays]
    faults += [f"{name} is not known" for name in arrays if name not in expected and not name.endswith(unused)]
    faults += [
        f"{name} is {list(arrays[name].shape)} and not {list(shape)}"
        for name, shape in expected.items()
        if name in arrays and arrays[name].shape != shape
    ]
    if not faults:
        faults += [fault for _, _, origin in wanted if origin.copies for fault in _unlike(arrays, origin.names)]
    if faults:
        raise ValueError(f"weights of another network: {one_line('; '.join(faults))}")

    params: dict[str, Params] = {}
    for path, shape, origin in wanted:
        node = params
        for part in path[:-1]:
            node = node.setdefault(part, {})
        node[path[-1]] = jnp.asarray(_ours(path, shape, origin, arrays))
    return params


def dump(params: Mapping[str, object], origins: Origins) -> dict[str, np.ndarray]:
    """The file's arrays of these parameters: the inverse of `load`."""
    arrays = {}
    for path, leaf in leaves(params):
        whole = np.asarray(leaf)
        found = _theirs(path, whole, origins(path, whole.shape))
        arrays |= {name: np.ascontiguousarray(array) for name, array in found.items()}
    return arrays


def torch_shapes(shapes: Mapping[str, object], origins: Origins) -> dict[str, Shape]:
    """The shapes of the file's arrays of the tree `shapes`, by name."""
    found = {}
    for path, leaf in leaves(shapes):
        # One number looked at from everywhere: nothing is allocated, and the inverse itself tells the shapes.
        empty = np.broadcast_to(np.float32(0), leaf.shape)
        arrays = _theirs(path, empty, origins(path, leaf.shape))
        found |= {name: array.shape for name, array in arrays.items()}
    return found


def leaves(tree: Mapping[str, object]) -> list[tuple[Where, jax.ShapeDtypeStruct | jax.Array]]:
    """The parameters of the tree, or their shapes, with their paths."""
    found, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [(tuple(str(key.key) for key in path), leaf) for path, leaf in found]


def _blocks(origin: Origin) -> list[tuple[str, ...]]:
    """Of each block the tensors that lie side by side."""
    beside = origin.beside if origin.stacked else len(origin.names)
    return [origin.names[i : i + beside] for i in range(0, len(origin.names), beside)]


def _ours(path: Where, shape: Shape, origin: Origin, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """The parameter, each block written to its place as it is read."""
    whole, blocks = np.empty(shape, np.float32), _blocks(origin)
    stacked = origin.stacked and not origin.copies
    for i, names in enumerate(blocks if stacked else blocks[:1]):
        parts = [_to_ours(path, arrays[name], origin) for name in names]
        one = np.concatenate(parts, axis=-1) if len(parts) > 1 else parts[0]
        one = one if origin.order is None else one[..., list(origin.order)]
        if stacked:
            whole[i] = one.reshape(shape[1:])
        else:
            whole[...] = one.reshape(shape)
    return whole


def _theirs(path: Where, array: np.ndarray, origin: Origin) -> dict[str, np.ndarray]:
    """The tensors that the parameter is made of."""
    found, blocks = {}, _blocks(origin)
    each = [array] * len(blocks) if origin.copies or not origin.stacked else array
    for block, names in zip(each, blocks, strict=True):
        if path[-1] == "kernel" and not _is_convolution(block, origin):
            block = block.reshape(block.shape[0], -1)
        elif path[-1] == "bias":
            block = block.reshape(-1)
        if origin.order is not None:
            block = block[..., np.argsort(origin.order)]
        parts = np.split(block, len(names), axis=-1) if len(names) > 1 else [block]
        found |= {name: _to_theirs(path, part, origin) for name, part in zip(names, parts, strict=True)}
    return found


def _is_convolution(kernel: np.ndarray, origin: Origin) -> bool:
    return kernel.ndim == 4 and origin.layout is None


def _to_ours(path: Where, array: np.ndarray, origin: Origin) -> np.ndarray:
    """A tensor with its outputs along the last axis."""
    if path[-1] == "kernel" and origin.layout is None:
        moved = np.moveaxis(array, (0, 1), (-1, -2))
        return moved.reshape(moved.shape[origin.ones :]) if origin.ones else moved
    return array if path[-1] == "bias" or origin.layout is None else origin.layout.ours(array)


def _to_theirs(path: Where, array: np.ndarray, origin: Origin) -> np.ndarray:
    """The inverse of `_to_ours`."""
    if path[-1] == "kernel" and origin.layout is None:
        moved = np.moveaxis(array, (-1, -2), (0, 1))
        return moved.reshape(*moved.shape, *(1,) * origin.ones)
    return array if path[-1] == "bias" or origin.layout is None else origin.layout.theirs(array)


def _unlike(arrays: Mapping[str, np.ndarray], names: tuple[str, ...]) -> list[str]:
    first, *others = names
    return [f"{name} differs from {first}" for name in others if not np.array_equal(arrays[name], arrays[first])]
