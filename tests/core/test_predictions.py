"""Every prediction on every path, the table of rows, and EDM's preconditioning."""

import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.core import predictions
from jaxdiff.core.betas import CosineBetas
from jaxdiff.core.gaussian import check_solvable, det, diffuse, estimate, target
from jaxdiff.core.paths import Cosine, DiscreteVP, FixedPath, GeometricVE, Linear, LinearVP, Sigma, Sigmoid
from jaxdiff.core.predictions import EDM, X0, Angle, Eps, Flow, LogRatio, PathTime, Score, V
from jaxdiff.core.types import Level, Prediction

PATHS = [
    LinearVP(),
    DiscreteVP(),
    DiscreteVP(100, CosineBetas()),
    Cosine(4.0),
    Sigmoid(),
    GeometricVE(),
    Sigma(),
    Linear(3.0),
]
PREDICTIONS = [Eps(), X0(), V(), Flow(), Score(), EDM(), EDM(2.0, Angle())]
paths = pytest.mark.parametrize("path", PATHS, ids=repr)
each = pytest.mark.parametrize("prediction", PREDICTIONS, ids=lambda p: type(p).__name__)


def pictures(b, seed=0):
    keys = jax.random.split(jax.random.key(seed))
    return tuple(jax.random.normal(key, (b, 2, 2, 3)) for key in keys)


def f64(a):
    """One number per image, in float64, to broadcast against images."""
    return np.asarray(a, float).reshape(-1, 1, 1, 1)


def times(path):
    """Both ends, their neighbours, and the middle."""
    u = np.array([0.0, 1e-6, 1e-3, 0.1, 0.3, 0.5, 0.7, 0.9, 0.999, 1 - 1e-6, 1.0])
    return jnp.asarray(path.t_max * u, jnp.float32)


def test_all_are_tested():
    assert {type(path) for path in PATHS} == set(typing.get_args(FixedPath))
    assert {type(prediction) for prediction in PREDICTIONS} == set(typing.get_args(predictions.AnyPrediction))
    assert all(isinstance(prediction, Prediction) for prediction in PREDICTIONS)


@paths
@each
def test_round_trip_or_refusal(path, prediction):
    """target -> estimate gives (x0, eps) back, to the rounding of a 2x2 system, wherever it is not refused."""
    level = path(times(path))
    solvable = []
    for i in range(level.alpha.size):
        try:
            check_solvable(prediction, Level(level.alpha[i], level.sigma[i]))
            solvable.append(i)
        except ValueError as error:
            assert "\n" not in str(error)
            assert level.alpha[i] == 0 or level.sigma[i] == 0
    assert len(solvable) >= level.alpha.size - 2
    x0, eps = pictures(level.alpha.size)
    x, out = diffuse(level, x0, eps), target(prediction, level, x0, eps)
    found = estimate(prediction, level, x, out)
    a, b = (np.abs(f64(part)) for part in prediction.row(level))
    alpha, sigma, d = f64(level.alpha), f64(level.sigma), np.abs(f64(det(prediction, level)))
    # The rounding of x and of out, carried through the inverse matrix.
    size_x = alpha * np.abs(x0) + sigma * np.abs(eps)
    size_out = a * np.abs(x0) + b * np.abs(eps)
    bound = 6 * 2.0**-24
    with np.errstate(all="ignore"):
        limits = bound * (b * size_x + sigma * size_out) / d, bound * (alpha * size_out + a * size_x) / d
    for got, wanted, limit in zip(found[:2], (x0, eps), limits, strict=True):
        assert np.all((np.abs(got - wanted) <= limit + 1e-30)[solvable])


@paths
def test_v_is_well_conditioned_everywhere(path):
    if path.t_max == 1.0 or isinstance(path, DiscreteVP):
        level = path(times(path))
        x0, eps = pictures(level.alpha.size, seed=1)
        found = estimate(V(), level, diffuse(level, x0, eps), target(V(), level, x0, eps))
        scale = np.maximum(1, f64(level.sigma))
        np.testing.assert_allclose(found.x0, x0, atol=5e-6 * scale.max())
        np.testing.assert_allclose(found.eps, eps, atol=5e-6)


@paths
@each
def test_estimate_keeps_x(path, prediction):
    level = path(times(path))
    x, out = pictures(level.alpha.size, seed=2)
    x0, eps, _ = estimate(prediction, level, x, out)
    size = np.abs(f64(level.alpha) * x0) + np.abs(f64(level.sigma) * eps) + 1
    inside = slice(2, 9)
    assert np.all((np.abs(diffuse(level, x0, eps) - x) < 1e-5 * size)[inside])


def test_rows_and_dets_are_the_table():
    alpha, sigma = np.array([0.9, 0.6, 1.0, 0.01]), np.array([0.1, 0.8, 7.0, 0.9])
    level = Level(jnp.asarray(alpha, jnp.float32), jnp.asarray(sigma, jnp.float32))
    one, zero = np.ones(4), np.zeros(4)
    s = 0.5
    r = np.sqrt(sigma**2 + alpha**2 * s**2)
    table = [
        (Eps(), zero, one, alpha),
        (X0(), one, zero, -sigma),
        (V(), -sigma, alpha, alpha**2 + sigma**2),
        (Flow(), -one, one, alpha + sigma),
        (Score(), zero, -1 / sigma, -alpha / sigma),
        (EDM(s), sigma / (s * r), -alpha * s / r, -r / s),
    ]
    for prediction, a, b, d in table:
        np.testing.assert_allclose(prediction.row(level), (a, b), rtol=1e-6)
        np.testing.assert_allclose(det(prediction, level), d, rtol=1e-6)


