"""The state of a run, its keys, and where its arrays live."""

import enum
import os
from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, Key

from jaxdiff.core.types import Params


class TrainState(NamedTuple):
    """All that training changes. Float32; randomness is counted from `step`, never carried."""

    step: Int[Array, ""]
    params: Params
    opt_state: optax.OptState
    ema: tuple[Params, ...]


class Purpose(enum.IntEnum):
    """What a key is for."""

    INIT = 0
    TRAIN = 1
    VALIDATE = 2


def key_for(seed: int, step: int | Int[Array, ""], purpose: Purpose) -> Key[Array, ""]:
    """fold_in(fold_in(seed, step), purpose): the same key in an uninterrupted run and in a resumed one."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), int(purpose))


def use_every_core(batch_size: int) -> None:
    """Makes each core of a CPU a device of its own, as far as the batch can be shared out. Call it before all else.

    XLA runs a convolution of few channels on one thread, so two devices of one core are faster than one of two. Does
    nothing where there is an accelerator, or where XLA_FLAGS or JAX_NUM_CPU_DEVICES already says how many.
    """
    if "host_platform_device_count" in os.environ.get("XLA_FLAGS", "") or "JAX_NUM_CPU_DEVICES" in os.environ:
        return
    most = max(1, min(os.cpu_count() or 1, batch_size // 16))
    jax.config.update("jax_num_cpu_devices", next(n for n in range(most, 0, -1) if batch_size % n == 0))


def data_mesh() -> Mesh:
    """All devices of all processes in one axis, `data`."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def shard_batch(mesh: Mesh, batch: Mapping[str, object]) -> dict[str, Array]:
    """This process's rows of a batch, as its part of arrays that are sharded over all devices."""
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    return jax.tree.map(lambda v: jax.make_array_from_process_local_data(sharding, np.asarray(v)), dict(batch))
