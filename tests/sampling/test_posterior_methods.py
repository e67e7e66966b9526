"""Posterior methods on data whose denoiser and posterior are known: which are exact, and what the others keep."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.core import gaussian, grids, paths
from jaxdiff.core.types import Level
from jaxdiff.names import OPERATORS, POSTERIORS, value_of
from jaxdiff.sampling import exact
from jaxdiff.sampling.ancestral import Ancestral
from jaxdiff.sampling.dpm_solver import DPMSolverPP
from jaxdiff.sampling.heun import Heun
from jaxdiff.sampling.inverse.daps import DAPS
from jaxdiff.sampling.inverse.ddnm import DDNM
from jaxdiff.sampling.inverse.operator import NonLinear, matrix_of, seen_of
from jaxdiff.sampling.inverse.particles import Particles, Population, drawn, effective_size, weighed
from jaxdiff.sampling.inverse.pigdm import PiGDM
from jaxdiff.sampling.inverse.problem import Problem, correction, likelihood, spread
from jaxdiff.sampling.sample import image_keys, initial, sample, sample_and_state

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
