"""Multistep solvers against diffusers' schedulers, x after every step, from the same noise.

A fixed nonlinear function stands for the network. What diffusers is asked to do so that both do the same:

- its coefficients are computed in double precision (its sigmas, or alphas_cumprod, are replaced by doubles): with
  float32 the integrals of its DEIS and SA-Solver cancel to about 1e-3;
- DEIS ends at the first training level (it has no clean level), with fewer than 15 steps, beyond which it ignores
  `lower_order_final`;
- UniPC with bh1 is not finite at the clean level, so there it ends at a level above;
- SA-Solver is given our noise, and ends at the first training level;
- PNDM ends at the clean level (`set_alpha_to_one`). Its Runge-Kutta stages lie half way in the training step, ours half
  way in sigma/alpha, so that start is compared where the two are one: alphas_cumprod with sigma/alpha even in time.
  It averages raw outputs, so only its epsilon prediction is the method of the paper.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.core import gaussian, predictions
from jaxdiff.core.types import Estimate, Level
from jaxdiff.sampling.deis import DEIS
from jaxdiff.sampling.plms import PNDM
from jaxdiff.sampling.sa_solver import SASolver
from jaxdiff.sampling.sample import denoiser, image_keys, normal, trajectory
from jaxdiff.sampling.unipc import B1, B2, UniPC

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")

torch = pytest.importorskip("torch", reason="needs the extra parity")
diffusers = pytest.importorskip("diffusers", reason="needs the extra parity")

STEPS = 9
SHAPE = (4, 4, 1)
KEYS = image_keys(0, jnp.arange(1))
PREDICTIONS = {"epsilon": predictions.Eps(), "sample": predictions.X0(), "v_prediction": predictions.V()}
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


class Chosen(NamedTuple):
    """A prediction by a traced number: one compilation serves all."""

    number: jax.Array

    def row(self, level):
        rows = zip(*(prediction.row(level) for prediction in PREDICTIONS.values()), strict=True)
        return tuple(jnp.stack(r)[self.number] for r in rows)

    def c_in(self, level):
        raise NotImplementedError

    c_noise = c_in


def belief(x, alpha, sigma, tanh):
    """The stand-in network's x0 and eps."""
    x0 = 0.7 * tanh(1.5 * alpha * x) + 0.1 * tanh(3 * x + 1)
    return x0, (x - alpha * x0) / sigma


@functools.partial(jax.jit, static_argnums=0)
def ours(solver, number, x, levels):
    prediction = Chosen(number)

    def apply(params, x, cur, nxt, cond, key=None):
        alpha, sigma = (gaussian.expand(a, x) for a in cur)
        return gaussian.target(prediction, cur, *Estimate(*belief(x, alpha, sigma, jnp.tanh))[:2])

    return trajectory(KEYS, x, levels, denoiser(apply, {}, prediction, {}), solver)


def theirs(scheduler, x, level_of):
    """x after every call of the network; `level_of` tells alpha and sigma from the timestep's number and value."""
    kind, x, xs = scheduler.config.prediction_type, torch.from_numpy(np.array(x, np.float64)), []
    for i, t in enumerate(scheduler.timesteps):
        alpha, sigma = level_of(i, t)
        x0, eps = belief(x, alpha, sigma, torch.tanh)
        out = {"epsilon": eps, "sample": x0, "v_prediction": alpha * eps - sigma * x0}[kind]
        x = scheduler.step(out, t, x).prev_sample
        xs.append(x.numpy())
    return np.stack(xs)


def check(got, want):
    got = np.asarray(got)
    assert got.shape == want.shape
    for a, b in zip(got, want, strict=True):
        assert np.abs(a - b).max() < 1e-4 * np.abs(b).max()


