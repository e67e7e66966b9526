"""Published tensors of a transformer as stacked parameters of ours, and back: rows of a table in place of `Origin`s.

A `Row` says under which names a layer of ours is published. Layers of equal blocks are one array here, with the blocks
along its first axis, and several tensors there, with the number of the block in the name. Several names are one layer
here, side by side: query, key and value. A matrix there, [out, in], is [in, ...] here, whatever axes its outputs have.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from jaxdiff.core.types import Params
from jaxdiff.networks.apply import init_params
from jaxdiff.networks.dit import DiT
from jaxdiff.networks.flux import Flux
from jaxdiff.networks.mmdit import MMDiT
from jaxdiff.networks.pixart import PixArt
from jaxdiff.pretrained import exchange
from jaxdiff.pretrained.exchange import Layout, Origin, Origins, Shape
from jaxdiff.pretrained.weights import TORCH_NAMES, Where


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


def origins(rows: Sequence[Row]) -> Origins:
    """The origins of the parameters by these rows; they raise ValueError for a parameter that no row is of."""
    table = {row.ours: row for row in rows}

    def origin(path: Where, shape: Shape) -> Origin:
        del shape
        whole, layer = ".".join(path), ".".join(path[:-1])
        if whole not in table and layer not in table:
            raise ValueError(f"the parameter {whole} has no published name: this network is not of the published kind")
        row, kind = (table[whole], "") if whole in table else (table[layer], path[-1])
        end = f".{TORCH_NAMES.get(kind, kind)}" if kind else ""
        numbers = (0,) if row.blocks is None else row.blocks
        return Origin(
            tuple(name.format(number) + end for number in numbers for name in row.theirs),
            stacked=row.blocks is not None,
            beside=len(row.theirs),
            layout=row.layout if kind in ("", "kernel") else None,
            copies=row.copies,
        )

    return origin


def load(arrays: Mapping[str, np.ndarray], shapes: Mapping[str, object], rows: Sequence[Row]) -> Params:
    """As `exchange.load`, by rows."""
    return exchange.load(arrays, shapes, origins(rows))


def dump(params: Params, rows: Sequence[Row]) -> dict[str, np.ndarray]:
    """As `exchange.dump`, by rows."""
    return exchange.dump(params, origins(rows))


def published(shapes: Mapping[str, object], rows: Sequence[Row]) -> dict[str, Shape]:
    """As `exchange.torch_shapes`, by rows."""
    return exchange.torch_shapes(shapes, origins(rows))


def shapes_of(network: DiT | MMDiT | Flux | PixArt, channels: int, side: int) -> Mapping[str, object]:
    """The shapes of the network's parameters, for images of so many channels and of at least this side."""
    return jax.eval_shape(lambda key: init_params(network, key, (side, side, channels), {}), jax.random.key(0))


def channels_of(arrays: Mapping[str, np.ndarray], name: str) -> int:
    """The inputs of the layer of this name. Raises ValueError where it is missing or is no layer."""
    if name not in arrays or arrays[name].ndim < 2:
        raise ValueError(f"weights of another network: {name} is missing, or is no layer")
    return arrays[name].shape[1]
