"""Every path x prediction x solver, with exact denoisers: samples follow the data's law.

The probability-flow ODE of a normal is affine, and in one dimension it keeps every point's cumulative
probability, so deterministic solvers are held against the ODE's solution point by point and the others
against the data's distribution.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.core import grids, paths, predictions
from jaxdiff.core.types import Level
from jaxdiff.sampling.ddim import DDIM
from jaxdiff.sampling.dpm_solver import DPMSolverPP2M
from jaxdiff.sampling.euler_maruyama import EulerMaruyama
from jaxdiff.sampling.heun import Heun
from jaxdiff.sampling.sample import denoiser, image_keys, normal, sample

PATHS = {
    "linear_vp": paths.LinearVP(),
    "discrete_vp": paths.DiscreteVP(1000),
    "cosine": paths.Cosine(shift=0.5),
    "sigmoid": paths.Sigmoid(),
    "geometric_ve": paths.GeometricVE(),
    "sigma": paths.Sigma(),
    "linear": paths.Linear(shift=2.0),
}
PREDICTIONS = {
    "eps": predictions.Eps(),
    "x0": predictions.X0(),
    "v": predictions.V(),
    "flow": predictions.Flow(),
    "score": predictions.Score(),
    "edm": predictions.EDM(0.5),
}
# The ODE's solvers, with their error at 64 steps: in standard deviations, and in cumulative probability.
ODE = {"ddim": (DDIM(), 0.15, 0.01), "heun": (Heun(), 0.01, 1e-3), "2m": (DPMSolverPP2M(), 0.01, 1e-3)}
# The others, with the error that 64 steps leave in the standard deviation and in cumulative probability.
SDE = {"ddpm": (DDIM(eta=1.0), 0.04, 0.02), "euler_maruyama": (EulerMaruyama(), 0.04, 0.02)}

N = 4096  # pixels
SHAPE = (4, 4, 1)
CLEAN = Level(jnp.ones(()), jnp.zeros(()))


@pytest.fixture(scope="module")
def runner(closed_form):
    """(prediction, solver) -> the jitted sampler (keys, x, levels, data): one compilation for all paths and data."""

    @functools.cache
    def runner(prediction, solver):
        def run(keys, x, levels, data):
            denoise = denoiser(closed_form.network(prediction, data), {}, prediction, {})
            return sample(keys, x, levels, denoise, solver)

        return jax.jit(run)

    return runner


@pytest.fixture(scope="module")
def cdf(closed_form):
    return jax.jit(closed_form.cdf)


@pytest.fixture(scope="module")
def normal_data(closed_form):
    return closed_form.Mixture(jnp.array([0.3, 0.3]), jnp.float32(0.5), jnp.array([0.5, 0.5]))


@pytest.fixture(scope="module")
def mixture(closed_form):
    return closed_form.Mixture(jnp.array([-0.6, 0.5]), jnp.float32(0.3), jnp.array([0.4, 0.6]))


@functools.cache
def keys():
    return image_keys(1, jnp.arange(N // 16))


@functools.cache
def noise(seed):
    return normal(image_keys(seed, jnp.arange(N // 16)), SHAPE)


@functools.cache
def levels_of(path):
    return grids.Karras(0.01, 20.0)(PATHS[path], 64)


@jax.jit
def draw(data, levels):
    """Exact draws of x at the first level."""
    component = jax.random.bernoulli(jax.random.key(5), data.weights[1], (N // 16, *SHAPE)).astype(int)
    x0 = data.means[component] + data.std * noise(6)
    return levels.alpha[0] * x0 + levels.sigma[0] * noise(7)


@pytest.mark.parametrize("solver", ODE)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("path", PATHS)
def test_ode_solvers_follow_the_ode(path, prediction, solver, closed_form, cdf, runner, normal_data, mixture):
    solver, error, cdf_error = ODE[solver]
    levels = levels_of(path)
    run = runner(PREDICTIONS[prediction], solver)
    start = closed_form.first(levels)

    z = noise(0)
    x = run(keys(), closed_form.marginal(normal_data, start, z), levels, normal_data)
    assert np.abs((np.asarray(x) - 0.3) / 0.5 - z).max() < error

    x_start = draw(mixture, levels)
    x = run(keys(), x_start, levels, mixture)
    off = np.asarray(cdf(mixture, CLEAN, x)) - np.asarray(cdf(mixture, start, x_start))
    assert np.abs(off).mean() < cdf_error


def check_law(cdf, x, data, mean, std, std_error, cdf_error):
    """x follows the data's law: a solver's error and five standard errors of N draws are allowed."""
    u = np.sort(np.asarray(cdf(data, CLEAN, x)).ravel())
    x = np.asarray(x)
    assert abs(x.mean() - mean) < 5 * std / N**0.5
    assert abs(x.std() - std) < std_error + 5 * std / (2 * N) ** 0.5
    kolmogorov = np.abs(u - (np.arange(N) + 0.5) / N).max()
    assert kolmogorov < cdf_error + 1.95 / N**0.5  # one in a thousand


@pytest.mark.parametrize("solver", SDE)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("path", PATHS)
def test_sde_solvers_draw_from_the_data(path, prediction, solver, cdf, runner, normal_data, mixture):
    solver, *errors = SDE[solver]
    levels = levels_of(path)
    run = runner(PREDICTIONS[prediction], solver)

    x = run(keys(), draw(normal_data, levels), levels, normal_data)
    check_law(cdf, x, normal_data, 0.3, 0.5, *errors)
    x = run(keys(), draw(mixture, levels), levels, mixture)
    check_law(cdf, x, mixture, 0.06, (0.3**2 + 0.4 * 0.6 * 1.1**2) ** 0.5, *errors)


@pytest.mark.parametrize(("path", "prediction"), list(zip(PATHS, [*PREDICTIONS, "v"], strict=True)))
def test_churn_keeps_the_law_on_any_path(path, prediction, cdf, runner, normal_data):
    # Churn reads levels off the path, so every path is its own program: each prediction meets one path.
    levels = levels_of(path)
    run = runner(PREDICTIONS[prediction], Heun(churn=20.0, churn_min=0.05, churn_max=10.0, path=PATHS[path]))
    x_start = draw(normal_data, levels)
    x = run(keys(), x_start, levels, normal_data)
    check_law(cdf, x, normal_data, 0.3, 0.5, 0.02, 0.02)
    # And it is new noise: where a point ends depends less on where it began.
    ode = runner(PREDICTIONS[prediction], Heun())(keys(), x_start, levels, normal_data)
    correlation = [np.corrcoef(np.ravel(a), np.ravel(x_start))[0, 1] for a in (ode, x)]
    assert correlation[0] > 0.999 and abs(correlation[1]) < 0.1


# The error that 64 steps from alpha = 0 leave, in standard deviations; Sigmoid's alpha has infinite slope there.
@pytest.mark.parametrize("solver", ODE)
@pytest.mark.parametrize("prediction", ["x0", "v", "flow", "edm"])
@pytest.mark.parametrize("path", ["cosine", "sigmoid", "linear"])
def test_ode_solvers_start_at_alpha_0(path, prediction, solver, runner, normal_data):
    levels = grids.UniformT()(PATHS[path], 64)
    assert levels.alpha[0] == 0
    z = noise(0)
    x = runner(PREDICTIONS[prediction], ODE[solver][0])(keys(), z, levels, normal_data)
    error = 0.15 if solver == "ddim" else 0.05 if path == "sigmoid" else 0.03
    assert np.abs((np.asarray(x) - 0.3) / 0.5 - z).max() < error


@pytest.mark.parametrize("solver", SDE)
@pytest.mark.parametrize("path", ["cosine", "linear"])
def test_sde_solvers_start_at_alpha_0(path, solver, cdf, runner, normal_data):
    levels = grids.UniformT()(PATHS[path], 64)
    x = runner(PREDICTIONS["v"], SDE[solver][0])(keys(), noise(0), levels, normal_data)
    check_law(cdf, x, normal_data, 0.3, 0.5, 0.04, 0.02)


@pytest.mark.parametrize("solver", [*ODE, *SDE])
def test_only_sigma_over_alpha_matters(solver, runner, mixture):
    # x / alpha takes the same steps on every path, if the levels have the same ratios.
    solver, *_ = (ODE | SDE)[solver]
    run = runner(PREDICTIONS["v"], solver)
    ends = []
    for path in PATHS.values():
        levels = grids.Karras(0.05, 20.0)(path, 16)
        ends.append(run(keys(), levels.alpha[0] * 20.0 * noise(0), levels, mixture))
    for x in ends[1:]:
        np.testing.assert_allclose(x, ends[0], atol=2e-3)
