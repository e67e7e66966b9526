"""Resizing is what its name says, to float32's last digits."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxdiff.networks.resize import bicubic, tf1_bilinear

RNG = np.random.default_rng(0)


def pictures(height, width):
    return RNG.integers(0, 256, (2, height, width, 3)).astype(np.float32)


@pytest.mark.parametrize("height, width, size", [(32, 32, 47), (64, 50, 24), (9, 70, 31), (24, 24, 24), (299, 40, 64)])
def test_bicubic_is_pillows(height, width, size):
    x = pictures(height, width)
    out = np.asarray(bicubic(jnp.asarray(x), size))
    for image, found in zip(x, out, strict=True):
        for channel in range(3):
            # Float pixels, which Pillow neither rounds nor clips.
            picture = Image.fromarray(np.ascontiguousarray(image[..., channel])).resize(
                (size, size), Image.Resampling.BICUBIC
            )
            np.testing.assert_allclose(found[..., channel], np.asarray(picture), atol=1e-2, rtol=0)


def test_tf1_bilinear_doubles_by_means_of_neighbours_and_holds_the_last_pixel():
    x = pictures(5, 5)
    out = np.asarray(tf1_bilinear(jnp.asarray(x), 10))
    np.testing.assert_allclose(out[:, ::2, ::2], x)
    np.testing.assert_allclose(out[:, 1:-1:2, ::2], (x[:, :-1] + x[:, 1:]) / 2)
    np.testing.assert_allclose(out[:, -1], out[:, -2])
    # No half-pixel centre: flipping does not commute with it.
    flipped = np.asarray(tf1_bilinear(jnp.asarray(x[:, ::-1]), 10))[:, ::-1]
    assert np.abs(flipped - out).max() > 1


def test_tf1_bilinear_aliases_and_bicubic_does_not():
    # Stripes of one pixel: every third pixel of them is no mean.
    x = np.zeros((1, 30, 30, 1), np.float32)
    x[:, ::2] = 255
    aliased, clean = (np.asarray(resize(jnp.asarray(x), 10)) for resize in (tf1_bilinear, bicubic))
    assert set(np.unique(aliased)) == {0.0, 255.0}
    assert np.abs(clean[:, 1:-1] - 127.5).max() < 30


def test_tf1_bilinear_is_exact_on_a_ramp():
    ramp = np.broadcast_to(np.arange(64, dtype=np.float32)[:, None, None], (1, 64, 64, 1))
    out = np.asarray(tf1_bilinear(jnp.asarray(ramp), 299))[0, :, 0, 0]
    np.testing.assert_allclose(out, np.minimum(np.arange(299) * 64 / 299, 63), rtol=1e-5)
