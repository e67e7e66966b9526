"""What every objective shares: the batch it reads, and noise that is keyed by the example, not by the device."""

from collections.abc import Mapping
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxdiff.core.types import ApplyFn, Cond, Params, Path, Prediction, TimeLaw

Metrics = Mapping[str, Float[Array, ""]]


class Batch(NamedTuple):
    """Clean images in [-1, 1], their conditions, and each example's row in the global batch of `total` rows.

    All that is random about an example depends on its row, so a batch gives the same loss whole and in parts, on one
    device and on many (but for dropout, whose masks are drawn for the rows that are seen together).
    """

    x0: Float[Array, "b h w c"]
    cond: Cond
    row: Int[Array, "b"]
    total: int | None = None
    """None: as many as there are here."""
    step: Int[Array, ""] | None = None
    """Training steps before this one; None: all are done."""


@runtime_checkable
class Objective(Protocol):
    """What a training step minimises. Frozen dataclasses; `prediction` says what the network's output means."""

    prediction: Prediction

    def __call__(
        self, apply: ApplyFn, params: Params, key: Key[Array, ""], batch: Batch
    ) -> tuple[Float[Array, ""], Metrics]:
        """The loss at times of the objective's own law, and metrics to log."""
        ...

    def losses(
        self, apply: ApplyFn, params: Params, key: Key[Array, ""], batch: Batch, t: Float[Array, "b"]
    ) -> Float[Array, "b"]:
        """The loss of each example at given times, without dropout: what validation measures by noise level."""
        ...

    def path_of(self, params: Params) -> Path:
        """The path, fixed or learned, that sampling follows."""
        ...


def row_keys(key: Key[Array, ""], row: Int[Array, "b"]) -> Key[Array, "b"]:
    """One key per example: the key folded with its row, whatever device holds the row."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, row)


def times_of(law: TimeLaw, key: Key[Array, ""], batch: Batch, path: Path) -> Float[Array, "b"]:
    """Each example's time: the law's draw for the whole batch, at the example's row."""
    if batch.total is None:
        return law(key, batch.x0.shape[0], path)
    return law(key, batch.total, path)[batch.row]


def network_key(key: Key[Array, ""], batch: Batch) -> Key[Array, ""]:
    """The key of the network's dropout: another one for other parts of the global batch."""
    return jax.random.fold_in(key, batch.row[0])


def noise_like(key: Key[Array, ""], batch: Batch) -> Float[Array, "b h w c"]:
    """Standard normal noise for each example, from its own key."""
    shape = batch.x0.shape[1:]
    return jax.vmap(lambda k: jax.random.normal(k, shape))(row_keys(key, batch.row))


def image_mean(a: Float[Array, "b h w c"]) -> Float[Array, "b"]:
    """Mean over height, width and channels, in float32."""
    return jnp.mean(a.astype(jnp.float32), axis=(1, 2, 3))
