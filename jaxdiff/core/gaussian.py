"""The (x0, eps) plane: two equations, two unknowns.

    x   = alpha * x0 + sigma * eps
    out =     a * x0 +     b * eps,      (a, b) = prediction.row(level)
    det = alpha * b - sigma * a
    x0  = (b * x - sigma * out) / det
    eps = (alpha * out - a * x) / det

An error d in x0 (x being fixed) shows up in out as -(det / sigma) * d, so squared-error weights convert
between predictions by the squared ratio of their dets.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdiff.core.types import Estimate, Level, Prediction

Image = Float[Array, "b h w c"]


def expand(a: Float[Array, "*b"], x: Float[Array, "..."]) -> Float[Array, "..."]:
    """`a` (one number, or one per example) with trailing axes of length one, to broadcast against `x`."""
    return a.reshape(a.shape + (1,) * (x.ndim - a.ndim)) if a.ndim else a


def snr(level: Level) -> Float[Array, "*b"]:
    """(alpha / sigma)**2; `inf` at sigma = 0."""
    return jnp.square(level.alpha / level.sigma)


def logsnr(level: Level) -> Float[Array, "*b"]:
    """Natural logarithm of the SNR; `inf` at sigma = 0 and `-inf` at alpha = 0."""
    return 2 * (jnp.log(level.alpha) - jnp.log(level.sigma))


def diffuse(level: Level, x0: Image, eps: Image) -> Image:
    """alpha * x0 + sigma * eps. Also DDIM, Euler in sigma, Euler for rectified flow (on an estimate)."""
    return expand(level.alpha, x0) * x0 + expand(level.sigma, x0) * eps


def det(prediction: Prediction, level: Level) -> Float[Array, "*b"]:
    """alpha * b - sigma * a; zero where a network output cannot say where x0 is."""
    a, b = prediction.row(level)
    return level.alpha * b - level.sigma * a


def target(prediction: Prediction, level: Level, x0: Image, eps: Image) -> Image:
    """a * x0 + b * eps: what the network's output should be."""
    a, b = prediction.row(level)
    return expand(a, x0) * x0 + expand(b, x0) * eps


def estimate(prediction: Prediction, level: Level, x: Image, out: Image) -> Estimate:
    """Solves the 2x2 system for (x0, eps), given the noisy image and the network's output."""
    a, b = prediction.row(level)
    d = expand(det(prediction, level), x)
    x0 = (expand(b, x) * x - expand(level.sigma, x) * out) / d
    eps = (expand(level.alpha, x) * out - expand(a, x) * x) / d
    return Estimate(x0, eps)


def from_x0(level: Level, x: Image, x0: Image, v: Image | None = None) -> Estimate:
    """The estimate with this x0: eps = (x - alpha * x0) / sigma. Needs sigma > 0."""
    return Estimate(x0, (x - expand(level.alpha, x) * x0) / expand(level.sigma, x), v)


def from_eps(level: Level, x: Image, eps: Image, v: Image | None = None) -> Estimate:
    """The estimate with this eps: x0 = (x - sigma * eps) / alpha. Needs alpha > 0."""
    return Estimate((x - expand(level.sigma, x) * eps) / expand(level.alpha, x), eps, v)


def pushed(level: Level, believed: Estimate, gradient: Image) -> Estimate:
    """The estimate where `gradient`, that of a log likelihood in x, is added to the score -eps / sigma:

        eps' = eps - sigma g,      x0' = x0 + sigma^2 / alpha g

    At alpha = 0, where x says nothing of x0, there is no such likelihood and nothing changes.
    """
    alpha, sigma = (expand(a, gradient) for a in level)
    some = alpha > 0
    push = jnp.where(some, sigma * gradient, 0.0)
    return Estimate(believed.x0 + sigma / jnp.where(some, alpha, 1.0) * push, believed.eps - push, believed.v)


def check_solvable(prediction: Prediction, levels: Level) -> None:
    """Refuses concrete levels at which `estimate` divides by zero or the network's own inputs are not finite.

    Raises: ValueError, naming the prediction and the first such level (eps at alpha = 0, x0 at sigma = 0).
    """
    d = np.asarray(det(prediction, levels))
    coefficients = (d, *prediction.row(levels), prediction.c_in(levels), prediction.c_noise(levels))
    bad = np.flatnonzero(~np.all([np.isfinite(c) for c in coefficients], axis=0) | (d == 0))
    if bad.size:
        alpha, sigma = (float(np.ravel(v)[bad[0]]) for v in levels)
        if sigma == 0:
            remedy = "use V, Flow or Eps prediction, or levels with sigma > 0"
        else:
            remedy = "use V, Flow or X0 prediction, or start the grid below t_max (--grid.start)"
        raise ValueError(
            f"{type(prediction).__name__} prediction cannot be used at alpha = {alpha:g}, sigma = {sigma:g}: {remedy}"
        )
