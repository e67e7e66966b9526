"""The Gaussian of a set of features: its size, mean and covariance, in float64 on the host.

    scatter = sum_i (f_i - mean) (f_i - mean)^T,      covariance = scatter / (n - 1)

Each batch is centred on its own mean first, so that a large offset costs no digits, and two parts are merged by

    n = n_a + n_b,   delta = mean_b - mean_a
    mean    = mean_a + delta n_b / n
    scatter = scatter_a + scatter_b + delta delta^T n_a n_b / n

in any grouping: batches, shards, hosts (the result differs by float64 rounding only).

A stored statistics file is an .npz with

    mu [d], sigma [d, d]          float64 mean and covariance (divided by n - 1), as pytorch-fid names them
    mu_s [e], sigma_s [e, e]      optional: the same of spatial features, as ADM's evaluator names them
    n                             int64: how many images; 0 when unknown
    network, weights_sha256, resize, dataset, dataset_sha256
                                  strings: how they were made; "" when unknown

Files of pytorch-fid (mu, sigma) and of ADM (and mu_s, sigma_s, images) are read as well: other keys are ignored.
"""

import functools
import io
import zipfile
from typing import NamedTuple

import jax
import numpy as np
from etils import epath
from jaxtyping import Float, UInt32

from jaxdiff.evaluation.store import write_whole

ROWS = 2048
"""Features that are held in float64 at a time."""


class Moments(NamedTuple):
    """Of `n` features: what can be added up. `n` = 0 is the empty set."""

    n: int
    mean: Float[np.ndarray, "d"]
    scatter: Float[np.ndarray, "d d"]


class Gaussian(NamedTuple):
    """A mean and a covariance: all that the Fréchet distance sees of a set."""

    mean: Float[np.ndarray, "d"]
    covariance: Float[np.ndarray, "d d"]


class Statistics(NamedTuple):
    """What a statistics file holds; the words say how it was made, "" when unknown."""

    pooled: Gaussian
    spatial: Gaussian | None = None
    """Of spatial features, for sFID."""
    n: int = 0
    """How many images; 0 when unknown."""
    network: str = ""
    weights_sha256: str = ""
    resize: str = ""
    dataset: str = ""
    dataset_sha256: str = ""


NUMBERS = ("mu", "sigma", "mu_s", "sigma_s", "n")
WORDS = ("network", "weights_sha256", "resize", "dataset", "dataset_sha256")


def empty(dim: int) -> Moments:
    """The moments of no features of `dim` numbers: merging them changes nothing."""
    return Moments(0, np.zeros(dim), np.zeros((dim, dim)))


def moments(features: Float[np.ndarray, "n d"]) -> Moments:
    """The moments of a batch, or of a whole set. Raises: ValueError if a feature is not finite."""

    total = empty(features.shape[1])
    for start in range(0, len(features), ROWS):
        block = features[start : start + ROWS].astype(np.float64)
        finite = np.isfinite(block).all(axis=1)
        if not finite.all():
            bad = start + int(np.argmin(finite))
            raise ValueError(f"feature {bad} is not finite: look at image {bad}, or compute the features in float32")
        mean = block.mean(axis=0)
        block -= mean
        total = merge(total, Moments(len(block), mean, block.T @ block))
    return total


def merge(a: Moments, b: Moments) -> Moments:
    """The moments of the union of two sets. Raises: ValueError if their dimensions differ."""
    check_dimensions(a.mean, b.mean)
    if not a.n or not b.n:
        return a if a.n else b
    n = a.n + b.n
    delta = b.mean - a.mean
    return Moments(n, a.mean + delta * (b.n / n), a.scatter + b.scatter + np.outer(delta, delta) * (a.n * b.n / n))


def remove(whole: Moments, part: Moments) -> Moments:
    """The moments of the rest of a set, some features remaining: the inverse of `merge`."""
    check_dimensions(whole.mean, part.mean)
    n = whole.n - part.n
    if n < 1:
        raise ValueError(f"{part.n} features cannot be removed from {whole.n}: some must remain")
    delta = (whole.mean - part.mean) * (whole.n / n)
    scatter = whole.scatter - part.scatter - np.outer(delta, delta) * (part.n * n / whole.n)
    return Moments(n, part.mean + delta, scatter)


def gaussian(m: Moments) -> Gaussian:
    """Mean and unbiased covariance, scatter / (n - 1). Raises: ValueError with fewer than two features."""
    if m.n < 2:
        raise ValueError(f"{m.n} features have no covariance: at least 2 are needed (--num)")
    return Gaussian(m.mean, m.scatter / (m.n - 1))


