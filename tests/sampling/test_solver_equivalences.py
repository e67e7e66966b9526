"""Solvers against other spellings of the same step: Euler's, the papers' algorithms, DDPM with its betas."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.core import gaussian, grids, paths
from jaxdiff.core.betas import CosineBetas, LinearBetas
from jaxdiff.core.types import Level
from jaxdiff.sampling.ancestral import Ancestral
from jaxdiff.sampling.ddim import DDIM
from jaxdiff.sampling.dpm_solver import DPMSolverPP
from jaxdiff.sampling.dpm_solver_single import DPMSolver, DPMSolverPPS
from jaxdiff.sampling.euler_maruyama import EulerMaruyama
from jaxdiff.sampling.heun import Heun
from jaxdiff.sampling.predictor_corrector import PredictorCorrector
from jaxdiff.sampling.renoise import Renoise
from jaxdiff.sampling.restart import Restart
from jaxdiff.sampling.sample import image_keys, normal_like, sample
from jaxdiff.sampling.solver import Solver

SOLVERS = (
    *(DDIM(), Heun(), EulerMaruyama(), Ancestral(), DPMSolverPP(), DPMSolver(), DPMSolverPPS()),
    *(PredictorCorrector(), Renoise(), Restart()),
)

run = jax.jit(sample, static_argnums=(3, 4))


@pytest.fixture(scope="module")
def denoise(closed_form):
    data = closed_form.Mixture(jnp.array([-0.6, 0.5]), jnp.float32(0.3), jnp.array([0.4, 0.6]))
    return jax.jit(closed_form.denoiser(data))


def start(b=64):
    return jnp.linspace(-2, 2, b).reshape(b, 1, 1, 1), image_keys(0, jnp.arange(b))


def step_noise(keys, x, number):
    """The noise of step `number` = 1, 2, ... as `sample` documents it."""
    return jax.jit(normal_like)(jax.vmap(lambda key: jax.random.fold_in(key, number))(keys), x)


def test_ddim_is_euler_in_sigma(denoise):
    levels = grids.Karras(0.02, 10.0)(paths.Sigma(), 12)
    z, keys = start()
    x = 10.0 * z
    for s, t in zip(levels.sigma[:-1], levels.sigma[1:], strict=True):
        at = Level(jnp.ones(()), s)
        x = x + (t - s) * (x - denoise(x, at, at).x0) / s
    assert jnp.allclose(run(keys, 10.0 * z, levels, denoise, DDIM()), x, atol=1e-5)


def test_ddim_is_euler_in_flow_time(denoise):
    z, keys = start()
    levels, x = grids.UniformT()(paths.Linear(), 12), z
    for i in range(12):
        t = jnp.float32(1 - i / 12)
        at = Level(1 - t, t)
        x0, eps, _ = denoise(x, at, at)
        x = x - (eps - x0) / 12
    assert jnp.allclose(run(keys, z, levels, denoise, DDIM()), x, atol=1e-5)


@pytest.mark.parametrize("betas", [LinearBetas(), CosineBetas()])
def test_ddim_with_eta_1_is_ddpms_posterior(betas, denoise):
    # Every step of a chain of 100, as arXiv:2006.11239, Eq. 6-7 write it.
    n = 100
    beta = betas(n)
    alpha_bar = np.concatenate([[1.0], np.cumprod(1 - beta)])
    levels = paths.DiscreteVP(n, betas)(jnp.arange(n + 1.0))
    z, keys = start(16)
    at = jax.jit(lambda cur, nxt: DDIM(eta=1.0).step(keys, z, None, cur, nxt, denoise)[0])
    noise = np.asarray(normal_like(keys, z), np.float64)
    for k in (1, 2, 3, 50, 99, 100):
        cur, nxt = (Level(levels.alpha[i], levels.sigma[i]) for i in (k, k - 1))
        x0, x = np.asarray(denoise(z, cur, nxt).x0, np.float64), np.asarray(z, np.float64)
        mean = (
            np.sqrt(alpha_bar[k - 1]) * beta[k - 1] * x0 + np.sqrt(1 - beta[k - 1]) * (1 - alpha_bar[k - 1]) * x
        ) / (1 - alpha_bar[k])
        variance = (1 - alpha_bar[k - 1]) / (1 - alpha_bar[k]) * beta[k - 1]
        np.testing.assert_allclose(at(cur, nxt), mean + np.sqrt(variance) * noise, atol=1e-4)


def test_eta_between_is_ddims_sigma(denoise):
    # arXiv:2010.02502, Eq. 12 and 16, in the paper's variance-preserving notation.
    a, b, eta = 0.3, 0.7, 0.6  # the squared alphas of the two levels
    cur, nxt = (Level(jnp.float32(v**0.5), jnp.float32((1 - v) ** 0.5)) for v in (a, b))
    z, keys = start(16)
    x0, eps, _ = denoise(z, cur, nxt)
    s = eta * math.sqrt((1 - b) / (1 - a) * (1 - a / b))
    want = math.sqrt(b) * x0 + math.sqrt(1 - b - s**2) * eps + s * normal_like(keys, z)
    assert jnp.allclose(DDIM(eta).step(keys, z, None, cur, nxt, denoise)[0], want, atol=1e-5)


def test_euler_maruyama_from_alpha_0_is_ddpms_step(denoise):
    z, keys = start(16)
    cur, nxt = Level(jnp.zeros(()), jnp.ones(())), Level(jnp.float32(0.1), jnp.float32(0.9))
    a, b = (s.step(keys, z, None, cur, nxt, denoise)[0] for s in (EulerMaruyama(), DDIM(1.0)))
    assert jnp.allclose(a, b, atol=1e-6)


def test_heun_from_alpha_0_integrates_in_alpha_over_sigma():
    # d(x/sigma)/du = x0 with u = alpha/sigma, so the trapezoid is exact where x0 is linear in u.
    def denoise(x, cur, nxt):
        return gaussian.from_x0(cur, x, jnp.full_like(x, 0.3 + 0.2 * cur.alpha / cur.sigma))

    z, keys = start(4)
    cur, nxt = Level(jnp.zeros(()), jnp.ones(())), Level(jnp.float32(0.2), jnp.float32(0.8))
    x, _ = Heun().step(keys, z, jnp.zeros(()), cur, nxt, denoise)
    assert jnp.allclose(x / 0.8, z + 0.3 * 0.25 + 0.2 * 0.25**2 / 2, atol=1e-6)


def test_heun_is_edms_algorithm_2(denoise):
    churn, low, high, s_noise, n = 3.0, 0.1, 5.0, 1.01, 10
    levels = grids.Karras(0.02, 10.0)(paths.Sigma(), n)
    z, keys = start()
    x, t = 10.0 * z, np.asarray(levels.sigma)
    slopes, churned = 0, 0
    for i in range(n):
        gamma = min(churn / n, math.sqrt(2) - 1) if low <= t[i] <= high else 0.0
        t_hat = jnp.float32(t[i] + gamma * t[i])
        x_hat = x + jnp.sqrt(t_hat**2 - t[i] ** 2) * s_noise * step_noise(keys, x, i + 1) if gamma else x
        at = Level(jnp.ones(()), t_hat)
        d = (x_hat - denoise(x_hat, at, at).x0) / t_hat
        x = x_hat + (t[i + 1] - t_hat) * d
        if t[i + 1] > 0:
            at = Level(jnp.ones(()), jnp.float32(t[i + 1]))
            x = x_hat + (t[i + 1] - t_hat) * (0.5 * d + 0.5 * (x - denoise(x, at, at).x0) / t[i + 1])
            slopes += 1
        churned += gamma > 0
    assert slopes == n - 1 and 0 < churned < n
    solver = Heun(churn, low, high, s_noise)
    assert jnp.allclose(run(keys, 10.0 * z, levels, denoise, solver), x, atol=1e-4)
    # gamma is capped: any larger churn is the same.
    capped = [run(keys, z, levels, denoise, Heun(c)) for c in (5.0, 50.0)]
    assert jnp.allclose(*capped) and not jnp.allclose(capped[0], run(keys, z, levels, denoise, Heun()))


def test_2m_is_algorithm_2_of_dpm_solver_pp(denoise):
    n = 10
    levels = grids.UniformLogSNR(start=0.9)(paths.LinearVP(), n)
    z, keys = start()
    alpha, sigma = (np.asarray(v, np.float64) for v in levels)
    lam = np.log(alpha[:-1] / sigma[:-1])
    x, previous = z, None
    for i in range(1, n):
        at = Level(levels.alpha[i - 1], levels.sigma[i - 1])
        x0 = denoise(x, at, at).x0
        h = lam[i] - lam[i - 1]
        if previous is None:
            d = x0
        else:
            r = (lam[i - 1] - lam[i - 2]) / h
            d = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * previous
        x = sigma[i] / sigma[i - 1] * x - alpha[i] * np.expm1(-h) * d
        previous = x0
    at = Level(levels.alpha[n - 1], levels.sigma[n - 1])
    x = denoise(x, at, at).x0
    assert jnp.allclose(run(keys, z, levels, denoise, DPMSolverPP()), x, atol=1e-4)


def test_order_1_is_ddim(denoise):
    z, keys = start()
    levels = grids.UniformT()(paths.Linear(), 10)
    for eta in (0.0, 1.0):
        want = run(keys, z, levels, denoise, DDIM(eta))
        solvers = [DPMSolverPP(1, eta), DPMSolverPPS(1, eta), *([DPMSolver(1)] if eta == 0 else [])]
        for solver in solvers:
            assert jnp.allclose(run(keys, z, levels, denoise, solver), want, atol=1e-5)


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_3m_with_half_its_curvature_is_as_published(eta, denoise):
    # The third-order multistep SDE solver in its usual spelling, in EDM's sigma; the second step has its own weight.
    n = 10
    levels = grids.Karras(0.05, 10.0)(paths.Sigma(), n)
    z, keys = start()
    sigma = np.asarray(levels.sigma, np.float64)
    x, d, hs = 10.0 * z, [], []
    for i in range(n):
        at = Level(jnp.ones(()), levels.sigma[i])
        d.append(denoise(x, at, at).x0)
        if i == n - 1:
            x = d[-1]
            break
        h = np.log(sigma[i] / sigma[i + 1])
        h_eta = h * (eta + 1)
        x = np.exp(-h_eta) * x - np.expm1(-h_eta) * d[-1]
        if i == 1 or i == n - 2:
            x = x - 0.5 * np.expm1(-h_eta) * (h / hs[-1]) * (d[-1] - d[-2])
        elif i > 1:
            r0, r1 = hs[-1] / h, hs[-2] / h
            d1_0, d1_1 = (d[-1] - d[-2]) / r0, (d[-2] - d[-3]) / r1
            d1, d2 = d1_0 + (d1_0 - d1_1) * r0 / (r0 + r1), (d1_0 - d1_1) / (r0 + r1)
            phi_2 = np.expm1(-h_eta) / h_eta + 1
            x = x + phi_2 * d1 - (phi_2 / h_eta - 0.5) * d2
        x = x + step_noise(keys, x, i + 1) * sigma[i + 1] * np.sqrt(-np.expm1(-2 * h * eta))
        hs.append(h)
    solver = DPMSolverPP(3, eta, curvature=0.5)
    assert jnp.allclose(run(keys, 10.0 * z, levels, denoise, solver), x, atol=1e-3)


@pytest.mark.parametrize("solver", [DPMSolverPP(2), DPMSolverPP(3), DPMSolver(3), DPMSolverPPS(2)])
def test_a_repeated_level_is_no_step(solver, denoise):
    levels = grids.UniformLogSNR(start=0.9)(paths.LinearVP(), 10)
    twice = Level(*(jnp.insert(v, 4, v[4]) for v in levels))
    z, keys = start()
    a, b = (run(keys, z, grids.pad(v, 11), denoise, solver) for v in (levels, twice))
    assert jnp.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("solver", [DPMSolverPP(3), DPMSolver(3), DPMSolverPPS(3)])
def test_down_and_up_again(solver, denoise):
    # Rising levels with the ODE's solvers find the noise from which the image comes.
    levels = grids.Karras(0.05, 10.0)(paths.Linear(), 60)
    down = Level(levels.alpha[:-1], levels.sigma[:-1])
    there_and_back = Level(*(jnp.concatenate([v, v[-2::-1]]) for v in down))
    z, keys = start()
    assert jnp.allclose(run(keys, z, there_and_back, denoise, solver), z, atol=5e-3)


def test_ddim_inversion_returns(closed_form, denoise):
    # Rising levels find the noise of an image; falling ones make the image again.
    levels = grids.Karras(0.02, 10.0)(paths.Linear(), 400)
    down = Level(levels.alpha[:-1], levels.sigma[:-1])
    up = Level(down.alpha[::-1], down.sigma[::-1])
    z, keys = start()
    x = 0.4 * z
    noise = run(keys, x, up, denoise, DDIM())
    assert jnp.abs(noise - x).max() > 0.3
    assert jnp.abs(run(keys, noise, down, denoise, DDIM()) - x).max() < 0.01
    # And for a normal the noise is the closed form's.
    data = closed_form.normal(0.3, 0.5)
    x = closed_form.marginal(data, closed_form.first(up), z)
    noise = run(keys, x, up, closed_form.denoiser(data), DDIM())
    assert jnp.allclose(noise, closed_form.marginal(data, closed_form.first(down), z), atol=0.05)


def test_eta_has_no_noise_on_rising_levels(denoise):
    z, keys = start()
    cur, nxt = (Level(jnp.float32(a), jnp.float32(s)) for a, s in ((0.8, 0.6), (0.6, 0.8)))
    a, b = (DDIM(eta).step(keys, z, None, cur, nxt, denoise)[0] for eta in (0.0, 1.0))
    assert jnp.array_equal(a, b)


def test_one_step_to_the_end_is_x0(denoise):
    z, keys = start()
    levels = Level(jnp.array([0.6, 1.0]), jnp.array([0.8, 0.0]))
    at = Level(levels.alpha[0], levels.sigma[0])
    for solver in (DDIM(), DDIM(1.0), Heun(), DPMSolverPP(3, eta=1.0), DPMSolver(), DPMSolverPPS(eta=1.0)):
        assert jnp.allclose(run(keys, z, levels, denoise, solver), denoise(z, at, at).x0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: DDIM(1.5),
        lambda: DDIM(-0.1),
        lambda: Heun(churn=-1.0),
        lambda: DPMSolverPP(4),
        lambda: DPMSolverPP(eta=-1.0),
        lambda: DPMSolver(0),
        lambda: DPMSolverPPS(eta=math.inf),
    ],
)
def test_bad_settings_are_refused(make):
    with pytest.raises(ValueError, match=r"(eta|churn|order) = .*--solver"):
        make()


def test_solvers_are_solvers():
    assert all(isinstance(s, Solver) for s in SOLVERS)
