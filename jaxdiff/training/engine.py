"""What runs a training step on the devices: the compiler over a mesh (`jit`), or one program a device (`pmap`).

Both give the same numbers, up to the order of sums. `jit` spreads the state as its shardings say; `pmap` keeps a
copy on every device and averages the gradients.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from jaxdiff.training.sharding import replicated, shard_batch
from jaxdiff.training.state import TrainState
from jaxdiff.training.step import Metrics

DEVICES = "devices"
"""The axis of `pmap`."""


class Engine(NamedTuple):
    """A way to run steps; `spread` and `whole` change the form of a state, not its numbers."""

    spread: Callable[[TrainState], TrainState]
    """An ordinary state, in the form that `step` takes and gives; the argument is used up."""
    step: Callable[[TrainState, Mapping[str, Any]], tuple[TrainState, Metrics]]
    """(state, this process's rows of a batch) -> (state, metrics); the state is donated."""
    whole: Callable[[TrainState], TrainState]
    """The state as ordinary arrays, to be saved or sampled."""


def jit_step(mesh: Mesh, step: Callable, abstract: TrainState) -> Any:
    """The jitted step, whose state, of `abstract`'s shardings, is donated; call or trace it with the mesh in force."""
    places = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    return jax.jit(step, donate_argnums=0, out_shardings=(places, replicated(mesh)))


def jit_engine(
    mesh: Mesh, step: Callable, abstract: TrainState, batch_size: int, frozen: tuple[PyTree, ...] = ()
) -> Engine:
    """The step compiled for the mesh, with the state where the shardings of `abstract` say.

    `frozen`: arrays that each step reads and none changes.
    """
    compiled = jit_step(mesh, step, abstract)

    def run(state: TrainState, batch: Mapping[str, Any]) -> tuple[TrainState, Metrics]:
        with jax.set_mesh(mesh):
            return compiled(state, shard_batch(mesh, batch, batch_size), *frozen)

    return Engine(lambda state: state, run, lambda state: state)


def pmap_engine(mesh: Mesh, step: Callable, frozen: tuple[PyTree, ...] = ()) -> Engine:
    """A copy of the state, and of what is `frozen`, and a part of the batch on every device; `step` averages over the
    axis `DEVICES`."""
    devices = list(mesh.devices.flat)
    here = [device for device in devices if device.process_index == jax.process_index()]
    stacked = NamedSharding(Mesh(np.array(here), (DEVICES,)), PartitionSpec(DEVICES))
    mapped = jax.pmap(step, axis_name=DEVICES, devices=devices, donate_argnums=0)

    def spread(leaf: Array) -> Array:
        copies = [shard.data[None] for shard in sorted(leaf.addressable_shards, key=lambda s: here.index(s.device))]
        return jax.make_array_from_single_device_arrays((len(here), *leaf.shape), stacked, copies)

    def whole(leaf: Array) -> Array:
        copies = [shard.data[0] for shard in leaf.addressable_shards]
        return jax.make_array_from_single_device_arrays(leaf.shape[1:], replicated(mesh), copies)

    copies = jax.tree.map(spread, frozen)

    def run(state: TrainState, batch: Mapping[str, Any]) -> tuple[TrainState, Metrics]:
        parts = {name: value.reshape(len(here), -1, *value.shape[1:]) for name, value in batch.items()}
        state, metrics = mapped(state, parts, *copies)
        return state, jax.tree.map(lambda leaf: leaf.addressable_shards[0].data[0], metrics)

    def each(change: Callable[[Array], Array]) -> Callable[[PyTree], PyTree]:
        return lambda state: jax.tree.map(change, state)

    return Engine(each(spread), run, each(whole))
