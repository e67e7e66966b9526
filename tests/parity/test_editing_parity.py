"""Editing against diffusers, step by step: inpainting, RePaint, DDIM inversion, and where image to image starts.

What differs, and how it is met here:

- The inpainting pipelines give the picture one noise, that of the start, in all steps; here each step's is fresh.

- RePaintScheduler rises level by level, and training step by training step; `RePaint` rises over all of them at once,
  which has the same law. Noise can be compared where a rise is one step: a jump of one, and as many steps as the
  chain has. It gives the inside and the outside of the mask one noise; ours are two.
- The inversion pipelines ask the network about x at the level where a step ends and read its answer at the level where
  it begins; here both are the level where it begins. From the clean level, where a network is not asked here, their
  first step asks at it, so the comparison starts behind it.
- Image to image takes int(n * strength) steps, in floating point: 28 of 50 at 0.58, where `tail` takes 29, and none
  where that is 0, where it takes one.
"""

import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra parity")
diffusers = pytest.importorskip("diffusers", reason="needs the extra parity")

from jaxdiff.core import gaussian, grids, paths, predictions  # noqa: E402
from jaxdiff.core.types import Level  # noqa: E402
from jaxdiff.sampling.ddim import DDIM  # noqa: E402
from jaxdiff.sampling.editing import keep  # noqa: E402
from jaxdiff.sampling.editing.inversion import Inverse  # noqa: E402
from jaxdiff.sampling.editing.keep import KEPT, Keep, outside  # noqa: E402
from jaxdiff.sampling.editing.repaint import places, rewound  # noqa: E402
from jaxdiff.sampling.editing.task import last_steps  # noqa: E402
from jaxdiff.sampling.restart import Restart  # noqa: E402
from jaxdiff.sampling.sample import fold, image_keys, normal, normal_like, trajectory  # noqa: E402

KEYS = image_keys(0, jnp.arange(2))
SHAPE = (2, 4, 4, 3)
IMAGE = jnp.clip(normal(image_keys(1, jnp.arange(2)), SHAPE[1:]), -1, 1)
MASK = jnp.zeros((*SHAPE[:-1], 1)).at[:, 1:3, 2:].set(1.0)
PREDICTIONS = {"epsilon": predictions.Eps(), "sample": predictions.X0(), "v_prediction": predictions.V()}


def network(x, angle, np=np):
    return 0.8 * np.tanh(x + 0.5 * angle) - 0.3 * np.cos(angle) * x + 0.1


def denoiser(prediction):
    def denoise(x, cur, nxt):
        return gaussian.estimate(prediction, cur, x, network(x, jnp.arctan2(cur.sigma, cur.alpha), jnp))

    return denoise


def torched(a):
    return torch.tensor(np.asarray(a))


def level_of(bars):
    bars = np.asarray(bars, np.float64)
    return Level(*(jnp.asarray(np.sqrt(v), jnp.float32) for v in (bars, 1 - bars)))


def test_repaint(monkeypatch):
    n, times = 6, 3
    scheduler = diffusers.RePaintScheduler(num_train_timesteps=n, beta_end=0.5, eta=1.0, clip_sample=False)
    scheduler.set_timesteps(n, jump_length=1, jump_n_sample=times)
    bars = scheduler.alphas_cumprod.double().numpy()
    levels = rewound(level_of(np.append(bars[::-1], 1.0)), 1, times)
    x = levels.sigma[0] * normal(KEYS, SHAPE[1:])

    step = iter(range(1, 999))

    def draw(*args, **kwargs):
        number = next(step)
        keys, rises = fold(KEYS, number), levels.sigma[number] > levels.sigma[number - 1]
        outer = normal_like(keys if rises else fold(keys, KEPT), x)
        return torched(jnp.where(MASK > 0.5, normal_like(keys, x), outer))

    monkeypatch.setattr(diffusers.schedulers.scheduling_repaint, "randn_tensor", draw)
    y, last, after = torched(x), int(scheduler.timesteps[0]) + 1, []
    for t in scheduler.timesteps.tolist():
        if t < last:
            out = network(y.numpy(), np.arccos(np.sqrt(bars[t])))
            y = scheduler.step(torched(out), t, y, torched(IMAGE), 1 - torched(MASK)).prev_sample
        else:
            y = scheduler.undo_step(y, last)
        last = t
        after.append(y.numpy())

    keeps = Keep(Restart(DDIM(1.0)), IMAGE, outside(MASK))
    ours = jax.jit(lambda x: trajectory(KEYS, x, levels, denoiser(predictions.Eps()), keeps))(x)
    np.testing.assert_allclose(ours, np.stack(after), atol=2e-4)


