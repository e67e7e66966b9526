"""The state of a run, and its keys."""

import enum
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
