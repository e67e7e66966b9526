"""Solvers against diffusers' schedulers, step by step: one network's function, one noise, the schedulers' own levels.

What differs, and how it is met here:

- DDPMScheduler leaves the noise out at t = 0 alone, and so not in a last step from another t: "leading" ends at 0.
- DPMSolverMultistepScheduler's third order has half of the parabola's w2: `curvature=0.5`. Its SDE form of that order
  has a coefficient that does not vanish with the step, and is left out.
- From 15 steps on it keeps order 3 in the step before the last; `DPMSolverPP` goes to order 2 there always.
- DPMSolverSinglestepScheduler takes its looks from its grid, so the grids here have them where the papers do; its
  third order has the paper's second look with `solver_type="heun"`, and the paper's step with "midpoint".
- With `algorithm_type="dpmsolver"` it refuses to go to sigma = 0, so the levels end above it.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra parity")
diffusers = pytest.importorskip("diffusers", reason="needs the extra parity")

from jaxdiff.core import gaussian, paths, predictions  # noqa: E402
from jaxdiff.core.types import Level  # noqa: E402
from jaxdiff.sampling.ancestral import Ancestral  # noqa: E402
from jaxdiff.sampling.ddim import DDIM  # noqa: E402
from jaxdiff.sampling.dpm_solver import DPMSolverPP  # noqa: E402
from jaxdiff.sampling.dpm_solver_single import DPMSolver, DPMSolverPPS  # noqa: E402
from jaxdiff.sampling.heun import Heun  # noqa: E402
from jaxdiff.sampling.sample import image_keys, normal, normal_like, on_path, trajectory  # noqa: E402

N = 10
KEYS = image_keys(0, jnp.arange(3))
SHAPE = (2, 2, 2)
VP = {"epsilon": predictions.Eps(), "sample": predictions.X0(), "v_prediction": predictions.V()}
NO_SAMPLE = ("epsilon", "v_prediction")
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def network(x, angle, np=np):
    """The output of a network that is no exact denoiser, at atan2(sigma, alpha) = angle."""
    return 0.8 * np.tanh(x + 0.5 * angle) - 0.3 * np.cos(angle) * x + 0.1


def learned(x, angle, np=np):
    return np.sin(2 * x + angle)


class Chosen(NamedTuple):
    """One of the predictions of a variance-preserving network, by a traced number, so that all compile once."""

    number: jax.Array

    def row(self, level):
        rows = zip(*(prediction.row(level) for prediction in VP.values()), strict=True)
        return tuple(jnp.stack(r)[self.number] for r in rows)

    def c_in(self, level):
        return jnp.ones_like(level.alpha)

    def c_noise(self, level):
        raise NotImplementedError


def denoiser(prediction, path, variance=False):
    def denoise(x, cur, nxt):
        x_in, angle = prediction.c_in(cur) * x, jnp.arctan2(cur.sigma, cur.alpha)
        estimate = gaussian.estimate(prediction, cur, x, network(x_in, angle, jnp))
        return estimate._replace(v=learned(x_in, angle, jnp) if variance else None)

    return on_path(path)(denoise)


@functools.partial(jax.jit, static_argnums=0)
def ours(solver, kind, x, levels):
    variance = solver == Ancestral(None)
    return trajectory(KEYS, x, levels, denoiser(Chosen(kind), paths.Cosine(), variance), solver)


def chosen(kind):
    return jnp.int32(list(VP).index(kind))


def noise(number):
    """What `sample` draws in step `number` = 1, 2, ..."""
    keys = jax.vmap(lambda key: jax.random.fold_in(key, number))(KEYS)
    return torch.tensor(np.asarray(normal_like(keys, jnp.zeros((3, *SHAPE)))))


def levels_of(ratios, ve=False):
    """The levels of these sigma/alpha, variance-preserving or variance-exploding."""
    ratios = np.asarray(ratios, np.float64)
    alpha = np.ones_like(ratios) if ve else 1 / np.hypot(ratios, 1)
    return Level(jnp.asarray(alpha, jnp.float32), jnp.asarray(ratios * alpha, jnp.float32))


def start(levels):
    # At the first level, with images of its own in it.
    return levels.sigma[0] * normal(KEYS, SHAPE) + 0.5 * levels.alpha[0]


def theirs(scheduler, x, angles, variance=False, noisy=False, **options):
    """x after each of the scheduler's steps; with `noisy`, step k is given the noise of our step k."""
    x, after = torch.tensor(np.asarray(x)), []
    for k, (t, angle) in enumerate(zip(scheduler.timesteps, angles, strict=True)):
        x_in = scheduler.scale_model_input(x, t).numpy().astype(np.float64)
        out = network(x_in, angle)
        if variance:
            out = np.concatenate([out, learned(x_in, angle)], axis=1)
        more = {"variance_noise": noise(k + 1)} if noisy else {}
        x = scheduler.step(torch.tensor(out, dtype=torch.float32), t, x, **options, **more).prev_sample
        after.append(x.numpy())
    return np.stack(after)


