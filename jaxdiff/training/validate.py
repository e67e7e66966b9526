"""Validation loss by noise level."""

from collections.abc import Callable, Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from jaxdiff.core.types import Params

Losses = Callable[[Params, Key[Array, ""], Mapping[str, Array], Int[Array, "b"], Float[Array, "b"]], Float[Array, "b"]]
"""``(params, key, raw batch, rows, t) -> loss of each example``."""


def make_validate(losses: Losses) -> Callable[..., Float[np.ndarray, "levels"]]:
    """(params, key, times [levels], batches) -> the mean loss at each time over all examples.

    Batches are those of `data.validation_batches`, on the devices or not: uint8 images, conditions, and a `mask` of the
    real rows. Example i sees the same noise at every level and in every call with the same key.
    """

    @jax.jit
    def batch_sums(
        params: Params,
        key: Key[Array, ""],
        times: Float[Array, "levels"],
        first: Int[Array, ""],
        raw: Mapping,
    ) -> tuple[Float[Array, "levels"], Int[Array, ""]]:
        mask = raw["mask"]
        rest = {k: v for k, v in raw.items() if k != "mask"}
        rows = first + jnp.arange(mask.shape[0], dtype=jnp.int32)

        def at(t: Float[Array, ""]) -> Float[Array, ""]:
            values = losses(params, key, rest, rows, jnp.full(mask.shape, t))
            return jnp.sum(jnp.where(mask, values, 0.0))

        return jax.lax.map(at, times), jnp.sum(mask)

    def validate(
        params: Params, key: Key[Array, ""], times: Float[Array, "levels"], batches: Iterable[Mapping]
    ) -> Float[np.ndarray, "levels"]:
        total, count = np.zeros(times.shape[0]), 0
        for raw in batches:
            sums, number = jax.device_get(batch_sums(params, key, times, jnp.int32(count), dict(raw)))
            total, count = total + np.asarray(sums, np.float64), count + int(number)
        if not count:
            raise ValueError("there is no image to validate on (--data.holdout)")
        return total / count

    return validate


def continuous_bits(
    validate: Callable[..., Float[np.ndarray, "levels"]],
    params: Params,
    key: Key[Array, ""],
    pages: Callable[[], Iterable[Mapping]],
    rounds: int = 8,
    levels: int = 10,
) -> float:
    """The mean of a loss that is a bound in bits per dimension at uniform times in [0, 1] (VDM's), over all images.

    `validate` is `make_validate`'s and `pages` makes its batches. The times are the middles of rounds * levels equal
    parts, and each round of `levels` of them has noise of its own.
    """
    starts = np.arange(levels) / levels
    means = []
    for i in range(rounds):
        times = jnp.asarray(starts + (i + 0.5) / (rounds * levels), jnp.float32)
        means.append(validate(params, jax.random.fold_in(key, i), times, pages()))
    return float(np.mean(means))
