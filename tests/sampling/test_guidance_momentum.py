"""Momentum of guidance: a memory that only the steps of a solver write to."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import sampler
from jaxdiff.core import gaussian, grids, paths
from jaxdiff.core.types import Level
from jaxdiff.names import RULES, SOLVERS, value_of
from jaxdiff.presets import preset
from jaxdiff.sampling.ddim import DDIM
from jaxdiff.sampling.guidance import guided, pair_of
from jaxdiff.sampling.guidance_rules import APG, Interval
from jaxdiff.sampling.heun import Heun
from jaxdiff.sampling.momentum import Momentum, Remembered
from jaxdiff.sampling.restart import Restart
from jaxdiff.sampling.sample import image_keys, on_path, sample, trajectory
from jaxdiff.sampling.solver import Solver
from jaxdiff.sampling.threshold import static

SCALE, BETA = 3.0, -0.5
KEYS = image_keys(0, jnp.arange(2))
X = 10 * jnp.linspace(-1, 1, 16).reshape(2, 2, 4, 1)
LEVELS = grids.Karras(0.1, 10.0)(paths.Sigma(10.0), 5)
DIFFERENCE = jnp.linspace(-0.5, 1, 8).reshape(1, 2, 4, 1)


def constant(x0):
    def denoise(x, cur, nxt):
        return gaussian.from_x0(cur, x, jnp.broadcast_to(x0, x.shape))

    return denoise


def momentum(main, ref, solver, rule=APG(eta=1.0, momentum=BETA), transform=lambda denoise: denoise):
    """The solver with a memory, and nothing else to be asked: the denoiser that `sample` is given raises."""
    return Momentum(
        solver,
        rule.momentum,
        lambda push: transform(guided(pair_of(main, ref), rule(SCALE, push))),
    )


def never(x, cur, nxt):
    raise AssertionError("the denoiser without memory was asked")


def pushes(solver, levels=LEVELS, x=X):
    """What each step of DDIM took for x0, read off its states (on a path of alpha = 1)."""
    states = jnp.concatenate([x[None], trajectory(KEYS, x, levels, never, solver)])
    q = (levels.sigma[1:] / levels.sigma[:-1]).reshape(-1, 1, 1, 1, 1)
    return (states[1:] - q * states[:-1]) / (1 - q)


@pytest.mark.parametrize("beta", [-0.5, 0.3])
def test_a_constant_difference_becomes_a_geometric_sum(beta):
    solver = momentum(constant(0.2 + DIFFERENCE), constant(jnp.float32(0.2)), DDIM(), APG(eta=1.0, momentum=beta))
    for k, x0 in enumerate(pushes(solver), start=1):
        want = 0.2 + DIFFERENCE + (SCALE - 1) * DIFFERENCE * (1 - beta**k) / (1 - beta)
        np.testing.assert_allclose(x0, jnp.broadcast_to(want, X.shape), atol=2e-4)


def test_the_average_is_rescaled_and_projected_as_a_difference_is():
    main, ref = constant(0.2 + DIFFERENCE), constant(jnp.float32(0.2))
    x0 = pushes(momentum(main, ref, DDIM(), APG(eta=0.0, radius=0.3, momentum=0.5)))
    alone = pushes(momentum(main, ref, DDIM(), APG(eta=0.0, radius=0.3, momentum=0.0)))
    np.testing.assert_allclose(x0, alone, atol=2e-4)  # parallel to the difference, and longer than the radius
    free = pushes(momentum(main, ref, DDIM(), APG(eta=0.0, momentum=0.5)))
    dots = jnp.sum((free - 0.2 - DIFFERENCE) * (0.2 + DIFFERENCE), axis=(2, 3, 4))
    np.testing.assert_allclose(dots, 0, atol=1e-3)


def test_steps_that_are_none_leave_the_memory_alone():
    solver = momentum(constant(0.2 + DIFFERENCE), constant(jnp.float32(0.2)), DDIM())
    twice = Level(*(jnp.repeat(a, jnp.array([1, 1, 3, 1, 1, 1])) for a in LEVELS))
    for levels in (grids.pad(LEVELS, 9), twice):
        got = sample(KEYS, X, levels, never, solver)
        np.testing.assert_allclose(got, sample(KEYS, X, LEVELS, never, solver), atol=1e-5)


def test_outside_the_interval_nothing_is_remembered():
    main, ref = constant(0.2 + DIFFERENCE), constant(jnp.float32(0.2))
    inside = Interval(float(LEVELS.sigma[4]) * 1.01, float(LEVELS.sigma[1]) * 1.01)  # steps 2, 3 and 4
    limited = momentum(main, ref, DDIM(), transform=lambda denoise: inside.switch(denoise, main))
    sums = [0.0, 1.0, 0.5, 0.75, 0.0]
    for k, x0 in zip(sums, pushes(limited), strict=True):
        np.testing.assert_allclose(x0, jnp.broadcast_to(0.2 + DIFFERENCE * (1 + 2 * k), X.shape), atol=2e-4)


@pytest.fixture(scope="module")
def beliefs(closed_form):
    return closed_form.denoiser(closed_form.normal(0.5, 0.4)), closed_form.denoiser(closed_form.normal(-0.2, 0.9))


def test_all_calls_of_a_step_see_the_average_of_the_steps_before(beliefs):
    main, ref = beliefs
    cur, nxt = Level(jnp.float32(1.0), jnp.float32(2.0)), Level(jnp.float32(1.0), jnp.float32(0.7))
    before = jnp.full_like(X, 0.1)
    x, after = momentum(main, ref, Heun()).step(KEYS, X, Remembered(Heun().init(X, LEVELS), before), cur, nxt, never)

    def shifted(x, cur, nxt):
        """Guidance by the difference and a fixed share of `before`."""
        m, r = main(x, cur, nxt), ref(x, cur, nxt)
        return gaussian.from_x0(cur, x, m.x0 + (SCALE - 1) * (m.x0 - r.x0 + BETA * before))

    want, _ = Heun().step(KEYS, X, Heun().init(X, LEVELS), cur, nxt, shifted)
    np.testing.assert_allclose(x, want, atol=1e-5)
    here = main(X, cur, nxt).x0 - ref(X, cur, nxt).x0 + BETA * before
    np.testing.assert_allclose(after.average, here, atol=1e-6)


def transform(denoise):
    return on_path(paths.LinearVP())(static(-2.0, 2.0)(denoise))


@pytest.mark.parametrize("name", ["edm", "pc", "pndm", "dpm-3", "unipc", "restart"])
def test_solvers_make_no_more_calls(name, beliefs):
    """Whatever loops and branches their calls stand in; thresholded, and off the network's path."""
    calls, solver, path = [], SOLVERS[name], paths.LinearVP()
    grid = grids.Restarts() if isinstance(solver, Restart) else grids.Karras(0.1, 10.0)
    levels = grid(path, 4)

    def counted(x, cur, nxt):
        jax.debug.callback(lambda: calls.append(1))
        return beliefs[0](x, cur, nxt)

    remembering = momentum(counted, beliefs[1], solver, transform=transform)
    x = jax.jit(lambda x: sample(KEYS, x, levels, never, remembering))(X / 10)
    jax.effects_barrier()
    assert jnp.all(jnp.isfinite(x)) and len(calls) == remembering.nfe(levels) == solver.nfe(levels)


