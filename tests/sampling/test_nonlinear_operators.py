"""JPEG and phase retrieval: against Pillow's files, and against what the moduli cannot tell."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxdiff.names import OPERATORS, value_of
from jaxdiff.sampling.inverse import jpeg


def picture(size, channels, seed=0):
    """Smooth colours with some grain, uint8."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0, 255, (4, 4, channels)).astype(np.uint8)
    layers = [Image.fromarray(coarse[..., c]).resize((size, size), Image.Resampling.BICUBIC) for c in range(channels)]
    grain = rng.normal(0, 8, (size, size, channels))
    return np.clip(np.stack([np.asarray(a) for a in layers], -1) + grain, 0, 255).astype(np.uint8)


def saved(image, quality, subsampling):
    """(what Pillow's file decodes to, its tables)."""
    held = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(
        held, "JPEG", quality=quality, subsampling=subsampling
    )
    with Image.open(held) as decoded:
        return np.atleast_3d(np.asarray(decoded)), decoded.quantization


def coded(image, text):
    operator = value_of(text, OPERATORS, "--operator").on(image.shape, {})
    x = jnp.asarray(image / 127.5 - 1, jnp.float32)[None]
    return (np.asarray(jax.jit(operator.forward)(x), np.float64)[0] + 1) * 127.5


@pytest.mark.parametrize("quality", [1, 10, 49, 50, 75, 95, 100])
def test_tables_are_those_of_files(quality):
    _, tables = saved(picture(16, 3), quality, 0)
    for number, base in ((0, jpeg.LUMINANCE), (1, jpeg.CHROMINANCE)):
        np.testing.assert_array_equal(np.array(tables[number]).reshape(8, 8), jpeg.table(base, quality))


@pytest.mark.parametrize("quality, channels, height, width", [(10, 1, 32, 32), (50, 3, 32, 32), (90, 3, 21, 13)])
def test_pictures_are_decoded_as_from_files(quality, channels, height, width):
    image = picture(32, channels)[:height, :width]
    want, _ = saved(image, quality, 0)
    gap = np.abs(coded(image, f"jpeg(quality={quality}, subsample=False)") - want)
    # Files' colours are whole numbers before and after the transform, so that some coefficients are rounded the other
    # way: a part of what is lost.
    assert np.mean(gap) < 0.35 * np.mean(np.abs(image.astype(float) - want))


def test_halved_chroma_is_nearly_that_of_files():
    image = picture(32, 3)
    want, _ = saved(image, 50, 2)
    whole, _ = saved(image, 50, 0)
    found = coded(image, "jpeg(quality=50)")
    # Files smooth the chroma between its pixels.
    assert np.mean(np.abs(found - want)) < 0.5 * np.mean(np.abs(image - want))
    assert np.any(np.abs(whole.astype(float) - want) > 4)


def test_compression_is_idempotent_and_has_a_gradient():
    image = picture(16, 1)
    operator = value_of("jpeg(quality=20)", OPERATORS, "--operator").on((16, 16, 1), {})
    forward = jax.jit(operator.forward)
    y = forward(jnp.asarray(image / 127.5 - 1, jnp.float32)[None])
    assert np.mean(np.abs(np.asarray(forward(y) - y))) < 0.01
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(y * operator.forward(x))))(0.5 * y)
    # Straight through: the transforms cancel, and the gradient is what the measurement is multiplied by.
    np.testing.assert_allclose(gradient, y, atol=1e-3)


def test_moduli_do_not_see_shifts_and_mirrors():
    operator = value_of("phase", OPERATORS, "--operator").on((8, 8, 1), {})
    x = -np.ones((1, 8, 8, 1), np.float32)
    x[0, 1:4, 2:6, 0] = np.random.default_rng(0).uniform(-1, 1, (3, 4))
    forward = jax.jit(operator.forward)
    y = np.asarray(forward(jnp.asarray(x)))
    for other in (np.roll(x, (2, 1), (1, 2)), x[:, ::-1, ::-1]):
        np.testing.assert_allclose(forward(jnp.asarray(other)), y, atol=1e-4)
    assert np.abs(np.asarray(forward(jnp.asarray(x[:, ::-1]))) - y).max() > 0.1
    # Parseval: twice the intensities' energy is kept.
    np.testing.assert_allclose(np.sum(y**2), np.sum((x + 1) ** 2), rtol=1e-4)
    assert np.isfinite(jax.jit(jax.grad(lambda x: jnp.sum(operator.forward(x))))(-jnp.ones((1, 8, 8, 1)))).all()
