"""Published tensors of a transformer as stacked parameters of ours, and back: one table of rows for both directions.

A `Row` says under which names a layer of ours is published. Layers of equal blocks are one array here, with the blocks
along its first axis, and several tensors there, with the number of the block in the name. Several names are one layer
here, side by side: query, key and value. A matrix there, [out, in], is [in, ...] here, whatever axes its outputs have.
The arrays are rearranged, never computed with, so that what was loaded is dumped as it was, bit for bit.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.core.types import Params
from jaxdiff.networks.apply import init_params
from jaxdiff.networks.dit import DiT
from jaxdiff.networks.flux import Flux
from jaxdiff.networks.mmdit import MMDiT
from jaxdiff.networks.pixart import PixArt
from jaxdiff.pretrained.pickles import one_line
from jaxdiff.pretrained.weights import TORCH_NAMES, Where

Shape = tuple[int, ...]


class Layout(NamedTuple):
    """How one tensor is stored there; `theirs` is the inverse of `ours`."""

    ours: Callable[[np.ndarray], np.ndarray]
    """From the published tensor to a matrix [in, out]."""
    theirs: Callable[[np.ndarray], np.ndarray]


def patches(side: int) -> Layout:
    """A convolution of patches of ``side x side`` pixels, which here is a dense layer of their channels."""

    def ours(kernel: np.ndarray) -> np.ndarray:
        return kernel.transpose(2, 3, 1, 0).reshape(-1, kernel.shape[0])

    def theirs(matrix: np.ndarray) -> np.ndarray:
        return matrix.reshape(side, side, -1, matrix.shape[-1]).transpose(3, 2, 0, 1)

    return Layout(ours, theirs)


def _halves(matrix: np.ndarray) -> np.ndarray:
    return np.roll(matrix, len(matrix) // 2, axis=0)


DENSE = Layout(np.transpose, np.transpose)

COSINE_FIRST = Layout(lambda kernel: _halves(kernel.T), lambda matrix: _halves(matrix).T)
"""The first layer after waves which there are cosines and sines, and here sines and cosines."""

IN_ONE = Layout(lambda table: table[0], lambda table: table[None])
"""A table with a first axis of length one."""

AS_IT_IS = Layout(lambda table: table, lambda table: table)


class Row(NamedTuple):
    """A layer of ours, or one parameter outside of layers, and what it is called there."""

    ours: str
    """The layer's path, joined by dots; its kernel, bias and so on are found by themselves."""
    theirs: tuple[str, ...]
    """The published layers that lie side by side in it, "{}" in place of the number of the block."""
    blocks: range | None = None
    """The numbers of the blocks that are stacked; None where it is in no block."""
    layout: Layout = DENSE
    """Of a kernel, or of the one parameter; all else is the same."""
    copies: bool = False
    """The layer is here once, and there in every block."""


class Place(NamedTuple):
    """Where the values of one parameter are published."""

    row: Row
    kind: str
    """"kernel", "bias" and so on; "" for a parameter outside of layers."""
    names: list[list[str]]
    """Of each block the names of the tensors that lie side by side."""
    shape: Shape
    """Of the parameter in one block."""


def load(arrays: Mapping[str, np.ndarray], shapes: Mapping[str, object], rows: Sequence[Row]) -> Params:
    """Float32 parameters of the tree `shapes` (of `jax.eval_shape`) from a file's arrays.

    Raises ValueError that names every array which is missing, not known, misshapen, or unlike its copies.
    """
    places = list(_places(shapes, rows))
    expected = published(shapes, rows)
    faults = [f"{name} is missing" for name in expected if name not in arrays]
    faults += [f"{name} is not known" for name in arrays if name not in expected]
    faults += [
        f"{name} is {list(arrays[name].shape)} and not {list(shape)}"
        for name, shape in expected.items()
        if name in arrays and arrays[name].shape != shape
    ]
    if not faults:
        faults += [fault for _, place, _ in places for fault in _unlike(arrays, place)]
    if faults:
        raise ValueError(f"weights of another network: {one_line('; '.join(faults))}")

    params: dict[str, Params] = {}
    for path, place, shape in places:
        node = params
        for part in path[:-1]:
            node = node.setdefault(part, {})
        node[path[-1]] = jnp.asarray(_filled(arrays, place, shape))
    return params


