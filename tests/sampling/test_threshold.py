"""Thresholds: in range, no change within the range, and x = alpha x0 + sigma eps as before."""

import jax.numpy as jnp
import pytest

from jaxdiff.core import gaussian
from jaxdiff.core.types import Level
from jaxdiff.sampling.threshold import dynamic, static

AT = Level(jnp.float32(0.6), jnp.float32(0.8))
X = jnp.linspace(-2, 2, 3 * 8 * 8).reshape(3, 8, 8, 1)


def believes(x0):
    return lambda x, cur, nxt: gaussian.from_x0(cur, x, x0)


# Three images: within the range, a little and far outside.
X0 = X[:1] / 2 * jnp.array([0.4, 1.5, 6.0])[:, None, None, None] * jnp.where(jnp.arange(64) % 2, 1, -1).reshape(8, 8, 1)
X0 = X0 / jnp.abs(X0[:1]).max() * 0.9


@pytest.mark.parametrize("transform", [static(), static(-0.5, 0.25), dynamic(), dynamic(0.8), dynamic(1.0)])
def test_thresholded_estimates_stay_in_the_plane(transform):
    x0, eps = transform(believes(X0))(X, AT, AT)
    assert jnp.allclose(AT.alpha * x0 + AT.sigma * eps, X, atol=1e-5)
    assert jnp.abs(x0).max() <= 1 and jnp.abs(X0).max() > 1


@pytest.mark.parametrize("transform", [static(), dynamic()])
def test_within_the_range_nothing_changes(transform):
    x0, eps = transform(believes(X0))(X, AT, AT)
    want = believes(X0)(X, AT, AT)
    assert jnp.array_equal(x0[0], X0[0]) and jnp.array_equal(eps[0], want.eps[0])
    assert not jnp.allclose(x0[1:], X0[1:])


def test_static_clips():
    x0 = static(-0.5, 0.25)(believes(X0))(X, AT, AT).x0
    assert x0.min() == -0.5 and x0.max() == 0.25
    assert jnp.array_equal(jnp.where((X0 > -0.5) & (X0 < 0.25), x0, 0), jnp.where((X0 > -0.5) & (X0 < 0.25), X0, 0))


def test_dynamic_rescales_by_the_images_own_quantile():
    # All of an image below its largest value: x0 / max |x0|, which keeps the contrast that clipping loses.
    x0 = dynamic(1.0)(believes(X0))(X, AT, AT).x0
    assert jnp.allclose(x0[1:], X0[1:] / jnp.abs(X0[1:]).max(axis=(1, 2, 3), keepdims=True), atol=1e-6)
    # A share 1 - quantile of the pixels saturates, image by image.
    x0 = dynamic(0.75)(believes(X0))(X, AT, AT).x0
    saturated = (jnp.abs(x0) >= 1 - 1e-6).mean(axis=(1, 2, 3))
    assert saturated[0] == 0 and jnp.all(jnp.abs(saturated[1:] - 0.25) < 0.03)
    # Other images do not matter.
    alone = dynamic(0.75)(lambda x, cur, nxt: gaussian.from_x0(cur, x, X0[1:2]))(X[1:2], AT, AT).x0
    assert jnp.allclose(alone, x0[1:2])


@pytest.mark.parametrize("quantile", [0.0, 1.1])
def test_bad_quantile_is_refused(quantile):
    with pytest.raises(ValueError, match="quantile"):
        dynamic(quantile)