def assert_same(got, want):
    assert got.shape == want.shape
    scale = np.abs(want).max(axis=(1, 2, 3, 4))
    off = np.abs(np.asarray(got) - want).max(axis=(1, 2, 3, 4)) / scale
    assert off.max() < 1e-4, off


def inject(monkeypatch, module):
    """The module's k-th draw is the noise of our step k."""
    counter = iter(range(1, N + 1))
    monkeypatch.setattr(module, "randn_tensor", lambda *args, **kwargs: noise(next(counter)))


def chain(scheduler):
    """Levels and angles of a scheduler that counts the steps of a chain."""
    bars = scheduler.alphas_cumprod.double().numpy()[scheduler.timesteps.numpy()]
    levels = Level(*(jnp.asarray(np.append(np.sqrt(v), end), jnp.float32) for v, end in ((bars, 1), (1 - bars, 0))))
    return levels, np.arctan2(np.sqrt(1 - bars), np.sqrt(bars))


VARIANCES = {"fixed_small": 0.0, "fixed_large": 1.0, "learned_range": None}


@pytest.mark.parametrize("kind", VP)
@pytest.mark.parametrize("variance", VARIANCES)
def test_ddpm(variance, kind, monkeypatch):
    scheduler = diffusers.DDPMScheduler(
        prediction_type=kind, variance_type=variance, clip_sample=False, timestep_spacing="leading"
    )
    scheduler.set_timesteps(N)
    levels, angles = chain(scheduler)
    x = start(levels)
    inject(monkeypatch, diffusers.schedulers.scheduling_ddpm)
    want = theirs(scheduler, x, angles, variance == "learned_range")
    assert_same(ours(Ancestral(VARIANCES[variance]), chosen(kind), x, levels), want)


@pytest.mark.parametrize("kind", VP)
@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_ddim(eta, kind):
    scheduler = diffusers.DDIMScheduler(prediction_type=kind, clip_sample=False, timestep_spacing="leading")
    scheduler.set_timesteps(N)
    levels, angles = chain(scheduler)
    x = start(levels)
    want = theirs(scheduler, x, angles, noisy=eta > 0, eta=eta)
    assert_same(ours(DDIM(eta), chosen(kind), x, levels), want)


MULTISTEP = [
    ("dpmsolver++", DPMSolverPP(1)),
    ("dpmsolver++", DPMSolverPP(2)),
    ("dpmsolver++", DPMSolverPP(3, curvature=0.5)),
    ("sde-dpmsolver++", DPMSolverPP(1, eta=1.0)),
    ("sde-dpmsolver++", DPMSolverPP(2, eta=1.0)),
]


@pytest.mark.parametrize("kind", VP)
@pytest.mark.parametrize(("algorithm", "solver"), MULTISTEP)
def test_dpm_solver_multistep(algorithm, solver, kind):
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **SD, prediction_type=kind, algorithm_type=algorithm, solver_order=solver.order, use_karras_sigmas=True
    )
    scheduler.set_timesteps(N)
    levels = levels_of(scheduler.sigmas)
    x = start(levels)
    want = theirs(scheduler, x, np.arctan(scheduler.sigmas[:-1].numpy()), noisy=solver.eta > 0)
    assert_same(ours(solver, chosen(kind), x, levels), want)


@pytest.mark.parametrize("kind", VP)
@pytest.mark.parametrize("solver", [DPMSolverPPS(2), DPMSolverPPS(3), DPMSolver(2), DPMSolver(3)])
def test_dpm_solver_singlestep(solver, kind):
    to_clean, order = isinstance(solver, DPMSolverPPS), solver.order
    scheduler = diffusers.DPMSolverSinglestepScheduler(
        prediction_type=kind,
        algorithm_type="dpmsolver++" if to_clean else "dpmsolver",
        solver_order=order,
        final_sigmas_type="zero" if to_clean else "sigma_min",
    )
    grid = np.array([10.0, 5.0, 3.0, 1.2, 0.6, 0.2, 0.05])
    looks = np.exp(np.interp(np.arange(6 * order + 1) / order, np.arange(7), np.log(grid)))
    sigmas, levels = (np.append(v, 0.0) if to_clean else v for v in (looks, grid))
    scheduler.set_timesteps(len(sigmas) - 1)
    scheduler.sigmas = torch.tensor(sigmas, dtype=torch.float32)
    scheduler.order_list = [*range(1, order + 1)] * 6 + [1] * to_clean
    levels = levels_of(levels)
    x, y, after = start(levels), None, []
    for k, t in enumerate(scheduler.timesteps):
        # diffusers reads the type at every step.
        scheduler.register_to_config(solver_type="heun" if order == 3 and scheduler.order_list[k] == 2 else "midpoint")
        y = torch.tensor(np.asarray(x)) if y is None else y
        out = network(y.numpy().astype(np.float64), np.arctan(sigmas[k]))
        y = scheduler.step(torch.tensor(out, dtype=torch.float32), t, y).prev_sample
        after += [y.numpy()] * (scheduler.order_list[k] == order or k == 6 * order)
    assert_same(ours(solver, chosen(kind), x, levels), np.stack(after))


