"""Exact denoisers of known data: what solvers, guidance and likelihoods are measured against without a network.

A mixture of normals of means m_k and one standard deviation s, pixel by pixel:

    E[x0 | x] = sum_k p_k(x) (m_k + alpha s^2 (x - alpha m_k) / (alpha^2 s^2 + sigma^2))

A mixture of normals of means m_k and covariances C_k over all pixels together:

    E[x0 | x] = sum_k p_k(x) (m_k + alpha C_k (alpha^2 C_k + sigma^2 I)^-1 (x - alpha m_k))

whose posterior given y = A x0 + noise n is another such mixture (`conditioned`), which is what methods for inverse
problems are held against.

A finite set of images x_i:

    E[x0 | x] = sum_i softmax_i(-|x - alpha x_i|^2 / (2 sigma^2)) x_i
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdiff.core import gaussian
from jaxdiff.core.types import ApplyFn, Cond, Denoise, Estimate, Level, Params, Prediction

Image = Float[Array, "b h w c"]


class Mixture(NamedTuple):
    """Every pixel is an independent draw of a mixture of normals of one standard deviation."""

    means: Float[Array, "*b k"]
    std: Float[Array, ""]
    weights: Float[Array, "k"]


def normal(mean: float, std: float) -> Mixture:
    """The mixture of one normal."""
    return Mixture(jnp.array([mean]), jnp.float32(std), jnp.ones(1))


def of_mixture(data: Mixture) -> Denoise:
    """The exact denoiser of a mixture, at any level."""

    def denoise(x: Image, cur: Level, nxt: Level) -> Estimate:
        alpha, sigma = (gaussian.expand(v, x)[..., None] for v in cur)
        variance = jnp.square(alpha * data.std) + jnp.square(sigma)
        gap = x[..., None] - alpha * data.means
        p = jax.nn.softmax(jnp.log(data.weights) - 0.5 * jnp.square(gap) / variance, axis=-1)
        x0 = data.means + alpha * jnp.square(data.std) / variance * gap
        return Estimate(jnp.sum(p * x0, -1), jnp.sum(p * gap * sigma / variance, -1))

    return denoise


class Normals(NamedTuple):
    """Images, flattened, are draws of a mixture of normals; in float64, for exact posteriors."""

    means: Float[np.ndarray, "k d"]
    covariances: Float[np.ndarray, "k d d"]
    weights: Float[np.ndarray, "k"]

    @property
    def mean(self) -> Float[np.ndarray, "d"]:
        """Of the whole mixture."""
        return self.weights @ self.means

    @property
    def covariance(self) -> Float[np.ndarray, "d d"]:
        """Of the whole mixture."""
        gap = self.means - self.mean
        within = np.einsum("k,kij->ij", self.weights, self.covariances)
        return within + np.einsum("k,ki,kj->ij", self.weights, gap, gap)


def of_normals(data: Normals) -> Denoise:
    """The exact denoiser of such images, of any shape with d pixels and channels, at any level."""
    values, vectors = np.linalg.eigh(data.covariances)
    values, vectors, means = (jnp.asarray(a, jnp.float32) for a in (np.maximum(values, 0), vectors, data.means))
    log_weights = jnp.log(jnp.asarray(data.weights, jnp.float32))

    def turned(by: str, a: Array, b: Array) -> Array:
        return jnp.einsum(by, a, b, precision=jax.lax.Precision.HIGHEST)

    def denoise(x: Image, cur: Level, nxt: Level) -> Estimate:
        alpha, sigma = (jnp.broadcast_to(v, x.shape[:1])[:, None, None] for v in cur)
        variance = jnp.square(alpha) * values + jnp.square(sigma)
        # In the coordinates of each covariance's vectors, [b, k, d].
        gap = turned("bkd,kde->bke", x.reshape(x.shape[0], 1, -1) - alpha * means, vectors)
        p = jax.nn.softmax(log_weights - 0.5 * jnp.sum(jnp.square(gap) / variance + jnp.log(variance), -1), axis=-1)
        x0 = means + turned("bke,kde->bkd", alpha * values / variance * gap, vectors)
        eps = turned("bke,kde->bkd", sigma / variance * gap, vectors)
        return Estimate(*(turned("bk,bkd->bd", p, a).reshape(x.shape) for a in (x0, eps)))

    return denoise


def conditioned(
    data: Normals, matrix: Float[np.ndarray, "m d"], y: Float[np.ndarray, "m"], noise: float
) -> tuple[Normals, float]:
    """(the posterior of such images given y = matrix x + noise n, the log density of y)."""
    surprise = []
    means, covariances = np.empty_like(data.means), np.empty_like(data.covariances)
    for i, (mean, covariance) in enumerate(zip(data.means, data.covariances, strict=True)):
        of_y = matrix @ covariance @ matrix.T + noise**2 * np.eye(y.size)
        gain = np.linalg.solve(of_y, matrix @ covariance).T
        miss = y - matrix @ mean
        means[i] = mean + gain @ miss
        covariances[i] = covariance - gain @ matrix @ covariance
        log_det = np.linalg.slogdet(2 * np.pi * of_y)[1]
        surprise.append(-0.5 * (miss @ np.linalg.solve(of_y, miss) + log_det))
    logs = np.log(data.weights) + np.array(surprise)
    total = float(np.logaddexp.reduce(logs))
    return Normals(means, covariances, np.exp(logs - total)), total


def of_images(images: Float[Array, "n h w c"]) -> Denoise:
    """The exact denoiser of a finite set of images, each as likely as the others: it draws from the set itself."""
    flat = images.reshape(images.shape[0], -1)

    def denoise(x: Image, cur: Level, nxt: Level) -> Estimate:
        alpha, sigma = (jnp.broadcast_to(v, x.shape[:1])[:, None] for v in cur)
        rows = x.reshape(x.shape[0], -1)
        # |x - alpha x_i|^2 less |x|^2, which all share.
        square = jnp.square(alpha) * jnp.sum(jnp.square(flat), axis=-1) - 2 * alpha * rows @ flat.T
        p = jax.nn.softmax(-0.5 * square / jnp.square(sigma), axis=-1)
        return gaussian.from_x0(cur, x, (p @ flat).reshape(x.shape))

    return denoise


def network(prediction: Prediction, denoise: Denoise) -> ApplyFn:
    """A network whose output, read as `prediction`, is this belief."""

    def apply(params: Params, x: Image, cur: Level, nxt: Level, cond: Cond, key=None) -> Image:
        believed = denoise(x, cur, nxt)
        return gaussian.target(prediction, cur, believed.x0, believed.eps)

    return apply
