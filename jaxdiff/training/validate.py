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

    Batches are those of `data.validation_batches`: uint8 images, conditions, and a `mask` of the real rows. Example
    i sees the same noise at every level and in every call with the same key.
    """

    @jax.jit
    def batch_sums(
        params: Params,
        key: Key[Array, ""],
        times: Float[Array, "levels"],
        first: Int[Array, ""],
        raw: Mapping,
    ) -> Float[Array, "levels"]:
        mask = raw["mask"]
        rest = {k: v for k, v in raw.items() if k != "mask"}
        rows = first + jnp.arange(mask.shape[0], dtype=jnp.int32)

        def at(t: Float[Array, ""]) -> Float[Array, ""]:
            values = losses(params, key, rest, rows, jnp.full(mask.shape, t))
            return jnp.sum(jnp.where(mask, values, 0.0))

        return jax.lax.map(at, times)

    def validate(
        params: Params, key: Key[Array, ""], times: Float[Array, "levels"], batches: Iterable[Mapping]
    ) -> Float[np.ndarray, "levels"]:
        total, count = np.zeros(times.shape[0]), 0
        for raw in batches:
            total += np.asarray(batch_sums(params, key, times, jnp.int32(count), dict(raw)), np.float64)
            count += int(np.sum(raw["mask"]))
        if not count:
            raise ValueError("there is no image to validate on (--data.holdout)")
        return total / count

    return validate
