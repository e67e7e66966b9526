"""Squared maximum mean discrepancies of two sets of features, with their kernels' sums made block by block.

    MMD^2 = mean k(x, x') + mean k(y, y') - 2 mean k(x, y)

    KID     k = (x.y / d + 1)^3, the means over x != x': unbiased, so it may fall below 0
    CMMD    k = exp(-|x - y|^2 / (2 sigma^2)) of features of length 1, over all pairs, times 1000

A constant added to k changes neither, so both kernels are taken less 1: the digits go to what differs. On the
device all is float32 at the highest precision; sums over blocks are float64 on the host.

Source: arXiv:1801.01401 (KID), arXiv:2401.09603 (CMMD).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxdiff.evaluation.moments import check_dimensions

Kernel = Callable[[Float[Array, "n d"], Float[Array, "m d"]], Float[Array, "n m"]]
"""k - 1 of every pair; 0 where x = y if it is a kernel of distances."""

BLOCK = 1024
"""Rows of a block: a block of the kernel's matrix is 4 MB."""


class KID(NamedTuple):
    """Over random subsets."""

    mean: float
    std: float


def _dot(x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Float[Array, "n m"]:
    # TPUs and recent GPUs would otherwise round the factors to 8 or 11 bits.
    return jnp.matmul(x, y.T, precision=jax.lax.Precision.HIGHEST)


def cubic(x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Float[Array, "n m"]:
    """(x.y / d + 1)^3 - 1, KID's kernel."""
    g = _dot(x, y) / x.shape[1]
    return g * (3 + g * (3 + g))


@dataclasses.dataclass(frozen=True)
class RBF:
    """exp(-|x - y|^2 / (2 sigma^2)) - 1 of vectors of length 1."""

    sigma: float = 10.0

    def __call__(self, x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Float[Array, "n m"]:
        return jnp.expm1((_dot(x, y) - 1) / self.sigma**2)


def kid(
    x: Float[np.ndarray, "n d"],
    y: Float[np.ndarray, "m e"],
    *,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 0,
) -> KID:
    """Mean and standard deviation of the unbiased MMD^2 over random subsets of both sets; the field's KID.

    Subset i depends on (seed, i) only. The standard deviation is that of one subset's figure, not of the mean.

    Raises: ValueError if a set is smaller than a subset.
    """
    check_dimensions(x, y)
    if not 2 <= subset_size <= min(len(x), len(y)) or subsets < 1:
        raise ValueError(
            f"subsets = {subsets} of {subset_size} are not allowed: at least 1, of 2 to {min(len(x), len(y))} features"
        )
    values = []
    for i in range(subsets):
        rng = np.random.default_rng((seed, i))
        a, b = (v[rng.choice(len(v), subset_size, replace=False)] for v in (x, y))
        values.append(_mmd2(cubic, a, b, unbiased=True, block=BLOCK))
    return KID(float(np.mean(values)), float(np.std(values)))


def kid_full(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m e"], *, block: int = BLOCK) -> float:
    """The unbiased MMD^2 of whole sets: what `kid` estimates, with the least variance that they allow."""
    check_dimensions(x, y)
    if min(len(x), len(y)) < 2:
        raise ValueError(f"{min(len(x), len(y))} features have no unbiased MMD: at least 2 are needed (--num)")
    return _mmd2(cubic, x, y, unbiased=True, block=block)


def cmmd(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m e"], *, sigma: float = 10.0, block: int = BLOCK) -> float:
    """1000 times the MMD^2 over all pairs (biased upwards, as published); features are brought to length 1 here.

    Meant for CLIP's image embeddings before any normalisation or after. Raises: ValueError if a feature is 0.
    """
    check_dimensions(x, y)
    if not len(x) or not len(y):
        raise ValueError(f"sets of {len(x)} and {len(y)} features cannot be compared: at least 1 each (--num)")
    return 1000 * _mmd2(RBF(sigma), unit(x), unit(y), unbiased=False, block=block)


def unit(x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """Each row divided by its length, in float64. Raises: ValueError if a row is 0 or not finite."""
    x = x.astype(np.float64)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    bad = np.flatnonzero(~((length > 0) & np.isfinite(length)))
    if bad.size:
        raise ValueError(f"embedding {bad[0]} has the length {length[bad[0], 0]:g}: it must be finite and above 0")
    return x / length


def _mmd2(kernel: Kernel, x: np.ndarray, y: np.ndarray, *, unbiased: bool, block: int) -> float:
    def within(v: np.ndarray) -> float:
        # Without the diagonal: nothing is missing from a kernel that is 0 there.
        return _sum(kernel, v, v, block, diagonal=False) / (len(v) * (len(v) - unbiased))

    return within(x) + within(y) - 2 * _sum(kernel, x, y, block, diagonal=True) / (len(x) * len(y))


def _sum(kernel: Kernel, x: np.ndarray, y: np.ndarray, block: int, *, diagonal: bool) -> float:
    """The sum of the kernel over all pairs, or over those with i != j."""
    block = min(block, max(len(x), len(y)))
    columns = jnp.asarray(_blocks(y, block))
    total = 0.0
    for i, rows in enumerate(_blocks(x, block)):
        sums = _row_sums(kernel, rows, columns, np.int32(len(y)), np.int32(-block - 1 if diagonal else i * block))
        total += float(np.asarray(sums, np.float64)[:, : len(x) - i * block].sum())
    return total


def _blocks(x: np.ndarray, block: int) -> Float[np.ndarray, "k block d"]:
    """x in float32 with zeros at its end, so that one compiled function serves every block."""
    padded = np.zeros((-(-len(x) // block) * block, x.shape[1]), np.float32)
    padded[: len(x)] = x
    return padded.reshape(-1, block, x.shape[1])


@functools.partial(jax.jit, static_argnums=0)
def _row_sums(
    kernel: Kernel,
    rows: Float[Array, "block d"],
    columns: Float[Array, "k block d"],
    num_columns: Int[Array, ""],
    first: Int[Array, ""],
) -> Float[Array, "k block"]:
    """The kernel's sum over each block of columns; row i leaves the column first + i out."""
    here = jnp.arange(rows.shape[0], dtype=jnp.int32)

    def against(k: Int[Array, ""], part: Float[Array, "block d"]) -> Float[Array, "block"]:
        column = k * part.shape[0] + here
        kept = (column < num_columns) & (column[None, :] != first + here[:, None])
        return jnp.sum(jnp.where(kept, kernel(rows, part), 0.0), axis=1)

    return jax.lax.map(lambda each: against(*each), (jnp.arange(columns.shape[0], dtype=jnp.int32), columns))
