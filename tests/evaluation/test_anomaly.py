"""Scores of known differences, and the simple methods on data whose answer is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.evaluation import anomaly
from jaxdiff.evaluation.image_quality import ssim


def test_scores_of_a_known_difference():
    x = jnp.zeros((2, 12, 12, 1))
    y = x.at[1, :6].set(0.5).at[1, 6:].set(-0.25)
    found = jax.jit(anomaly.scores)(x, y)
    np.testing.assert_allclose(found["mae"], [0, 0.375], atol=1e-7)
    np.testing.assert_allclose(found["mse"], [0, (0.25 + 0.0625) / 2], atol=1e-7)
    np.testing.assert_allclose(found["brighter"], [0, 0.125], atol=1e-7)
    np.testing.assert_allclose(found["darker"], [0, 0.25], atol=1e-7)
    np.testing.assert_allclose(found["ssim"], 1 - jax.jit(ssim)((x + 1) / 2, (y + 1) / 2), atol=1e-6)
    assert float(anomaly.difference(x, y)[1, 0, 0]) == 0.5
    assert "ssim" not in anomaly.scores(x[:, :8], y[:, :8])


@pytest.mark.parametrize("n", [30, 200], ids=["fewer than pixels", "more than pixels"])
def test_principal_components_leave_what_is_outside_their_plane(n):
    """Data in a plane of 3 directions: all of it is kept, and of others what is orthogonal to the plane is left."""
    rng = np.random.default_rng(0)
    frame = np.linalg.qr(rng.normal(size=(48, 4)))[0].T
    train = (0.1 + rng.normal(size=(n, 3)) @ frame[:3]).reshape(n, 4, 4, 3).astype(np.float32)
    basis = anomaly.principal(train, 1.0)
    assert len(basis.components) == 3
    np.testing.assert_allclose(basis.components @ basis.components.T, np.eye(3), atol=1e-5)
    np.testing.assert_allclose(anomaly.rebuilt(train, basis), train, atol=1e-4)
    off = train[:5] + 0.7 * frame[3].reshape(4, 4, 3).astype(np.float32)
    outside = np.sum((off - anomaly.rebuilt(off, basis)) ** 2, axis=(1, 2, 3))
    np.testing.assert_allclose(outside, 0.49, rtol=1e-3)


def test_as_few_components_as_hold_the_share():
    scales = np.array([4.0, 2, 1, 1])
    z = np.random.default_rng(0).normal(size=(400, 4))
    flat = np.linalg.qr(z - z.mean(0))[0] * scales * 20  # columns of no mean, of no correlation
    train = flat.reshape(400, 2, 2, 1).astype(np.float32)
    shares = np.cumsum(scales**2) / np.sum(scales**2)
    for k, share in enumerate(shares[:3], 1):
        assert len(anomaly.principal(train, share - 0.01).components) == k


def test_baselines_know_the_training_set():
    rng = np.random.default_rng(0)
    train = rng.normal(0, 0.1, (60, 4, 4, 1)).astype(np.float32)
    images = np.concatenate([train[:3], train[3:6] + 1])
    found, components = anomaly.baselines(images, train, 0.9)
    assert 0 < components < 16 and set(found) >= {"pca/mae", "mean/mse", "nearest/mse"}
    assert np.all(found["nearest/mse"][:3] == 0) and np.all(found["nearest/mse"][3:] > 0.5)
    np.testing.assert_allclose(found["mean/mse"][3:], np.mean((images[3:] - train.mean(0)) ** 2, (1, 2, 3)), rtol=1e-4)
    with pytest.raises(ValueError, match="--variance"):
        anomaly.principal(train, 0.0)
