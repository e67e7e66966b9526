"""Rays through a picture: their lengths, their matrix, and filtered back-projection."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.names import OPERATORS, value_of
from jaxdiff.sampling.inverse.radon_rays import Rays, matrix, project


@pytest.mark.parametrize("rays", [Rays(9, 4, 180.0), Rays(8, 5, 360.0, 1 / 16)])
def test_rays_are_their_matrix(rays):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, rays.n, rays.n, 2)), jnp.float32)
    want = np.einsum("rp,bpc->brc", matrix(rays), np.asarray(x).reshape(2, -1, 2))
    found = np.asarray(jax.jit(lambda x: project(rays, x))(x))
    np.testing.assert_allclose(found.reshape(2, -1, 2), want, atol=1e-5)


def test_rays_measure_lengths():
    # A disc of radius a has the integral 2 sqrt(a^2 - t^2) at every angle, and all views the same total.
    n, a = 48, 15
    rows, columns = np.mgrid[:n, :n] - n // 2
    disc = (np.hypot(rows, columns) <= a).astype(np.float32)
    for rays in (Rays(n, 6, 180.0), Rays(n, 6, 360.0, 1 / (2 * n))):
        p = np.asarray(project(rays, jnp.asarray(disc)[None, ..., None]))[0, ..., 0] * n
        t = np.arange(rays.detectors) - rays.detectors // 2
        distance = t / np.sqrt(1 + (t * rays.nearness) ** 2)
        want = 2 * np.sqrt(np.maximum(a**2 - distance**2, 0))
        assert np.abs(p - want).mean() < 0.5 and np.abs(p[:, np.abs(distance) > a + 2]).max() < 1e-4
        if rays.nearness == 0:
            np.testing.assert_allclose(p.sum(1), disc.sum(), rtol=0.01)


@pytest.mark.parametrize("text", ["ct(views=90)", "ct-fan(views=120)", "ct-fan(views=120, distance=1.2)"])
def test_filtered_back_projection_finds_the_picture(text):
    n = 40
    rows, columns = np.mgrid[:n, :n] - n // 2
    picture = np.exp(-(rows**2 + (columns - 6) ** 2) / 40) + 0.5 * np.exp(-((rows + 8) ** 2 + columns**2) / 20)
    x = jnp.asarray(picture, jnp.float32)[None, ..., None]
    operator = value_of(text, OPERATORS, "--operator").on((n, n, 1), {})
    error = np.asarray(jax.jit(lambda x: operator.pinv(operator.forward(x)))(x) - x)
    assert np.sqrt(np.mean(error**2)) < 0.03 * np.sqrt(np.mean(picture**2))


def test_many_and_few_rays_are_projected_alike(monkeypatch):
    spec = value_of("ct(views=6)", OPERATORS, "--operator")
    few = spec.on((8, 8, 1), {})
    monkeypatch.setattr("jaxdiff.sampling.inverse.radon.MOST_WORK", 0)
    many = spec.on((8, 8, 1), {})
    assert few.spectral is not None and many.spectral is None
    rng = np.random.default_rng(0)
    x, y = (jnp.asarray(rng.normal(size=(2, *shape)), jnp.float32) for shape in (few.shape, few.measured))
    lam = jnp.float32(0.1)
    found = [jax.jit(lambda x, y, o=o: (o.forward(x), o.adjoint(y), o.solve(y, lam)))(x, y) for o in (few, many)]
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