@pytest.mark.parametrize("kind", VP)
def test_euler(kind):
    scheduler = diffusers.EulerDiscreteScheduler(**SD, prediction_type=kind, use_karras_sigmas=True)
    scheduler.set_timesteps(N)
    levels = levels_of(scheduler.sigmas, ve=True)
    x = start(levels)
    want = theirs(scheduler, x, np.arctan(scheduler.sigmas[:-1].numpy()))
    assert_same(ours(DDIM(), chosen(kind), x, levels), want)


@pytest.mark.parametrize("kind", NO_SAMPLE)
def test_euler_ancestral_is_ddim_with_eta_1(kind, monkeypatch):
    scheduler = diffusers.EulerAncestralDiscreteScheduler(**SD, prediction_type=kind)
    scheduler.set_timesteps(N)
    levels = levels_of(scheduler.sigmas, ve=True)
    x = start(levels)
    inject(monkeypatch, diffusers.schedulers.scheduling_euler_ancestral_discrete)
    want = theirs(scheduler, x, np.arctan(scheduler.sigmas[:-1].numpy()))
    assert_same(ours(DDIM(1.0), chosen(kind), x, levels), want)


@pytest.mark.parametrize("kind", NO_SAMPLE)
def test_heun(kind):
    scheduler = diffusers.HeunDiscreteScheduler(**SD, prediction_type=kind, use_karras_sigmas=True)
    scheduler.set_timesteps(N)
    # Every level but the ends stands there twice, for Heun's two looks.
    levels = levels_of(np.append(scheduler.sigmas[:1], scheduler.sigmas[1::2]), ve=True)
    x = start(levels)
    want = theirs(scheduler, x, np.arctan(scheduler.sigmas[:-1].numpy()))
    assert_same(ours(Heun(), chosen(kind), x, levels), np.append(want[1::2], want[-1:], axis=0))


EDM = [
    (diffusers.EDMEulerScheduler, {}, DDIM()),
    (diffusers.EDMDPMSolverMultistepScheduler, {"solver_order": 2}, DPMSolverPP()),
    (diffusers.EDMDPMSolverMultistepScheduler, {"solver_order": 3}, DPMSolverPP(3, curvature=0.5)),
    (
        diffusers.EDMDPMSolverMultistepScheduler,
        {"solver_order": 2, "algorithm_type": "sde-dpmsolver++"},
        DPMSolverPP(2, eta=1.0),
    ),
]


@pytest.mark.parametrize(("scheduler", "options", "solver"), EDM)
def test_edm(scheduler, options, solver, monkeypatch):
    scheduler = scheduler(**options)
    scheduler.set_timesteps(N)
    levels = levels_of(scheduler.sigmas, ve=True)
    x = start(levels)
    if solver != DDIM():
        inject(monkeypatch, diffusers.schedulers.scheduling_edm_dpmsolver_multistep)
    want = theirs(scheduler, x, np.arctan(scheduler.sigmas[:-1].numpy()))
    denoise = denoiser(predictions.EDM(0.5), paths.Sigma())
    assert_same(jax.jit(lambda x: trajectory(KEYS, x, levels, denoise, solver))(x), want)


def test_flow_match_euler(monkeypatch):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(N)
    sigmas = scheduler.sigmas.numpy()
    levels = Level(jnp.asarray(1 - sigmas), jnp.asarray(sigmas))
    x = start(levels)
    monkeypatch.setattr(scheduler, "scale_model_input", lambda x, t: x, raising=False)
    want = theirs(scheduler, x, np.arctan2(sigmas, 1 - sigmas)[:-1])
    denoise = denoiser(predictions.Flow(), paths.Linear())
    assert_same(jax.jit(lambda x: trajectory(KEYS, x, levels, denoise, DDIM()))(x), want)
