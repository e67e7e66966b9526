"""Every path x prediction x solver, with exact denoisers: samples follow the data's law.

The probability-flow ODE of a normal is affine, and in one dimension it keeps every point's cumulative
probability, so deterministic solvers are held against the ODE's solution point by point and the others
against the data's distribution.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.core import grids, paths, predictions
from jaxdiff.core.types import Level
from jaxdiff.sampling.ancestral import Ancestral
from jaxdiff.sampling.ddim import DDIM
from jaxdiff.sampling.dpm_solver import DPMSolverPP
from jaxdiff.sampling.dpm_solver_single import DPMSolver, DPMSolverPPS
from jaxdiff.sampling.euler_maruyama import EulerMaruyama
from jaxdiff.sampling.heun import Heun
from jaxdiff.sampling.predictor_corrector import PredictorCorrector
from jaxdiff.sampling.sample import denoiser, image_keys, normal, on_path, sample

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
ODE = {
    "ddim": (DDIM(), 0.15, 0.01),
    "heun": (Heun(), 0.01, 1e-3),
    "2m": (DPMSolverPP(), 0.01, 1e-3),
    "3m": (DPMSolverPP(3), 0.01, 1e-3),
    "2s": (DPMSolverPPS(), 0.01, 1e-3),
    "dpm_3s": (DPMSolver(3), 0.01, 1e-3),
}
# The others, with the error that 64 steps leave in the standard deviation and in cumulative probability.
SDE = {
    "ddpm": (DDIM(eta=1.0), 0.04, 0.02),
    "ddpm_large": (Ancestral(1.0), 0.04, 0.02),
    "euler_maruyama": (EulerMaruyama(), 0.04, 0.02),
    "corrected": (PredictorCorrector(Ancestral(), snr=0.1), 0.03, 0.02),
    "sde_2m": (DPMSolverPP(eta=1.0), 0.02, 0.02),
    "sde_2s": (DPMSolverPPS(eta=0.5), 0.02, 0.02),
    "churn": (Heun(20.0, churn_min=0.05, churn_max=10.0), 0.02, 0.02),
}

N = 1536  # pixels: as many as XLA still handles in one thread on a CPU, which is far faster
SHAPE = (4, 4, 1)
CLEAN = Level(jnp.ones(()), jnp.zeros(()))


# One compilation serves all paths and predictions: they are chosen by a traced number.


class ChosenPrediction(NamedTuple):
    number: jax.Array

    def row(self, level):
        rows = zip(*(prediction.row(level) for prediction in PREDICTIONS.values()), strict=True)
        return tuple(jnp.stack(r)[self.number] for r in rows)

    def c_in(self, level):
        raise NotImplementedError

    c_noise = c_in


class ChosenPath(NamedTuple):
    number: jax.Array

    t_max = None

    def __call__(self, t):
        return Level(*(jnp.stack(v)[self.number] for v in zip(*(p(t) for p in PATHS.values()), strict=True)))

    def invert(self, ratio):
        return jnp.stack([path.invert(ratio) for path in PATHS.values()])[self.number]


@pytest.fixture(scope="module")
def runner(closed_form):
    """(path, prediction, solver) -> the jitted sampler (x, levels, data)."""

    @functools.partial(jax.jit, static_argnums=0)
    def run(solver, path, prediction, x, levels, data):
        prediction = ChosenPrediction(prediction)
        denoise = denoiser(closed_form.network(prediction, data), {}, prediction, {})
        keys = image_keys(1, jnp.arange(N // 16))
        return sample(keys, x, levels, on_path(ChosenPath(path))(denoise), solver)

    def runner(path, prediction, solver):
        path, prediction = list(PATHS).index(path), list(PREDICTIONS).index(prediction)
        return functools.partial(run, solver, path, prediction)

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
    run = runner(path, prediction, solver)
    start = closed_form.first(levels)

    z = noise(0)
    x = run(closed_form.marginal(normal_data, start, z), levels, normal_data)
    assert np.abs((np.asarray(x) - 0.3) / 0.5 - z).max() < error

    x_start = draw(mixture, levels)
    x = run(x_start, levels, mixture)
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
    run = runner(path, prediction, solver)

    x = run(draw(normal_data, levels), levels, normal_data)
    check_law(cdf, x, normal_data, 0.3, 0.5, *errors)
    x = run(draw(mixture, levels), levels, mixture)
    check_law(cdf, x, mixture, 0.06, (0.3**2 + 0.4 * 0.6 * 1.1**2) ** 0.5, *errors)


@pytest.mark.parametrize("path", PATHS)
def test_churn_is_new_noise(path, runner, normal_data):
    # Where a point ends depends on where it began under the ODE, and hardly any more under churn.
    x_start = draw(normal_data, levels_of(path))
    for solver, low, high in ((ODE["heun"][0], 0.999, 1.0), (SDE["churn"][0], -0.1, 0.1)):
        x = runner(path, "v", solver)(x_start, levels_of(path), normal_data)
        assert low < np.corrcoef(np.ravel(x), np.ravel(x_start))[0, 1] < high


# The error that 64 steps from alpha = 0 leave, in standard deviations; Sigmoid's alpha has infinite slope there.
@pytest.mark.parametrize("solver", ODE)
@pytest.mark.parametrize("prediction", ["x0", "v", "flow", "edm"])
@pytest.mark.parametrize("path", ["cosine", "sigmoid", "linear"])
def test_ode_solvers_start_at_alpha_0(path, prediction, solver, runner, normal_data):
    levels = grids.UniformT()(PATHS[path], 64)
    assert levels.alpha[0] == 0
    z = noise(0)
    x = runner(path, prediction, ODE[solver][0])(z, levels, normal_data)
    error = 0.15 if solver == "ddim" else 0.05 if path == "sigmoid" else 0.03
    assert np.abs((np.asarray(x) - 0.3) / 0.5 - z).max() < error


@pytest.mark.parametrize("solver", SDE)
@pytest.mark.parametrize("path", ["cosine", "linear"])
def test_sde_solvers_start_at_alpha_0(path, solver, cdf, runner, normal_data):
    levels = grids.UniformT()(PATHS[path], 64)
    x = runner(path, "v", SDE[solver][0])(noise(0), levels, normal_data)
    check_law(cdf, x, normal_data, 0.3, 0.5, 0.04, 0.02)


# DDPM's large variance is that of the forward step in the path's own units.
@pytest.mark.parametrize("solver", [*ODE, *(name for name in SDE if name != "ddpm_large")])
def test_only_sigma_over_alpha_matters(solver, runner, mixture):
    # x / alpha takes the same steps on every path, if the levels have the same ratios.
    ends = []
    for name, path in PATHS.items():
        levels = grids.pad(grids.Karras(0.02, 20.0)(path, 16), 64)  # no ratio lies at a limit of the churn
        run = runner(name, "v", (ODE | SDE)[solver][0])
        ends.append(run(levels.alpha[0] * 20.0 * noise(0), levels, mixture))
    for x in ends[1:]:
        np.testing.assert_allclose(x, ends[0], atol=2e-3)
