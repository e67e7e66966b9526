"""Multistep solvers: orders on even and uneven steps, equalities, both ends of every path, calls, grids that rise."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

from jaxdiff.core import grids, paths
from jaxdiff.core.types import Level
from jaxdiff.sampling.ddim import DDIM
from jaxdiff.sampling.deis import DEIS
from jaxdiff.sampling.multistep import adams, moments
from jaxdiff.sampling.plms import PLMS, PNDM
from jaxdiff.sampling.sa_solver import SASolver
from jaxdiff.sampling.sample import image_keys, sample, trajectory
from jaxdiff.sampling.solver import Solver, vp
from jaxdiff.sampling.unipc import B1, B2, UniPC

FULL = {"lower_order_final": False}
SOLVERS = {
    "deis": DEIS(3),
    "unipc": UniPC(3),
    "sa": SASolver(),
    "sa_ode": SASolver(0.0, predictor_order=2, corrector_order=2),
    "plms": PLMS(),
    "pndm": PNDM(),
    "pndm_euler": PNDM(runge_kutta=False),
}


@pytest.fixture(scope="module")
def mixture(closed_form):
    return closed_form.Mixture(jnp.array([-0.6, 0.5]), jnp.float32(0.3), jnp.array([0.4, 0.6]))


@pytest.fixture(scope="module")
def seen():
    """The sigmas that the denoiser was called at."""
    return []


@pytest.fixture(scope="module")
def unpadded(closed_form, mixture, seen):
    """(solver, x, levels) -> x after every step, with the exact denoiser."""
    exact = closed_form.denoiser(mixture)

    def denoise(x, cur, nxt):
        jax.debug.callback(lambda sigma: seen.append(float(sigma)), cur.sigma)
        return exact(x, cur, nxt)

    @functools.partial(jax.jit, static_argnums=0)
    def unpadded(solver, x, levels):
        return trajectory(image_keys(0, jnp.arange(x.shape[0])), x, levels, denoise, solver)

    return unpadded


@pytest.fixture(scope="module")
def run(unpadded):
    """The same of grids padded to one length: one compilation for each solver."""
    return lambda solver, x, levels: unpadded(solver, x, grids.pad(levels, 24))


def start(b=16):
    return jnp.linspace(-2, 2, b).reshape(b, 1, 1, 1)


# Orders, in double precision. The first steps of the uneven grids are short, so that the low orders of the start cost
# nothing. Every grid is brought to one length by repeating its last level, which is no step.


def even(n):
    """sigma/alpha from 4 to 0.05 in equal steps."""
    return np.linspace(4, 0.05, n + 1)


def uneven(n):
    """lambda in steps whose lengths grow by as much as a factor 3."""
    u = np.linspace(0, 1, n + 1)
    return 4 * (0.05 / 4) ** (u**2 * (1.2 - 0.2 * u))


ORDERS = [
    (DEIS(2, **FULL), uneven, 2),
    (DEIS(3, **FULL), uneven, 3),
    (UniPC(3, corrector=False, **FULL), uneven, 3),
    (UniPC(1, **FULL), uneven, 2),
    (UniPC(2, B1(), **FULL), uneven, 3),
    (UniPC(2, B2(), **FULL), uneven, 3),
    (UniPC(3, **FULL), uneven, 4),
    (SASolver(0.0, predictor_order=2, corrector_order=0, **FULL), uneven, 2),
    (SASolver(0.0, predictor_order=3, corrector_order=0, **FULL), uneven, 3),
    (SASolver(0.0, predictor_order=3, corrector_order=4, **FULL), uneven, 4),
    (PLMS(), uneven, 2),
    (PNDM(), even, 4),
]


@pytest.mark.parametrize(("solver", "grid", "order"), ORDERS)
def test_order_on_a_mixture(solver, grid, order, closed_form):
    most = 64
    with jax.enable_x64(True):
        data = closed_form.Mixture(jnp.array([-0.6, 0.5]), jnp.float64(0.3), jnp.array([0.4, 0.6]))
        z = jnp.linspace(-2, 2, 16).reshape(-1, 1, 1, 1)
        keys = image_keys(0, jnp.arange(16))

        @jax.jit
        def error(levels):
            first, last = (Level(*(a[i] for a in levels)) for i in (0, -1))
            x = jnp.hypot(0.6 * first.alpha, first.sigma) * z
            end = sample(keys, x, levels, closed_form.denoiser(data), solver)
            return jnp.abs(closed_form.cdf(data, last, end) - closed_form.cdf(data, first, x)).mean()

        errors = []
        for n in (most // 2, most):
            ratio = grid(n)
            errors.append(float(error(vp(jnp.asarray(np.append(ratio, np.repeat(ratio[-1], most - n)))))))
    assert order - 0.35 < math.log2(errors[0] / errors[1]) < order + 0.6


@pytest.mark.parametrize("h", [-6.0, -0.3, 1e-6, 0.04, 0.999, 1.001, 8.0])
def test_adams_weights_integrate_polynomials(h):
    # The weights of three other values are exact for cubics, with every number of them that the order allows.
    u = [1.0, -0.8, -2.1]
    with jax.enable_x64(True):
        for order in (1, 2, 3, 4):
            weights = adams(jnp.float64(h), [jnp.float64(v) for v in u], jnp.int32(order))
            power = order - 1
            got = float(weights @ jnp.array([v**power for v in u])) if power else float(weights.sum())
            want = h * quad(lambda t, k=power: math.exp(-(1 - t) * h) * t**k, 0, 1, epsrel=1e-12)[0] if power else 0.0
            assert abs(got - want) < 1e-9 * max(1, abs(want))
            assert not np.any(weights[order - 1 :])


def test_moments_are_smooth_in_float32():
    # Where the series hands over to the recursion, and for steps too short for exp(-h) - 1.
    for h in (1e-7, 0.9999, 1.0001, -0.9999, -1.0001, 30.0):
        want = [quad(lambda t, h=h, k=k: math.exp(-(1 - t) * h) * t**k, 0, 1)[0] for k in range(4)]
        np.testing.assert_allclose(moments(jnp.float32(h), 3), want, rtol=2e-5)


@pytest.mark.parametrize(
    ("solver", "same"),
    [
        (DEIS(1), DDIM()),
        (PLMS(1), DDIM()),
        (UniPC(1, corrector=False), DDIM()),
        (SASolver(0.0, predictor_order=1, corrector_order=0), DDIM()),
        (SASolver(1.0, predictor_order=1, corrector_order=0), DDIM(1.0)),
        (SASolver(1.0, 20.0, 30.0), SASolver(0.0)),
        (SASolver(0.0, predictor_order=3, corrector_order=0), UniPC(3, B1(), corrector=False)),
        (SASolver(0.0, predictor_order=3, corrector_order=4), UniPC(3, B1())),
    ],
)
def test_equal_solvers(solver, same, run):
    # SA-Solver's rule for two values is UniPC's with B1.
    levels = grids.UniformT()(paths.Linear(), 6)
    a, b = (run(s, start(), levels) for s in (solver, same))
    np.testing.assert_allclose(a[-1], b[-1], atol=2e-5)


def test_what_tells_solvers_apart_does(run):
    levels = grids.UniformT(start=0.9)(paths.Linear(), 6)
    more = [DDIM(), UniPC(2), UniPC(2, B1()), UniPC(3, B1(), corrector=False), SASolver(0.5), SASolver(0.0)]
    ends = [run(solver, start(), levels)[-1] for solver in (*SOLVERS.values(), *more)]
    for i, a in enumerate(ends):
        assert all(jnp.abs(a - b).max() > 1e-3 for b in ends[:i])


@pytest.mark.parametrize("name", SOLVERS)
def test_every_path_from_both_ends(name, run, closed_form, mixture):
    # From alpha = 0 where the path has it; a normal deviate ends at the same cumulative probability under the ODE.
    every = [paths.Linear(), paths.Cosine(), paths.Sigmoid(), paths.LinearVP(), paths.DiscreteVP(), paths.Sigma()]
    for path in every:
        levels = (grids.Karras(0.02, 60.0) if path == paths.Sigma() else grids.UniformT())(path, 24)
        first = closed_form.first(levels)
        x = jnp.hypot(0.6 * first.alpha, first.sigma) * start()
        end = run(SOLVERS[name], x, levels)[-1]
        assert jnp.isfinite(end).all()
        if name != "sa":
            u = [closed_form.cdf(mixture, *v) for v in ((first, x), (Level(jnp.ones(()), jnp.zeros(())), end))]
            assert jnp.abs(u[0] - u[1]).mean() < 0.015


@pytest.mark.parametrize("name", SOLVERS)
def test_calls_are_counted_and_never_at_sigma_0(name, run, seen):
    solver = SOLVERS[name]

    def calls(levels):
        jax.effects_barrier()
        seen.clear()
        xs = run(solver, start(), levels)
        n = levels.alpha.size - 1
        np.testing.assert_array_equal(xs[n:], jnp.repeat(xs[n - 1][None], 24 - n, 0))
        jax.effects_barrier()
        assert len(seen) == solver.nfe(levels) == solver.nfe(grids.pad(levels, 24))
        assert min(seen) > 0
        return len(seen)

    for num_steps in (1, 2, 3, 6):
        extra = {"pndm": 3 * min(num_steps - 1, 3), "pndm_euler": min(num_steps - 1, 1)}
        assert calls(grids.UniformT(start=0.9)(paths.Linear(), num_steps)) == num_steps + extra.get(name, 0)
    # From alpha = 0 no rule asks between the levels; after a rise there is a new start.
    assert calls(grids.UniformT()(paths.Linear(), 12)) == 12 + {"pndm": 6}.get(name, 0)
    falling = grids.UniformT(start=0.9)(paths.Linear(), 6)
    rising = Level(*(jnp.concatenate([a[:6], a[2:]]) for a in falling))
    assert calls(rising) == 10 + {"pndm": 18, "pndm_euler": 2}.get(name, 0)


@pytest.mark.parametrize("name", ["deis", "unipc", "sa", "pndm"])
def test_padding_changes_nothing(name, run, unpadded):
    levels = grids.UniformT(start=0.9)(paths.Linear(), 6)
    padded = run(SOLVERS[name], start(), levels)[:6]
    np.testing.assert_allclose(padded, unpadded(SOLVERS[name], start(), levels), atol=1e-6)


@pytest.mark.parametrize("name", ["deis", "unipc", "sa_ode", "plms", "pndm"])
def test_a_repeated_level_is_no_step(name, run):
    levels = grids.UniformT(start=0.9)(paths.Linear(), 12)
    twice = Level(*(jnp.insert(a, 5, a[5]) for a in levels))
    a, b = (run(SOLVERS[name], start(), v)[-1] for v in (levels, twice))
    np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.parametrize("name", ["deis", "unipc", "sa_ode", "plms", "pndm"])
def test_after_a_rise_there_is_no_history(name, run):
    falling = grids.UniformT(start=0.9)(paths.Linear(), 12)
    levels = Level(*(jnp.concatenate([a[:6], a[2:]]) for a in falling))
    xs = run(SOLVERS[name], start(), levels)
    fresh = run(SOLVERS[name], xs[5], Level(*(a[2:] for a in falling)))
    np.testing.assert_allclose(xs[-1], fresh[-1], atol=2e-5)
    # And the rise itself is DDIM's, from what the solver believes there.
    moved = run(DDIM(), xs[4], Level(*(a[jnp.array([5, 2])] for a in falling)))
    if name not in ("unipc", "sa_ode"):  # which correct x first
        np.testing.assert_allclose(xs[5], moved[0], atol=2e-5)


@pytest.mark.parametrize("tau", [0.5, 1.0])
def test_sa_solver_draws_from_the_data(tau, closed_form):
    data = closed_form.normal(0.3, 0.5)
    levels = grids.Karras(0.02, 20.0)(paths.Sigma(), 24)
    keys = image_keys(0, jnp.arange(256))
    x = 20.0 * jax.random.normal(jax.random.key(7), (256, 4, 4, 1))

    def ends(solver):
        return jax.jit(sample, static_argnums=(3, 4))(keys, x, levels, closed_form.denoiser(data), solver)

    end = ends(SASolver(tau))
    # 4096 draws: three standard errors, and the solver's own error.
    assert abs(end.mean() - 0.3) < 0.025 and abs(end.std() - 0.5) < 0.03
    # New noise makes new images: less of the beginning is left, the more of it there is.
    kept = np.corrcoef(np.ravel(end), np.ravel(x))[0, 1]
    assert kept < (0.7 if tau == 0.5 else 0.2)


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: DEIS(4), "order"),
        (lambda: UniPC(0), "order"),
        (lambda: PLMS(5), "order"),
        (lambda: SASolver(-0.1), "tau"),
        (lambda: SASolver(predictor_order=4), "predictor_order"),
        (lambda: SASolver(corrector_order=5), "corrector_order"),
    ],
)
def test_bad_settings_are_refused(make, field):
    with pytest.raises(ValueError, match=rf"^{field} = "):
        make()


def test_solvers_are_solvers():
    assert all(isinstance(s, Solver) for s in SOLVERS.values())
