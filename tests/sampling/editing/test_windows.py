"""MultiDiffusion: one window is the network itself, a torus has no edge, and the mean keeps to the plane."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.core import gaussian, grids, paths
from jaxdiff.core.types import Level
from jaxdiff.sampling.ddim import DDIM
from jaxdiff.sampling.editing.windows import Windows
from jaxdiff.sampling.sample import image_keys, normal, sample

KEYS = image_keys(0, jnp.arange(2))
AT = Level(jnp.float32(0.6), jnp.float32(0.8))
LEVELS = grids.UniformT()(paths.Linear(), 4)


def test_one_window_is_the_network(wild):
    x = normal(KEYS, (8, 8, 2))
    for ours, plain in zip(Windows(8)(wild(0.2))(x, AT, AT)[:2], wild(0.2)(x, AT, AT)[:2], strict=True):
        np.testing.assert_allclose(ours, plain, atol=1e-6)
    assert Windows(8).count(8, 8) == 1


@pytest.mark.parametrize(("torus", "shape"), [(False, (8, 20)), (True, (19, 12))])
def test_every_pixel_is_the_mean_of_the_windows_over_it(torus, shape, wild):
    windows, denoise = Windows(8, 0.5, torus), wild(0.2)
    x = normal(KEYS, (*shape, 1))
    x0, eps, _ = jax.jit(windows(denoise))(x, AT, AT)
    np.testing.assert_allclose(gaussian.diffuse(AT, x0, eps), x, atol=1e-5)
    total, count, ask = np.zeros(x.shape), np.zeros(x.shape), jax.jit(lambda part: denoise(part, AT, AT).x0)
    for rows in windows.places(shape[0]):
        for columns in windows.places(shape[1]):
            total[:, rows[:, None], columns] += ask(x[:, rows[:, None], columns])
            count[:, rows[:, None], columns] += 1
    assert count.min() >= 1
    np.testing.assert_allclose(x0, total / count, atol=1e-5)


def test_windows_of_a_denoiser_of_single_pixels_change_nothing(closed_form):
    denoise = closed_form.denoiser(closed_form.Mixture(jnp.array([-0.6, 0.5]), jnp.float32(0.3), jnp.array([0.4, 0.6])))
    x = normal(KEYS, (12, 20, 1))
    plain = sample(KEYS, x, LEVELS, denoise, DDIM())
    for windows in (Windows(8, 0.25), Windows(8, 0.25, torus=True)):
        np.testing.assert_allclose(sample(KEYS, x, LEVELS, windows(denoise), DDIM()), plain, atol=1e-5)


def test_on_a_torus_rolling_the_noise_rolls_the_picture(wild):
    windows = Windows(8, 0.5, torus=True)
    assert windows.places(16)[:, 0].tolist() == [0, 4, 8, 12]
    run = jax.jit(lambda x, denoise=windows(wild(0.2)): sample(KEYS, x, LEVELS, denoise, DDIM()))
    x = normal(KEYS, (16, 24, 1))
    made = run(x)
    for shift in ((4, 0), (8, 12), (0, 20)):
        rolled = run(jnp.roll(x, shift, axis=(1, 2)))
        np.testing.assert_allclose(rolled, jnp.roll(made, shift, axis=(1, 2)), atol=1e-5)
    flat = jax.jit(lambda x: sample(KEYS, x, LEVELS, Windows(8)(wild(0.2)), DDIM()))(x)
    assert jnp.abs(flat - made).max() > 0.01  # windows end at the edges there


def test_overlap_and_sizes():
    starts = Windows(8, 0.5).places(20)[:, 0]
    assert starts[0] == 0 and starts[-1] == 12 and np.all(np.diff(starts) <= 4)
    assert Windows(8, 0.0).count(16, 24) == 6 and Windows(8, 0.99).count(8, 9) == 2
    with pytest.raises(ValueError, match="too small for windows of 8"):
        Windows(8).places(7)
    for overlap in (-0.1, 1.0):
        with pytest.raises(ValueError, match="--overlap"):
            Windows(8, overlap)
