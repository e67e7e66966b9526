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
from jaxtyping import Array, Bool, Float, Int

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
        values.append(kid_full(a, b))
    return KID(float(np.mean(values)), float(np.std(values)))


def kid_full(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m e"], *, block: int = BLOCK) -> float:
    """The unbiased MMD^2 of whole sets: what `kid` estimates, with the least variance that they allow."""
    return float(kid_of(x, y, _all(x), block=block)[0])


def kid_of(
    x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m e"], subsets: Bool[np.ndarray, "k n"], *, block: int = BLOCK
) -> Float[np.ndarray, "k"]:
    """`kid_full` of each of many subsets of x, in one pass over the pairs: for `bootstrap.interval_of`."""
    if min(*subsets.sum(axis=1), len(y)) < 2:
        raise ValueError(f"{min(*subsets.sum(axis=1), len(y))} features have no unbiased MMD: at least 2 (--num)")
    return _mmd2(cubic, x, y, subsets, unbiased=True, block=block)


def cmmd(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m e"], *, sigma: float = 10.0, block: int = BLOCK) -> float:
    """1000 times the MMD^2 over all pairs (biased upwards, as published); features are brought to length 1 here.

    Meant for CLIP's image embeddings. Raises: ValueError if a feature is 0.
    """
    return float(cmmd_of(x, y, _all(x), sigma=sigma, block=block)[0])


def cmmd_of(
    x: Float[np.ndarray, "n d"],
    y: Float[np.ndarray, "m e"],
    subsets: Bool[np.ndarray, "k n"],
    *,
    sigma: float = 10.0,
    block: int = BLOCK,
) -> Float[np.ndarray, "k"]:
    """`cmmd` of each of many subsets of x, in one pass over the pairs: for `bootstrap.interval_of`."""
    if not subsets.any(axis=1).all() or not len(y):
        raise ValueError("0 features cannot be compared: at least 1 in each set (--num)")
    return 1000 * _mmd2(RBF(sigma), unit(x), unit(y), subsets, unbiased=False, block=block)


def unit(x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """Each row divided by its length, in float64. Raises: ValueError if a row is 0 or not finite."""
    x = x.astype(np.float64)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    bad = np.flatnonzero(~((length > 0) & np.isfinite(length)))
    if bad.size:
        raise ValueError(f"embedding {bad[0]} has the length {length[bad[0], 0]:g}: it must be finite and above 0")
    return x / length


def _all(x: np.ndarray) -> Bool[np.ndarray, "1 n"]:
    return np.ones((1, len(x)), bool)


def _mmd2(
    kernel: Kernel,
    x: np.ndarray,
    y: np.ndarray,
    subsets: Bool[np.ndarray, "k n"],
    *,
    unbiased: bool,
    block: int,
) -> Float[np.ndarray, "k"]:
    check_dimensions(x, y)
    sizes = subsets.sum(axis=1)
    weights, ones = subsets.T.astype(np.float32), np.ones((len(y), 1), np.float32)
    # Without the diagonal: nothing is missing from a kernel that is 0 there.
    xx = _sum(kernel, x, x, weights, block, diagonal=False, outer=weights) / (sizes * (sizes - unbiased))
    yy = _sum(kernel, y, y, ones, block, diagonal=False, outer=ones) / (len(y) * (len(y) - unbiased))
    return xx + yy - 2 * _sum(kernel, x, y, ones, block, diagonal=True, outer=weights) / (sizes * len(y))


def _sum(
    kernel: Kernel,
    x: np.ndarray,
    y: np.ndarray,
    inner: Float[np.ndarray, "m j"],
    block: int,
    *,
    diagonal: bool,
    outer: Float[np.ndarray, "n k"],
) -> Float[np.ndarray, "k"]:
    """sum_ij outer_ik kernel(x_i, y_j) inner_jk for each k, over all pairs or over those with i != j."""
    block = min(block, max(len(x), len(y)))
    columns, weights = jnp.asarray(_blocks(y, block)), jnp.asarray(_blocks(inner, block))
    total = np.zeros(outer.shape[1])
    for i, rows in enumerate(_blocks(x, block)):
        # A block of rows has none of the columns from -block - 1 on.
        first = np.int32(-block - 1 if diagonal else i * block)
        sums = np.asarray(_row_sums(kernel, rows, columns, weights, first)).sum(axis=0, dtype=np.float64)
        part = outer[i * block : (i + 1) * block]
        total += np.sum(part * sums[: len(part)], axis=0)
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
    weights: Float[Array, "k block j"],
    first: Int[Array, ""],
) -> Float[Array, "k block j"]:
    """The kernel's weighted sums over each block of columns; row i leaves the column first + i out."""
    here = jnp.arange(rows.shape[0], dtype=jnp.int32)

    def against(
        k: Int[Array, ""], part: Float[Array, "block d"], weight: Float[Array, "block j"]
    ) -> Float[Array, "block j"]:
        own = k * part.shape[0] + here == first + here[:, None]
        return _dot(jnp.where(own, 0.0, kernel(rows, part)), weight.T)

    numbers = jnp.arange(columns.shape[0], dtype=jnp.int32)
    return jax.lax.map(lambda each: against(*each), (numbers, columns, weights))
