"""The state of a run, its keys, and the devices of a CPU."""

import enum
import os
from typing import NamedTuple

import jax
import optax
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
