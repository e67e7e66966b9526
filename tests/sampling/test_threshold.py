"""Thresholds: in range, no change within the range, and x = alpha x0 + sigma eps as before."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.core import gaussian
from jaxdiff.core.types import Level
from jaxdiff.sampling.threshold import dynamic, static

AT = Level(jnp.float32(0.6), jnp.float32(0.8))
X = np.linspace(-2, 2, 3 * 8 * 8, dtype=np.float32).reshape(3, 8, 8, 1)

# Three images: within the range, a little and far outside.
_SIGNS = np.where(np.arange(64) % 2, 1, -1).reshape(8, 8, 1)
X0 = np.float32([0.9, 3.4, 13.0])[:, None, None, None] * np.abs(X[:1] / 2) * _SIGNS.astype(np.float32)


def believes(x0):
    return lambda x, cur, nxt: gaussian.from_x0(cur, x, x0)


def after(transform, x0=None, x=X):
    """The transformed estimate, as numpy arrays."""
    denoise = believes(jnp.asarray(X0 if x0 is None else x0, jnp.float32))
    return jax.tree.map(np.asarray, jax.jit(transform(denoise))(jnp.asarray(x), AT, AT))


@pytest.mark.parametrize("transform", [static(), static(-0.5, 0.25), dynamic(), dynamic(0.8), dynamic(1.0)])
def test_thresholded_estimates_stay_in_the_plane(transform):
    x0, eps, _ = after(transform)
    assert np.allclose(AT.alpha * x0 + AT.sigma * eps, X, atol=1e-5)
    assert np.abs(x0).max() <= 1 and np.abs(X0).max() > 1


@pytest.mark.parametrize("transform", [static(), dynamic()])
def test_within_the_range_nothing_changes(transform):
    x0, eps, _ = after(transform)
    want = after(lambda denoise: denoise)
    assert np.array_equal(x0[0], X0[0]) and np.array_equal(eps[0], want.eps[0])
    assert not np.allclose(x0[1:], X0[1:])


def test_static_clips():
    x0 = after(static(-0.5, 0.25)).x0
    assert x0.min() == -0.5 and x0.max() == 0.25
    assert np.array_equal(np.where((X0 > -0.5) & (X0 < 0.25), x0, 0), np.where((X0 > -0.5) & (X0 < 0.25), X0, 0))


def test_dynamic_rescales_by_the_images_own_quantile():
    # All of an image below its largest value: x0 / max |x0|, which keeps the contrast that clipping loses.
    x0 = after(dynamic(1.0)).x0
    assert np.allclose(x0[1:], X0[1:] / np.abs(X0[1:]).max(axis=(1, 2, 3), keepdims=True), atol=1e-6)
    # A share 1 - quantile of the pixels saturates, image by image.
    x0 = after(dynamic(0.75)).x0
    saturated = (np.abs(x0) >= 1 - 1e-6).mean(axis=(1, 2, 3))
    assert saturated[0] == 0 and np.all(np.abs(saturated[1:] - 0.25) < 0.03)
    # Other images do not matter.
    alone = after(dynamic(0.75), X0[1:2], X[1:2]).x0
    assert np.allclose(alone, x0[1:2])


@pytest.mark.parametrize("quantile", [0.0, 1.1])
def test_bad_quantile_is_refused(quantile):
    with pytest.raises(ValueError, match="quantile"):
        dynamic(quantile)