def test_edm_is_the_papers_preconditioning():
    """D(x) = c_skip x + c_out F at alpha = 1 (arXiv:2206.00364, Table 1)."""
    s = 0.5
    sigma = np.geomspace(0.002, 80, 9)
    level = Level(jnp.ones(9), jnp.asarray(sigma, jnp.float32))
    c_skip = s**2 / (sigma**2 + s**2)
    c_out = sigma * s / np.sqrt(sigma**2 + s**2)
    x0, eps = pictures(9, seed=3)
    x = diffuse(level, x0, eps)
    f = pictures(9, seed=4)[0]
    denoised = f64(c_skip) * np.asarray(x, float) + f64(c_out) * np.asarray(f, float)
    np.testing.assert_allclose(estimate(EDM(s), level, x, f).x0, denoised, rtol=1e-5, atol=1e-5)
    # The training target, formed from the exact x so that nothing cancels in the reference.
    exact = np.asarray(x0, float) + f64(level.sigma) * np.asarray(eps, float)
    wanted = (np.asarray(x0, float) - f64(c_skip) * exact) / f64(c_out)
    np.testing.assert_allclose(target(EDM(s), level, x0, eps), wanted, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(EDM(s).c_in(level), 1 / np.sqrt(sigma**2 + s**2), rtol=1e-6)
    np.testing.assert_allclose(EDM(s).c_noise(level), np.log(sigma) / 4, rtol=1e-5, atol=1e-6)


@paths
@pytest.mark.parametrize("s", [0.5, 2.0])
def test_edm_has_unit_variances_on_any_path(path, s):
    """For data of standard deviation s, input and output have variance 1 and are uncorrelated."""
    level = path(times(path))
    alpha, sigma = (np.asarray(part, float) for part in level)
    a, b = (np.asarray(part, float) for part in EDM(s).row(level))
    c_in = np.asarray(EDM(s).c_in(level), float)
    np.testing.assert_allclose((a * s) ** 2 + b**2, 1, rtol=1e-5)
    np.testing.assert_allclose(c_in**2 * ((alpha * s) ** 2 + sigma**2), 1, rtol=1e-5)
    np.testing.assert_allclose(c_in * (a * alpha * s**2 + b * sigma), 0, atol=1e-6)


def test_v_and_flow_are_velocities():
    """v = dx/dphi on the circle of angles (arXiv:2202.00512), flow = dx/dt on rectified flow's line."""
    x0, eps = pictures(6, seed=5)
    t = jnp.linspace(0.05, 0.95, 6)
    for path, prediction, speed in (Cosine(), V(), jnp.pi / 2), (Linear(), Flow(), 1.0):
        velocity = jax.jvp(lambda t, path=path: diffuse(path(t), x0, eps), (t,), (jnp.ones(6),))[1]
        expected = speed * target(prediction, path(t), x0, eps)
        np.testing.assert_allclose(velocity, expected, rtol=1e-4, atol=1e-5)


def test_score_is_the_gradient_of_the_log_density():
    x0, eps = pictures(1, seed=6)
    level = Level(jnp.array([0.7]), jnp.array([0.4]))
    x = diffuse(level, x0, eps)
    gradient = jax.grad(lambda x: jax.scipy.stats.norm.logpdf(x, 0.7 * x0, 0.4).sum())(x)
    np.testing.assert_allclose(target(Score(), level, x0, eps), gradient, rtol=1e-4, atol=1e-5)


@each
def test_inputs_of_the_network(prediction):
    level = LinearVP()(jnp.linspace(0.1, 1, 5))
    if not isinstance(prediction, EDM):
        np.testing.assert_array_equal(prediction.c_in(level), jnp.ones(5))
    np.testing.assert_array_equal(prediction.c_noise(level), prediction.time(level))


@paths
def test_feeds(path):
    t = times(path)
    level = path(t)
    angle = np.asarray(Angle(1000.0)(level))
    assert np.all(np.diff(angle) >= 0) and np.all(np.diff(angle[1:-2]) > 0)
    assert angle[0] == 0 or isinstance(path, GeometricVE)
    ratio = np.asarray(level.sigma, float) / np.maximum(np.asarray(level.alpha, float), 1e-300)
    np.testing.assert_allclose(angle, np.arctan(ratio) * 2000 / np.pi, rtol=2e-6)
    assert angle[-1] <= 1000 and (angle[-1] == 1000 or level.alpha[-1] > 0)
    # The path's own clock, exact at both ends.
    own = PathTime(path, scale=999.0, offset=-1.0)(level)
    np.testing.assert_allclose(own, 999 * np.asarray(t, float) - 1, atol=3e-4 * path.t_max)
    assert own[0] == -1 and own[-1] == np.float32(999 * path.t_max) - 1
    # VE networks are fed log(sigma) itself, EDM's a quarter of it.
    for scale in 1.0, 0.25:
        fed = LogRatio(scale)(level)[2:9]
        np.testing.assert_allclose(fed, scale * np.log(ratio[2:9]), rtol=1e-5, atol=1e-6)


def test_sigma_data_must_be_positive():
    with pytest.raises(ValueError, match=r"--prediction\.sigma-data"):
        EDM(0.0)
