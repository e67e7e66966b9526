"""LPIPS is a distance that grows as pictures part."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.networks import lpips
from jaxdiff.networks.lpips import LPIPS, VGG16, AlexNet
from jaxdiff.pretrained.lpips import open_lpips


@pytest.fixture(scope="module")
def alexnet(models):
    distance = open_lpips("lpips-alexnet", models("lpips_alexnet.safetensors"))
    return lambda x, y: np.asarray(distance.apply(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)))


@pytest.fixture(scope="module")
def pictures():
    """Smooth shapes with edges, in [-1, 1]."""
    u, v = np.meshgrid(np.linspace(-1, 1, 48), np.linspace(-1, 1, 48))
    return np.stack([np.stack([np.sign(np.sin(k * u + c) + np.cos(3 * v - k)) for c in range(3)], -1) for k in (3, 5)])


def test_identical_pictures_are_at_zero_and_order_does_not_matter(alexnet, pictures):
    x, y = pictures, pictures[::-1]
    # Not exactly: the two halves of a batch may be added up in different orders.
    np.testing.assert_allclose(alexnet(x, x), [0, 0], atol=1e-10)
    np.testing.assert_allclose(alexnet(x, y), alexnet(y, x), rtol=1e-5)
    assert (alexnet(x, y) > 0.05).all()


def test_it_grows_with_noise_and_with_blur(alexnet, pictures):
    noise = np.random.default_rng(0).normal(size=pictures.shape)
    noisy = [alexnet(pictures, pictures + s * noise) for s in (0.02, 0.1, 0.4)]
    blurred, found = pictures, []
    for _ in range(3):
        for _ in range(4):
            blurred = sum(np.roll(blurred, s, axis) for axis in (1, 2) for s in (-1, 1)) / 4
        found.append(alexnet(pictures, blurred))
    for distances in (noisy, found):
        assert (np.diff(np.stack(distances), axis=0) > 0).all()


def test_a_shift_of_a_pixel_matters_less_than_its_squared_error_says(alexnet, pictures):
    shifted = np.roll(pictures, 1, axis=2)
    noise = np.random.default_rng(0).normal(size=pictures.shape)
    noisy = pictures + noise * np.sqrt(np.square(shifted - pictures).mean((1, 2, 3), keepdims=True))
    assert (alexnet(pictures, shifted) < 0.5 * alexnet(pictures, noisy)).all()


def test_grey_pictures_are_grey_rgb(alexnet, pictures):
    grey = pictures[..., :1]
    np.testing.assert_allclose(
        alexnet(grey, grey[::-1]), alexnet(np.repeat(grey, 3, -1), np.repeat(grey[::-1], 3, -1)), rtol=1e-5
    )


def test_gradients_are_finite_where_no_channel_is_on():
    # The length of a zero vector has no derivative.
    grad = jax.grad(lambda x: lpips._unit(x).sum())(jnp.zeros((1, 2, 2, 3)).at[0, 0, 0].set(1.0))
    assert bool(jnp.isfinite(grad).all())


@pytest.mark.parametrize("backbone, size", [(AlexNet(), 31), (VGG16(), 16)])
def test_pictures_that_are_too_small_are_refused(backbone, size):
    net = LPIPS(backbone)

    def out(size):
        x = jax.ShapeDtypeStruct((1, size, 40, 3), jnp.float32)
        return jax.eval_shape(net.init_with_output, jax.random.key(0), x, x)[0]

    assert out(size).shape == (1,)
    with pytest.raises(ValueError, match=f"{size - 1}x40 pixels are too small.*{size} pixels"):
        out(size - 1)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"lpips-squeeze.*lpips-alexnet, lpips-vgg16"):
        open_lpips("lpips-squeeze", None)