def dump(params: Params, rows: Sequence[Row]) -> dict[str, np.ndarray]:
    """The file's arrays of these parameters: the inverse of `load`."""
    found = {}
    for path, place, _ in _places(params, rows):
        array = np.asarray(_at(params, path))
        for number, names in enumerate(place.names):
            one = array[number] if place.row.blocks is not None and not place.row.copies else array
            tensors = _apart(one, place)
            found |= {name: np.ascontiguousarray(tensor) for name, tensor in zip(names, tensors, strict=True)}
    return found


def published(shapes: Mapping[str, object], rows: Sequence[Row]) -> dict[str, Shape]:
    """The names and shapes of the file's arrays of the tree `shapes`."""
    found = {}
    for _, place, _ in _places(shapes, rows):
        # One number looked at from everywhere: nothing is allocated, and the inverse itself tells the shapes.
        tensors = _apart(np.broadcast_to(np.float32(0), place.shape), place)
        for names in place.names:
            found |= {name: tensor.shape for name, tensor in zip(names, tensors, strict=True)}
    return found


def _places(tree: Mapping[str, object], rows: Sequence[Row]) -> Iterator[tuple[Where, Place, Shape]]:
    table = {row.ours: row for row in rows}
    for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        path = tuple(str(key.key) for key in keys)
        whole, layer = ".".join(path), ".".join(path[:-1])
        if whole not in table and layer not in table:
            raise ValueError(f"the parameter {whole} has no published name: this network is not of the published kind")
        row, kind = (table[whole], "") if whole in table else (table[layer], path[-1])
        end = f".{TORCH_NAMES.get(kind, kind)}" if kind else ""
        numbers = (0,) if row.blocks is None else row.blocks
        names = [[name.format(number) + end for name in row.theirs] for number in numbers]
        shape = leaf.shape if row.blocks is None or row.copies else leaf.shape[1:]
        yield path, Place(row, kind, names, shape), leaf.shape


def _apart(array: np.ndarray, place: Place) -> list[np.ndarray]:
    """The published tensors of a parameter in one block."""
    row, count = place.row, len(place.row.theirs)
    if place.kind == "kernel":
        matrix = array.reshape(array.shape[0], -1)
        return [row.layout.theirs(part) for part in np.split(matrix, count, axis=1)]
    if place.kind == "bias":
        return np.split(array.reshape(-1), count)
    return [array if place.kind else row.layout.theirs(array)]


def _filled(arrays: Mapping[str, np.ndarray], place: Place, shape: Shape) -> np.ndarray:
    """The parameter of the published tensors, each block written to its place as it is read."""
    stacked = place.row.blocks is not None and not place.row.copies
    whole = np.empty(shape, np.float32)
    for number, names in enumerate(place.names if stacked else place.names[:1]):
        tensors = [arrays[name] for name in names]
        if place.kind == "kernel":
            one = np.concatenate([place.row.layout.ours(tensor) for tensor in tensors], axis=1)
        elif place.kind == "bias":
            one = np.concatenate(tensors)
        else:
            one = tensors[0] if place.kind else place.row.layout.ours(tensors[0])
        if stacked:
            whole[number] = one.reshape(place.shape)
        else:
            whole[...] = one.reshape(place.shape)
    return whole


def _unlike(arrays: Mapping[str, np.ndarray], place: Place) -> list[str]:
    if not place.row.copies:
        return []
    (first,), *others = place.names
    return [f"{name} differs from {first}" for (name,) in others if not np.array_equal(arrays[name], arrays[first])]


def _at(params: Params, path: Where) -> jax.Array:
    for part in path:
        params = params[part]
    return params


def shapes_of(network: DiT | MMDiT | Flux | PixArt, channels: int, side: int) -> Mapping[str, object]:
    """The shapes of the network's parameters, for images of so many channels and of at least this side."""
    return jax.eval_shape(lambda key: init_params(network, key, (side, side, channels), {}), jax.random.key(0))


def channels_of(arrays: Mapping[str, np.ndarray], name: str) -> int:
    """The inputs of the layer of this name. Raises ValueError where it is missing or is no layer."""
    if name not in arrays or arrays[name].ndim < 2:
        raise ValueError(f"weights of another network: {name} is missing, or is no layer")
    return arrays[name].shape[1]
