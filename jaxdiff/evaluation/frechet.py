"""The Fréchet distance of two Gaussians, which is FID when the features are Inception's.

    FD = |mu_1 - mu_2|^2 + tr S_1 + tr S_2 - 2 tr (S_1 S_2)^(1/2)

With factors S_i = F_i F_i^T the last trace is the sum of the singular values of F_1^T F_2, so no square root is
ever taken of a rounding error: singular covariances (fewer features than dimensions) are as exact as others.

The distance of n features from a Gaussian is biased upwards by about b / n: compare figures of one n only, or
extrapolate to 1 / n = 0.

Source: arXiv:1706.08500 (the distance), arXiv:1911.07023 (the extrapolation).
"""

import numpy as np
from jaxtyping import Float

from jaxdiff.evaluation.moments import Gaussian, check_dimensions, gaussian, moments


def factor(covariance: Float[np.ndarray, "d d"]) -> Float[np.ndarray, "d r"]:
    """F with F F^T = covariance and one column for each eigenvalue above rounding.

    Raises: ValueError if the matrix is not positive semi-definite, even to float32 precision.
    """
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    if values[0] < -1e-4 * max(values[-1], 0.0):
        raise ValueError(f"a covariance with the eigenvalue {values[0]:.3g} is none: all must be >= 0; make it anew")
    kept = values > len(values) * np.finfo(np.float64).eps * values[-1]
    return vectors[:, kept] * np.sqrt(values[kept])


def frechet(a: Gaussian, b: Gaussian) -> float:
    """The squared Fréchet (2-Wasserstein) distance of two Gaussians, >= 0. Raises: ValueError if dimensions differ."""
    check_dimensions(a.mean, b.mean)
    cross = np.linalg.svd(factor(a.covariance).T @ factor(b.covariance), compute_uv=False).sum()
    return _assemble(a, b, float(cross))


def frechet_from(root: Float[np.ndarray, "d r"], a: Gaussian, b: Gaussian) -> float:
    """`frechet(a, b)` with root = factor(b.covariance) known: several times faster, exact to about 1e-6 of tr b.

    For many sets against one reference, where the square roots of small eigenvalues need fewer digits.
    """
    check_dimensions(a.mean, b.mean)
    values = np.linalg.eigvalsh(root.T @ a.covariance @ root)
    return _assemble(a, b, float(np.sqrt(np.maximum(values, 0.0)).sum()))


def extrapolated(features: Float[np.ndarray, "n d"], reference: Gaussian, *, points: int = 15, seed: int = 0) -> float:
    """The Fréchet distance at n = infinity: the straight line in 1/n through random subsets, at 1/n = 0.

    `points` sizes, evenly from n / 10 to n; for each the mean over as many disjoint subsets as there are, which
    takes most of the noise of single small subsets away. Close to 0 the figure may fall below 0.

    Raises: ValueError with fewer than 20 features, or fewer than 2 points.
    """
    n = len(features)
    if n < 20 or points < 2:
        raise ValueError(f"{n} features and {points} points cannot be extrapolated: at least 20 and 2 (--num)")
    root = factor(reference.covariance)
    sizes = np.linspace(n // 10, n, points).round().astype(int)
    distances = []
    for i, size in enumerate(sizes):
        order = np.random.default_rng((seed, i)).permutation(n)
        subsets = [features[order[start : start + size]] for start in range(0, n - size + 1, size)]
        distances.append(np.mean([frechet_from(root, gaussian(moments(s)), reference) for s in subsets]))
    _, intercept = np.polyfit(1 / sizes, distances, 1)
    return float(intercept)


def _assemble(a: Gaussian, b: Gaussian, cross: float) -> float:
    gap = a.mean - b.mean
    total = gap @ gap + np.trace(a.covariance) + np.trace(b.covariance) - 2 * cross
    return max(float(total), 0.0)
