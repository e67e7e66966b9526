"""What the tests of editing share: exact denoisers of correlated pixels, and one that is of no data at all."""

import jax.numpy as jnp
import pytest

from jaxdiff.core import gaussian


@pytest.fixture(scope="session")
def correlated():
    """covariance -> the exact denoiser of a normal of mean 0 over all pixels of a picture."""

    def of(covariance):
        eye = jnp.eye(covariance.shape[0])

        def denoise(x, cur, nxt):
            alpha, sigma = cur
            flat = x.reshape(x.shape[0], -1)
            gain = alpha * covariance @ jnp.linalg.inv(alpha**2 * covariance + sigma**2 * eye)
            eps_gain = sigma * jnp.linalg.inv(alpha**2 * covariance + sigma**2 * eye)
            return gaussian.Estimate((flat @ gain.T).reshape(x.shape), (flat @ eps_gain.T).reshape(x.shape))

        return denoise

    return of


@pytest.fixture(scope="session")
def wild():
    """shift -> a smooth denoiser that no data have, and in which pixels look at their neighbours."""

    def of(shift):
        def denoise(x, cur, nxt):
            angle = jnp.arctan2(cur.sigma, cur.alpha)
            beside = 0.5 * (jnp.roll(x, 1, axis=1) + jnp.roll(x, 1, axis=2))
            x0 = 0.8 * jnp.tanh(x + 0.5 * beside + shift * jnp.cos(angle)) - 0.2 * jnp.sin(angle) * beside
            return gaussian.from_x0(cur, x, x0)

        return denoise

    return of
