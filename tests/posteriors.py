"""Problems whose posterior is known in closed form, and methods run on them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.core import grids, paths
from jaxdiff.names import OPERATORS, value_of
from jaxdiff.sampling import exact
from jaxdiff.sampling.ancestral import Ancestral
from jaxdiff.sampling.inverse.operator import matrix_of, seen_of
from jaxdiff.sampling.inverse.problem import Problem
from jaxdiff.sampling.sample import image_keys, initial, sample_and_state

SHAPE, D = (4, 4, 1), 16
STD = 0.5
N = 1024
MOST_STEPS = 100
TWISTED, STEERED = "tds(particles=256, std=0.4)", "fk(particles=1024, std=0.4)"
TASKS = ("mask(hidden=0.5)", "downsample(factor=2)", "blur(std=0.8)")


def independent():
    """Pixels that are independent normals of one deviation around a ramp."""
    return exact.Normals(np.linspace(-0.5, 0.5, D)[None], STD**2 * np.eye(D)[None], np.ones(1))


def mixture():
    """Two kinds of smooth pictures."""
    rows, columns = np.divmod(np.arange(D), 4)
    square = (rows[:, None] - rows) ** 2 + (columns[:, None] - columns) ** 2
    covariance = 0.3**2 * (0.9 * np.exp(-square / 4) + 0.1 * np.eye(D))
    means = np.stack([0.5 - columns / 3, columns / 3 - 0.5])
    return exact.Normals(means, np.stack([covariance, covariance]), np.array([0.6, 0.4]))


@functools.cache
def operator_of(text, shape=SHAPE):
    """One operator for each text, so that compilations are shared."""
    return value_of(text, OPERATORS, "--operator").on(shape, {})


def problem_of(data, text, noise, seed=1):
    """(the operator, one measurement, the posterior, its log density)."""
    operator, rng = operator_of(text), np.random.default_rng(seed)
    a = matrix_of(operator)
    seen = seen_of(operator).ravel() > 0
    x = rng.multivariate_normal(data.means[0], data.covariances[0])
    y = (a @ x + noise * rng.normal(size=len(a))) * seen
    truth, surprise = exact.conditioned(data, a[seen], y[seen], noise)
    return operator, y.reshape(operator.measured), truth, surprise


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _run(method, operator, solver, denoise, y, noise, levels):
    keys = image_keys(3, jnp.arange(N))
    x = initial(keys, SHAPE, jax.tree.map(lambda a: a[0], levels))
    many = jnp.broadcast_to(y, (N, *y.shape))
    return sample_and_state(keys, x, levels, denoise, method(Problem(operator, many, noise), solver))


def karras(steps, path=paths.Sigma(), low=0.01):
    """Levels, padded so that one compilation serves all."""
    return grids.pad(grids.Karras(low, 20.0)(path, steps), MOST_STEPS)


def run(method, operator, y, noise, data, solver=Ancestral(), levels=None):
    """(N draws, flattened, the solver's last state)."""
    y, noise = jnp.asarray(y, jnp.float32), jnp.float32(noise)
    x, state = _run(method, operator, solver, denoiser_of(data), y, noise, karras(64) if levels is None else levels)
    return np.asarray(x, np.float64).reshape(N, -1), state


_denoisers = {}


def denoiser_of(data):
    """One denoiser for each data set, so that compilations are shared."""
    key = data.means.tobytes() + data.covariances.tobytes()
    return _denoisers.setdefault(key, exact.of_normals(data))


def distances(x, truth):
    """(distance of the means over the posterior's deviation, share of its variance)."""
    scale = np.trace(truth.covariance)
    return np.linalg.norm(x.mean(0) - truth.mean) / np.sqrt(scale), np.trace(np.cov(x.T)) / scale