def compare(scheduler, solver, last):
    """Steps of a scheduler that holds sigma/alpha of all its levels in `sigmas`."""
    scheduler.set_timesteps(STEPS)
    ratio = np.append(scheduler.sigmas.double().numpy()[:-1], last)
    assert len(ratio) == STEPS + 1
    scheduler.sigmas = torch.from_numpy(ratio)
    levels = Level(1 / jnp.hypot(1.0, ratio), jnp.asarray(ratio / np.hypot(1, ratio), jnp.float32))
    x = normal(KEYS, SHAPE)
    want = theirs(scheduler, x, lambda i, t: (1 / np.hypot(1, ratio[i]), ratio[i] / np.hypot(1, ratio[i])))
    number = list(PREDICTIONS).index(scheduler.config.prediction_type)
    check(ours(solver, jnp.int32(number), x, levels), want)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis(order, prediction):
    scheduler = diffusers.DEISMultistepScheduler(solver_order=order, prediction_type=prediction, **BETAS)
    compare(scheduler, DEIS(order), last=0.03)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("b", [B1(), B2()])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc(order, b, prediction):
    scheduler = diffusers.UniPCMultistepScheduler(
        solver_order=order, solver_type="bh1" if b == B1() else "bh2", prediction_type=prediction, **BETAS
    )
    compare(scheduler, UniPC(order, b), last=0.03 if b == B1() else 0.0)


@pytest.mark.parametrize("order", [2, 3])
def test_unipc_without_corrector_and_of_full_order_at_the_end(order):
    scheduler = diffusers.UniPCMultistepScheduler(
        solver_order=order, disable_corrector=list(range(STEPS)), lower_order_final=False, **BETAS
    )
    compare(scheduler, UniPC(order, corrector=False, lower_order_final=False), last=0.03)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(
    ("tau", "predictor", "corrector"),
    [(0.0, 1, 1), (0.0, 2, 2), (0.0, 3, 4), (0.7, 2, 2), (1.0, 3, 3), ("interval", 3, 4)],
)
def test_sa_solver(tau, predictor, corrector, prediction, monkeypatch):
    if tau == "interval":
        # Levels of this grid with 222 <= t <= 666 have 0.66 < sigma/alpha < 3.7.
        solver, tau_of = SASolver(1.0, 0.5, 4.0, predictor, corrector), lambda t: 1.0 if 200 < t < 700 else 0.0
    else:
        solver, tau_of = SASolver(tau, predictor_order=predictor, corrector_order=corrector), lambda t: tau
    steps = iter(range(1, STEPS + 1))

    def noise(shape, **_):
        keys = jax.vmap(lambda key, i: jax.random.fold_in(key, i), in_axes=(0, None))(KEYS, next(steps))
        return torch.from_numpy(np.asarray(normal(keys, SHAPE), np.float64))

    monkeypatch.setattr("diffusers.schedulers.scheduling_sasolver.randn_tensor", noise)
    scheduler = diffusers.SASolverScheduler(
        predictor_order=predictor, corrector_order=corrector, tau_func=tau_of, prediction_type=prediction, **BETAS
    )
    compare(scheduler, solver, last=0.03)


@pytest.mark.parametrize("runge_kutta", [True, False])
def test_pndm(runge_kutta):
    scheduler = diffusers.PNDMScheduler(skip_prk_steps=not runge_kutta, set_alpha_to_one=True)
    even = 1 / (1 + (0.02 + 0.01 * np.arange(1000)) ** 2)
    squares = even if runge_kutta else scheduler.alphas_cumprod.double().numpy()
    scheduler.alphas_cumprod = torch.from_numpy(squares)
    scheduler.set_timesteps(10)

    def level_of(i, t):
        return squares[t] ** 0.5, (1 - squares[t]) ** 0.5

    x = normal(KEYS, SHAPE)
    want = theirs(scheduler, x, level_of)
    square = np.append(squares[900::-100], 1.0)
    levels = Level(jnp.asarray(square**0.5, jnp.float32), jnp.asarray((1 - square) ** 0.5, jnp.float32))
    # The last call of each of our steps: four and four and four, or two, and then one each.
    ends = [3, 7, 11, *range(12, 19)] if runge_kutta else range(1, 11)
    check(ours(PNDM(runge_kutta, lower_order_final=False), jnp.int32(0), x, levels), want[list(ends)])