def test_an_image_is_the_same_alone(beliefs):
    solver = momentum(*beliefs, SOLVERS["edm"], transform=transform)
    levels = grids.Karras(0.1, 10.0)(paths.LinearVP(), 4)
    run = jax.jit(lambda keys, x: sample(keys, x, levels, never, solver))
    np.testing.assert_allclose(run(KEYS[1:], X[1:] / 10), run(KEYS, X / 10)[1:], atol=1e-5)


def test_without_momentum_the_solver_is_the_configs_own():
    config = preset("emoji")
    plain = dataclasses.replace(config, sampling=dataclasses.replace(config.sampling, guidance=APG()))
    assert sampler.solver_of(plain, momentum) is plain.solver
    held = dataclasses.replace(config, sampling=dataclasses.replace(config.sampling, guidance=APG(momentum=BETA)))
    assert sampler.solver_of(held, momentum) == Momentum(config.solver, BETA, momentum)


def test_it_is_a_solver_and_its_weight_is_a_number_below_1():
    assert isinstance(momentum(never, never, DDIM()), Solver)
    assert value_of("apg(momentum=-0.5)", RULES, "--guidance") == APG(momentum=-0.5)
    with pytest.raises(ValueError, match=r"momentum = -1.0 .*--guidance.momentum"):
        APG(momentum=-1.0)
