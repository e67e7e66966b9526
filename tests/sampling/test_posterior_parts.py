"""What posterior methods are made of, and the problems that each of them refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from posteriors import (
    MOST_STEPS,
    SHAPE,
    STD,
    TASKS,
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

from jaxdiff.core import grids, paths
from jaxdiff.core.types import Level
from jaxdiff.names import POSTERIORS, value_of
from jaxdiff.sampling.ancestral import Ancestral
from jaxdiff.sampling.inverse.daps import DAPS
from jaxdiff.sampling.inverse.operator import NonLinear, matrix_of
from jaxdiff.sampling.inverse.particles import Particles, Population, drawn, effective_size, weighed
from jaxdiff.sampling.inverse.problem import Problem, correction, likelihood, spread
from jaxdiff.sampling.sample import image_keys

# The parts.


def test_correction_minimises_its_sum_of_squares():
    operator, y, _, _ = problem_of(mixture(), TASKS[1], 0.2)
    a, lam = matrix_of(operator), 0.3
    x0 = np.random.default_rng(0).normal(size=(1, *SHAPE))
    problem = Problem(operator, jnp.asarray(y[None], jnp.float32), jnp.zeros(()))
    moved = correction(problem, operator, jnp.asarray(x0, jnp.float32), jnp.float32(lam))
    want = np.linalg.solve(a.T @ a + lam * np.eye(D), a.T @ y.ravel() + lam * x0.ravel()) - x0.ravel()
    np.testing.assert_allclose(np.ravel(moved), want, atol=1e-4)


@pytest.mark.parametrize("text", TASKS)
def test_likelihoods_are_normal_densities(text):
    operator, y, _, _ = problem_of(mixture(), text, 0.2)
    a, r, noise = matrix_of(operator), 0.4, 0.2
    x0 = np.random.default_rng(0).normal(size=(2, *SHAPE))
    many = jnp.broadcast_to(jnp.asarray(y, jnp.float32), (2, *y.shape))
    problem = Problem(operator, many, jnp.float32(noise))
    log_p, slope = jax.jit(lambda x0: likelihood(problem, x0, jnp.float32(r)))(jnp.asarray(x0, jnp.float32))
    inverse = np.linalg.inv(r**2 * a @ a.T + noise**2 * np.eye(len(a)))
    miss = y.ravel() - x0.reshape(2, -1) @ a.T
    np.testing.assert_allclose(log_p, -0.5 * np.einsum("bi,ij,bj->b", miss, inverse, miss), rtol=1e-3)
    np.testing.assert_allclose(np.reshape(slope, (2, -1)), miss @ inverse @ a, atol=2e-3 * np.abs(slope).max())


def test_spread_is_the_posteriors_deviation_of_a_pixel():
    level = Level(jnp.float32(0.6), jnp.float32(0.5))
    assert np.isclose(spread(level, 0.7), (1 / 0.7**2 + 0.6**2 / 0.5**2) ** -0.5)
    assert spread(Level(jnp.zeros(()), jnp.ones(())), 0.7) == pytest.approx(0.7)


def test_daps_draws_alike_by_langevin_steps():
    # The same operator, once as what it is and once as any other.
    data, noise = independent(), 0.3
    operator, y, truth, _ = problem_of(data, TASKS[1], noise)
    blind = NonLinear(operator.shape, operator.measured, operator.forward, operator.offset)
    method = DAPS(std=STD, ode_steps=2, langevin=60, step=0.2)
    moments = [distances(run(method, op, y, noise, data, levels=karras(24))[0], truth) for op in (operator, blind)]
    assert abs(moments[0][0] - moments[1][0]) < 0.1 and abs(moments[0][1] - moments[1][1]) < 0.12


def population(weights):
    log_weight = jnp.log(jnp.asarray(weights))
    groups, k = log_weight.shape
    return Population(log_weight, jnp.zeros((groups, k)), jnp.zeros(groups), jnp.full(groups, float(k)))


def test_weights_stay_weights_and_their_means_are_the_evidence():
    state = weighed(population([[0.25] * 4, [0.1, 0.2, 0.3, 0.4]]), jnp.log(jnp.array([[1.0, 2, 3, 2], [4, 4, 4, 4]])))
    np.testing.assert_allclose(np.exp(state.log_weight).sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.exp(state.log_evidence), [2, 4], rtol=1e-5)
    np.testing.assert_allclose(effective_size(state.log_weight), [64 / 18, 1 / 0.3], rtol=1e-4)
    np.testing.assert_allclose(state.effective, effective_size(state.log_weight))


def test_chains_are_drawn_by_their_weights_and_never_across_populations():
    weights = np.array([[0.5, 0.25, 0.25, 0.0], [0.0, 0.0, 1.0, 0.0], [0.7, 0.1, 0.1, 0.1]])
    needed = jnp.array([True, True, False])
    state = population(np.maximum(weights, 1e-30))
    counts = np.zeros(12)
    for seed in range(20):
        chosen, after = drawn(image_keys(seed, jnp.arange(12)), state, needed)
        counts += np.bincount(chosen, minlength=12)
    np.testing.assert_array_equal(counts.reshape(3, 4)[:2], 80 * weights[:2])  # systematic: these come out whole
    np.testing.assert_array_equal(counts.reshape(3, 4)[2], 20)
    np.testing.assert_allclose(np.exp(after.log_weight)[:2], 0.25)
    np.testing.assert_allclose(np.exp(after.log_weight)[2], weights[2], rtol=1e-4)


def test_batches_are_whole_populations():
    method = Particles(particles=5)
    solver = method(Problem(operator_of(TASKS[0]), jnp.zeros((8, *SHAPE)), jnp.float32(0.1)), Ancestral())
    with pytest.raises(ValueError, match="populations of 5"):
        solver.init(jnp.zeros((8, *SHAPE)), grids.UniformT()(paths.Linear(), 3))


# Refusals.


@pytest.mark.parametrize(
    "method, operator, noise, words",
    [
        *((name, "phase", 0.1, "not linear") for name in ("ddrm", "pigdm", "diffpir")),
        ("ddnm", "phase", 0.0, "pseudo-inverse"),
        ("ddnm", "jpeg", 0.1, "noise = 0.1"),
        ("ddnm", "mri(coils=2, acceleration=2.0)", 0.1, "singular values"),
        ("ddrm", "mri(coils=2, acceleration=2.0)", 0.1, "singular values"),
        ("tds", "mask", 0.0, "noise = 0"),
        ("fk", "mask", 0.0, "noise = 0"),
        ("daps", "phase", 0.0, "noise = 0"),
    ],
)
def test_problems_that_a_method_cannot_solve(method, operator, noise, words):
    value, made = POSTERIORS[method], operator_of(operator, (8, 8, 1))
    with pytest.raises(ValueError, match=words) as error:
        value.check(made, noise)
    assert "--" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", POSTERIORS)
def test_what_each_method_takes(name):
    POSTERIORS[name].check(operator_of("blur"), 0.1)
    for operator in ("phase", "jpeg"):
        if name in ("dps", "red-diff", "daps", "tds", "fk"):
            POSTERIORS[name].check(operator_of(operator, (8, 8, 1)), 0.1)


def test_methods_for_any_operator_lower_the_distance():
    # JPEG of the mixture's pictures: methods that take it end nearer to the file than the data are.
    data = mixture()
    operator = operator_of("jpeg(quality=60)")
    forward = jax.jit(operator.forward)
    rng = np.random.default_rng(0)
    x = rng.multivariate_normal(data.means[0], data.covariances[0]).reshape(1, *SHAPE)
    y = np.asarray(forward(jnp.asarray(x, jnp.float32)))[0]

    def distance(x):
        return np.sqrt(np.mean(np.square(forward(jnp.asarray(x, jnp.float32).reshape(N, *SHAPE)) - y)))

    before = distance(rng.multivariate_normal(data.mean, data.covariance, N))
    for text, noise in (("dps", 0.1), ("daps(langevin=10)", 0.1), ("ddnm", 0.0)):
        method = value_of(text, POSTERIORS, "--method")
        assert distance(run(method, operator, y, noise, data, levels=karras(16))[0]) < 0.6 * before, text


@pytest.mark.parametrize(
    "text",
    [
        *("ddrm(eta=2.0)", "ddnm(eta=-1.0)", "pigdm(std=0.0)", "dps(scale=-1.0)", "diffpir(weight=0.0)"),
        *("diffpir(fresh=2.0)", "red-diff(rate=0.0)", "daps(ode_steps=0)", "daps(step=2.0)", "tds(particles=0)"),
        "fk(threshold=2.0)",
    ],
)
def test_fields_out_of_range(text):
    with pytest.raises(ValueError, match="not allowed"):
        value_of(text, POSTERIORS, "--method")


def test_diffpir_starts_from_pure_noise():
    """At alpha = 0 its least squares have no prior, and what noise makes of them would outgrow the level's own."""
    data = independent()
    operator, y, truth, _ = problem_of(data, "blur(std=2.0)", 0.05)
    levels = grids.pad(grids.UniformT()(paths.Linear(), 50), MOST_STEPS)
    assert float(levels.alpha[0]) == 0
    x, _ = run(value_of("diffpir", POSTERIORS, "--method"), operator, y, 0.05, data, levels=levels)
    away, variance = distances(x, truth)
    assert away < 0.5 and variance < 2, (away, variance)