def pack(m: Moments) -> UInt32[np.ndarray, "k"]:
    """The moments as bits: JAX would make their float64 float32, and passes uint32 on as they are."""
    return np.concatenate([[float(m.n)], m.mean, m.scatter.ravel()]).view(np.uint32)


def unpack(bits: UInt32[np.ndarray, "k"]) -> Moments:
    """The inverse of `pack`, bit for bit."""
    numbers = np.ascontiguousarray(bits).view(np.float64)
    # 1 + d + d**2 numbers.
    dim = int((np.sqrt(4 * numbers.size - 3) - 1) / 2)
    return Moments(int(numbers[0]), numbers[1 : 1 + dim], numbers[1 + dim :].reshape(dim, dim))


def across_hosts(part: Moments) -> Moments:
    """The moments of all processes' features, the same on each: every process must call it."""
    if jax.process_count() == 1:
        return part
    from jax.experimental import multihost_utils

    parts = np.asarray(multihost_utils.process_allgather(pack(part)))
    return functools.reduce(merge, map(unpack, parts))


def save(path: epath.PathLike, statistics: Statistics) -> None:
    """Writes a statistics file; equal statistics make equal bytes. The file appears only once it is complete."""
    path = epath.Path(path)
    if path.suffix != ".npz":
        raise ValueError(f"a statistics file cannot be named {path.name}: the name must end in .npz")
    s = statistics
    arrays = {"mu": s.pooled.mean, "sigma": s.pooled.covariance}
    if s.spatial is not None:
        arrays |= {"mu_s": s.spatial.mean, "sigma_s": s.spatial.covariance}
    arrays = {key: value.astype(np.float64) for key, value in arrays.items()}
    arrays |= {"n": np.array(s.n, np.int64)} | {key: np.array(getattr(s, key)) for key in WORDS}
    whole = io.BytesIO()
    np.savez(whole, **arrays)  # pyright: ignore[reportArgumentType]
    write_whole(path, whole.getvalue())


def load(path: epath.PathLike) -> Statistics:
    """Reads a statistics file: this library's, pytorch-fid's or ADM's. Nothing in it can run code.

    Raises: ValueError if it is no such file, or holds no mean and covariance that belong together.
    """
    try:
        with np.load(io.BytesIO(epath.Path(path).read_bytes()), allow_pickle=False) as file:
            arrays = {key: file[key] for key in (*NUMBERS, *WORDS) if key in file}
    except (zipfile.BadZipFile, EOFError, ValueError, TypeError) as error:
        raise ValueError(f"{path} is no statistics file (.npz with mu and sigma): see --reference") from error
    pooled = _gaussian_in(arrays, "mu", "sigma", path)
    spatial = _gaussian_in(arrays, "mu_s", "sigma_s", path) if "mu_s" in arrays else None
    words = {key: str(arrays[key]) for key in WORDS if key in arrays}
    return Statistics(pooled, spatial, int(arrays.get("n", 0)), **words)


def _gaussian_in(arrays: dict[str, np.ndarray], mu: str, sigma: str, path: epath.PathLike) -> Gaussian:
    if mu not in arrays or sigma not in arrays:
        raise ValueError(f"{path} holds no {mu} and {sigma}: it is no statistics file, see --reference")
    mean, covariance = arrays[mu].astype(np.float64), arrays[sigma].astype(np.float64)
    if mean.ndim != 1 or covariance.shape != 2 * mean.shape:
        raise ValueError(f"{path}: {mu} {mean.shape} and {sigma} {covariance.shape} are no mean and covariance")
    if not (np.all(np.isfinite(mean)) and np.all(np.isfinite(covariance))):
        raise ValueError(f"{path}: {mu} or {sigma} is not finite; make the file anew")
    if not np.allclose(covariance, covariance.T, rtol=1e-4, atol=1e-5 * np.abs(covariance).max()):
        raise ValueError(f"{path}: {sigma} is not symmetric, so no covariance; make the file anew")
    return Gaussian(mean, covariance)


def check_dimensions(a: np.ndarray, b: np.ndarray) -> None:
    """Raises: ValueError if two features (or means) are of different networks."""
    if a.shape[-1] != b.shape[-1]:
        raise ValueError(
            f"features of {a.shape[-1]} and of {b.shape[-1]} numbers cannot be compared: use one --network for both"
        )