@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_replacement(kind, eta, monkeypatch):
    """The loop of StableDiffusionInpaintPipeline with a network that is not shown the mask."""
    scheduler = diffusers.DDIMScheduler(prediction_type=kind, clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(10)
    steps = scheduler.timesteps.tolist()
    bars = scheduler.alphas_cumprod.double().numpy()
    noise = normal(image_keys(2, jnp.arange(2)), SHAPE[1:])
    monkeypatch.setattr(keep, "normal_like", lambda keys, x: noise)  # one noise in all steps, as there
    y, after = scheduler.add_noise(torched(IMAGE), torched(noise), scheduler.timesteps[:1]), []
    x = jnp.asarray(y.numpy())
    for i, t in enumerate(steps):
        out = network(y.numpy(), np.arccos(np.sqrt(bars[t])))
        fresh = torched(normal_like(fold(KEYS, i + 1), x))
        y = scheduler.step(torched(out), t, y, eta=eta, variance_noise=fresh if eta else None).prev_sample
        there = torched(IMAGE)
        if i < len(steps) - 1:
            there = scheduler.add_noise(there, torched(noise), torch.tensor([steps[i + 1]]))
        y = (1 - torched(MASK)) * there + torched(MASK) * y
        after.append(y.numpy())
    levels = level_of(np.append(bars[steps], 1.0))
    keeps = Keep(DDIM(eta), IMAGE, outside(MASK))
    ours = jax.jit(lambda x: trajectory(KEYS, x, levels, denoiser(PREDICTIONS[kind]), keeps))(x)
    np.testing.assert_allclose(ours, np.stack(after), rtol=1e-4, atol=1e-4 * np.abs(after).max())


@pytest.mark.parametrize(("n", "jump", "times"), [(20, 10, 10), (23, 4, 3), (10, 1, 2), (5, 7, 3)])
def test_the_schedule_of_repaint(n, jump, times):
    scheduler = diffusers.RePaintScheduler(num_train_timesteps=n)
    scheduler.set_timesteps(n, jump_length=jump, jump_n_sample=times)
    # Their list has the step from which each fall starts, and each step of a rise; ours the levels in between.
    visited = [n, *scheduler.timesteps.tolist()]
    at = [n - 1]
    for last, t in itertools.pairwise(visited):
        at.append(t - 1 if t < last else last)
    falls = [at[0]] + [b for a, b, c in zip(at[:-1], at[1:], [*at[2:], -2], strict=True) if not a < b < c]
    assert [n - 1 - t for t in falls] == places(n, jump, times).tolist()


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_ddim_inversion(kind):
    scheduler = diffusers.DDIMInverseScheduler(prediction_type=kind, clip_sample=False, timestep_spacing="leading")
    scheduler.set_timesteps(10)
    steps = scheduler.timesteps.tolist()
    bars = scheduler.alphas_cumprod.double().numpy()[steps]
    x = 0.9 * IMAGE + 0.1
    y, after = torched(x), []
    for here, t in enumerate(steps[1:]):
        out = network(y.numpy(), np.arccos(np.sqrt(bars[here])))
        y = scheduler.step(torched(out), t, y).prev_sample
        after.append(y.numpy())
    denoise = denoiser(PREDICTIONS[kind])
    ours = jax.jit(lambda x: trajectory(KEYS, x, level_of(bars), denoise, Inverse()))(x)
    np.testing.assert_allclose(ours, np.stack(after), rtol=1e-4, atol=1e-4 * np.abs(after).max())


@pytest.mark.parametrize("strength", [1.0, 0.75, 0.58, 0.1, 0.01])
def test_where_image_to_image_starts(strength):
    n = 50
    scheduler = diffusers.DDIMScheduler(timestep_spacing="leading")
    scheduler.set_timesteps(n)
    rule = diffusers.StableDiffusionImg2ImgPipeline.get_timesteps
    kept, count = rule(types.SimpleNamespace(scheduler=scheduler), n, strength, "cpu")
    levels = last_steps(grids.Leading(1000)(paths.DiscreteVP(1000), n), strength)
    ours = levels.alpha.shape[0] - 1
    assert ours - count == {0.58: 1, 0.01: 1}.get(strength, 0)
    if count and strength != 0.58:
        bars = scheduler.alphas_cumprod[kept].double().numpy()
        np.testing.assert_allclose(levels.alpha[:-1], np.sqrt(bars), rtol=1e-4)
