"""Posterior methods on data whose denoiser and posterior are known: which are exact, and what the others keep."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from posteriors import (
    MOST_STEPS,
    SHAPE,
    STD,
    STEERED,
    TASKS,
    TWISTED,
    D,
    N,
    distances,
    independent,
    karras,
    mixture,
    operator_of,
    problem_of,
    run,
)

from jaxdiff.core import gaussian, grids, paths
from jaxdiff.core.types import Level
from jaxdiff.names import POSTERIORS, value_of
from jaxdiff.sampling import exact
from jaxdiff.sampling.ancestral import Ancestral
from jaxdiff.sampling.dpm_solver import DPMSolverPP
from jaxdiff.sampling.heun import Heun
from jaxdiff.sampling.inverse.ddnm import DDNM
from jaxdiff.sampling.inverse.pigdm import PiGDM
from jaxdiff.sampling.inverse.problem import Problem
from jaxdiff.sampling.sample import image_keys, sample

# The closed forms.


def test_mixtures_of_normals_are_denoised_exactly():
    data, level = mixture(), Level(jnp.float32(0.6), jnp.float32(0.5))
    x = np.random.default_rng(0).normal(size=(3, D))
    believed = exact.of_normals(data)(jnp.asarray(x, jnp.float32).reshape(3, *SHAPE), level, level)
    for i in range(3):
        posterior, _ = exact.conditioned(data, 0.6 * np.eye(D), x[i], 0.5)
        np.testing.assert_allclose(np.ravel(believed.x0[i]), posterior.mean, atol=1e-4)
    np.testing.assert_allclose(gaussian.diffuse(level, believed.x0, believed.eps).reshape(3, D), x, atol=1e-4)


def test_posteriors_by_weighing_draws():
    data, rng = mixture(), np.random.default_rng(0)
    a, noise = np.eye(D)[:3], 0.4
    y = np.array([0.3, 0.1, -0.2])
    truth, surprise = exact.conditioned(data, a, y, noise)
    which = rng.choice(2, size=200_000, p=data.weights)
    x = data.means[which] + rng.normal(size=(which.size, D)) @ np.linalg.cholesky(data.covariances[0]).T
    log_p = -0.5 * np.sum((y - x @ a.T) ** 2, 1) / noise**2 - 1.5 * np.log(2 * np.pi * noise**2)
    weights = np.exp(log_p)
    assert np.isclose(np.log(weights.mean()), surprise, atol=0.02)
    np.testing.assert_allclose(weights @ x / weights.sum(), truth.mean, atol=0.01)
    np.testing.assert_allclose(np.cov(x.T, aweights=weights), truth.covariance, atol=0.01)


# What is exact.


@pytest.mark.parametrize("noise", [0.05, 0.5])
@pytest.mark.parametrize("task", TASKS)
def test_pigdm_is_exact_for_independent_pixels(task, noise):
    data = independent()
    operator, y, truth, _ = problem_of(data, task, noise)
    x, _ = run(PiGDM(std=STD), operator, y, noise, data, Heun(), karras(32))
    mean, share = distances(x, truth)
    assert mean < 0.06 and abs(share - 1) < 0.03
    np.testing.assert_allclose(np.cov(x.T), truth.covariance, atol=0.04)


def test_pigdm_is_a_transform_for_every_solver():
    data = independent()
    operator, y, truth, _ = problem_of(data, TASKS[1], 0.2)
    for solver, gap in ((DPMSolverPP(), 0.03), (Ancestral(), 0.16)):  # DDPM's steps leave so much of any law
        mean, share = distances(run(PiGDM(std=STD), operator, y, 0.2, data, solver)[0], truth)
        assert mean < 0.08 and abs(share - 1) < gap


def test_ddnm_without_noise_is_exact_for_independent_pixels():
    # What is measured is met, and what is not is drawn from the data.
    data = independent()
    operator, y, _, _ = problem_of(data, TASKS[0], 0.0 + 1e-9)
    x, _ = run(DDNM(), operator, y, 0.0, data)
    seen = operator.seen.ravel() > 0
    np.testing.assert_allclose(x[:, seen], np.broadcast_to(y.ravel()[seen], (N, seen.sum())), atol=1e-5)
    hidden = x[:, ~seen]
    np.testing.assert_allclose(hidden.mean(0), data.means[0][~seen], atol=5 * STD / N**0.5)
    np.testing.assert_allclose(np.cov(hidden.T), STD**2 * np.eye(hidden.shape[1]), atol=0.05)


def test_particles_converge_to_the_posterior():
    data, noise = mixture(), 0.3
    operator, y, truth, surprise = problem_of(data, TASKS[0], noise)
    scale, square = np.trace(truth.covariance), {}
    for text in ("tds(particles=4, std=0.4)", TWISTED, STEERED):
        method = value_of(text, POSTERIORS, "--method")
        x, state = run(method, operator, y, noise, data, levels=karras(100))
        means = x.reshape(-1, method.particles, D).mean(1)
        square[text] = np.mean(np.sum((means - truth.mean) ** 2, 1)) / scale
        mean, share = distances(x, truth)
        assert mean < 0.2 and abs(share - 1) < 0.15
        assert state.log_evidence.shape == (N // method.particles,)
        # Of 4 chains the mean of these estimates is the same, but a few rare ones are most of it.
        if method.particles > 4:
            assert abs(np.mean(np.exp(np.asarray(state.log_evidence, np.float64) - surprise)) - 1) < 0.35
    # Of independent draws it would be 1 / K.
    assert square[TWISTED] < 0.05 and square[TWISTED] < square["tds(particles=4, std=0.4)"] / 8
    assert square[STEERED] < 0.05


# What is not, and by how much.


@pytest.mark.parametrize(
    "method, most, low, high",
    [
        ("ddrm", 0.3, 0.3, 0.8),
        ("ddnm", 0.6, 0.25, 0.9),
        ("pigdm(std=0.4)", 0.2, 0.75, 1.1),
        ("diffpir", 0.9, 1.2, 2.6),
        ("daps(std=0.4)", 0.25, 1.2, 2.0),
        ("dps", 0.8, 0.5, 3.0),
        ("red-diff", 0.8, 0.0, 0.7),
    ],
)
def test_the_others_come_near(method, most, low, high):
    data, noise = mixture(), 0.2
    operator, y, truth, _ = problem_of(data, TASKS[0], noise)
    x, _ = run(value_of(method, POSTERIORS, "--method"), operator, y, noise, data)
    mean, share = distances(x, truth)
    assert mean < most and low <= share < high
    # Nearer than the data without their measurement.
    assert mean < 0.5 * np.linalg.norm(data.mean - truth.mean) / np.sqrt(np.trace(truth.covariance))


@pytest.mark.parametrize(
    "method, task",
    [
        *((method, TASKS[0]) for method in ("ddrm", "ddnm", "diffpir", "daps(std=0.4)", "pigdm(std=0.4)")),
        *(("ddrm", TASKS[1]), ("ddnm(eta=0.5)", TASKS[1]), ("ddnm", TASKS[2])),
    ],
)
def test_without_noise_the_measurement_is_met(method, task):
    data = mixture()
    operator = operator_of(task)
    x = np.random.default_rng(0).multivariate_normal(data.means[0], data.covariances[0]).reshape(1, *SHAPE)
    y = np.asarray(operator.forward(jnp.asarray(x, jnp.float32)))[0]
    found, _ = run(value_of(method, POSTERIORS, "--method"), operator, y, 0.0, data)
    gap = operator.forward(jnp.asarray(found, jnp.float32).reshape(N, *SHAPE)) - y
    # Structures that a blur takes below a hundredth of their size are not looked for.
    most = 0.03 if "pigdm" in method or "blur" in task else 2e-4
    assert np.sqrt(np.mean(np.square(gap))) < most
    assert found.std(0).max() > 0.02 or "blur" in task  # and what is not measured is drawn


OWN_STEPS = ("ddrm", "ddnm", "diffpir", "daps(std=0.4)", "dps", "pigdm(std=0.4)", TWISTED)


@pytest.mark.parametrize("name", OWN_STEPS)
def test_only_sigma_over_alpha_matters(name):
    data, noise = mixture(), 0.2
    operator, y, _, _ = problem_of(data, TASKS[0], noise)
    method = value_of(name, POSTERIORS, "--method")
    ends = [
        run(method, operator, y, noise, data, levels=karras(12, p, 0.02))[0] for p in (paths.Sigma(), paths.Linear())
    ]
    if name != TWISTED:
        np.testing.assert_allclose(ends[0], ends[1], atol=5e-3)
    else:  # rounding may choose other chains where they are drawn again: their law stays, as with any other keys
        apart = np.linalg.norm(ends[0].mean(0) - ends[1].mean(0)) / np.sqrt(np.trace(np.cov(ends[1].T)))
        assert apart < 0.35 and abs(np.trace(np.cov(ends[0].T)) / np.trace(np.cov(ends[1].T)) - 1) < 0.35


@pytest.mark.parametrize("name", [*OWN_STEPS, "red-diff", STEERED])
def test_all_start_at_pure_noise(name):
    data = mixture()
    operator, y, _, _ = problem_of(data, TASKS[0], 0.2)
    levels = grids.pad(grids.UniformT()(paths.Linear(), 12), MOST_STEPS)
    assert levels.alpha[0] == 0
    found, _ = run(value_of(name, POSTERIORS, "--method"), operator, y, 0.2, data, levels=levels)
    assert np.isfinite(found).all() and np.abs(found).max() < 5


@pytest.mark.parametrize("name", POSTERIORS)
def test_calls_of_the_denoiser_are_counted(name):
    operator = operator_of(TASKS[1])
    levels = grids.pad(grids.Karras(0.02, 20.0)(paths.Sigma(), 5), 8)
    calls = []

    def counted(x, cur, nxt):
        calls.append(1)
        return gaussian.from_x0(cur, x, 0.1 * x)

    solver = POSTERIORS[name](Problem(operator, jnp.zeros((16, *operator.measured)), jnp.float32(0.2)), Ancestral())
    keys, x = image_keys(0, jnp.arange(16)), jnp.ones((16, *SHAPE))
    if name == "daps":  # whose calls stand in a scan of their own
        with jax.disable_jit():
            sample(keys, x, levels, counted, solver)
        assert len(calls) == solver.nfe(levels) == 25
    else:
        state, level = solver.init(x, levels), jax.tree.map(lambda a: a[0], levels)
        jax.eval_shape(lambda x: solver.step(keys, x, state, level, level, counted), x)
        assert len(calls) == 1 and solver.nfe(levels) == 5
