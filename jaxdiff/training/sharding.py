"""Where arrays live: the mesh of devices, the parts of a batch, the parts of a state.

One mesh serves all: `data` and `fsdp` share out the examples of a batch, and `fsdp` the parameters with their moments
and averages as well (arXiv:1910.02054, stage 3); `tensor` shares out heads and hidden channels (arXiv:1909.08053),
`sequence` the tokens of long sequences. How large they are changes where numbers are computed and never which.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

AXES = ("data", "fsdp", "sequence", "tensor")
BATCH = PartitionSpec(("data", "fsdp"))
"""How the examples of a batch are spread."""

LEAST = 4096
"""Elements below which an array is whole on every device: to share it out would cost more than it saves."""

ParameterAxes = Callable[[Sequence[str], int], tuple[str | None, ...]]
"""(path, number of dimensions) -> the logical axis of each: "heads", "hidden", "layer", or None."""


@dataclasses.dataclass(frozen=True)
class MeshShape:
    """Devices along each axis of the mesh."""

    data: int = -1
    """Copies of the state, each with its part of the batch; -1: as many as the other axes leave."""
    fsdp: int = 1
    """Parts of the state, gathered where they are needed; each with its part of the batch as well."""
    sequence: int = 1
    """Parts of the sequence of tokens."""
    tensor: int = 1
    """Parts of the heads and of the hidden channels."""

    def __post_init__(self) -> None:
        for name in AXES:
            value = getattr(self, name)
            if value < 1 and not (name == "data" and value == -1):
                raise ValueError(f"mesh.{name} = {value} is not allowed: at least 1 (--mesh.{name})")

    def sizes(self, devices: int) -> tuple[int, int, int, int]:
        """The sizes of all axes on this many devices. Raises: ValueError."""
        rest = self.fsdp * self.sequence * self.tensor
        data = devices // rest if self.data == -1 else self.data
        if data * rest != devices:
            first = "data x " if self.data == -1 else f"{self.data} x "
            raise ValueError(
                f"the mesh {first}{self.fsdp} x {self.sequence} x {self.tensor} does not fit {devices} device(s): "
                "data x fsdp x sequence x tensor must be their number (--mesh.data, --mesh.fsdp ...)"
            )
        return data, self.fsdp, self.sequence, self.tensor


def make_mesh(shape: MeshShape = MeshShape(), devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh over all devices of all processes, or over `devices`. Raises: ValueError where they do not fit."""
    count = jax.device_count() if devices is None else len(devices)
    sizes = shape.sizes(count)
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def partition(abstract: PyTree, mesh: Mesh, axes: ParameterAxes) -> PyTree[NamedSharding]:
    """The sharding of every array of a state, parameters, moments and averages alike, whose paths end alike.

    Heads and hidden channels over `tensor`; over `fsdp` the largest other dimension that it divides, which is never the
    one along which layers are stacked. What does not divide, or is small, is whole on every device.
    """

    def place(path: tuple, leaf: Any) -> NamedSharding:
        names = tuple(jax.tree_util.keystr((key,), simple=True) for key in path)
        return NamedSharding(mesh, spec_of(leaf.shape, axes(names, len(leaf.shape)), mesh.shape))

    return jax.tree_util.tree_map_with_path(place, abstract)


def spec_of(shape: Sequence[int], names: Sequence[str | None], sizes: Mapping[str, int]) -> PartitionSpec:
    """How an array with these logical axes is spread over a mesh with axes of these sizes."""
    spec: list[str | None] = [None] * len(shape)
    if math.prod(shape) < LEAST:
        return PartitionSpec()
    for i, name in enumerate(names):
        if name in ("heads", "hidden") and sizes["tensor"] > 1 and shape[i] % sizes["tensor"] == 0:
            spec[i] = "tensor"
    free = [i for i, name in enumerate(names) if spec[i] is None and name != "layer" and shape[i] % sizes["fsdp"] == 0]
    if sizes["fsdp"] > 1 and free:
        spec[max(free, key=lambda i: shape[i])] = "fsdp"
    return PartitionSpec(*spec)


def share(mesh: Mesh) -> int:
    """Into how many parts the mesh cuts a batch."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def rows_here(mesh: Mesh, batch_size: int) -> list[int]:
    """The rows of a batch that devices of this process hold, rising."""
    places = NamedSharding(mesh, BATCH).addressable_devices_indices_map((batch_size,))
    parts = [index[0] for index in places.values() if index]
    return sorted({row for part in parts for row in range(*part.indices(batch_size))})


def shard_batch(mesh: Mesh, batch: Mapping[str, Any], batch_size: int | None = None) -> dict[str, Array]:
    """A batch as arrays that are spread over all devices.

    `batch_size`: of the whole batch, where this process has only its own rows of it (`rows_here`).
    """
    sharding = NamedSharding(mesh, BATCH)

    def spread(values: Any) -> Array:
        values = np.asarray(values)
        size = values.shape[0] if batch_size is None else batch_size
        rows = rows_here(mesh, size)

        def part(index: Any) -> np.ndarray:
            start, stop, _ = index[0].indices(size)
            first = start if batch_size is None else int(np.searchsorted(rows, start))
            return values[first : first + stop - start]

        return jax.make_array_from_callback((size, *values.shape[1:]), sharding, part)

    return jax.tree.map(spread, dict(batch))


def to_host(x: Array) -> np.ndarray:
    """The whole array, on every process. All processes must ask."""
    if x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(x)
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))
