"""Line integrals and filtered back-projection against scikit-image's, which rotates the picture for each view."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.names import OPERATORS, value_of

transform = pytest.importorskip("skimage.transform")

N, VIEWS = 36, 30
ANGLES = 180 * np.arange(VIEWS) / VIEWS


@pytest.fixture(scope="module")
def phantom():
    """Shepp and Logan's head, at N x N pixels."""
    data = pytest.importorskip("skimage.data")
    return transform.resize(data.shepp_logan_phantom(), (N, N), anti_aliasing=True).astype(np.float32)


@pytest.fixture(scope="module")
def operator():
    return value_of(f"ct(views={VIEWS})", OPERATORS, "--operator").on((N, N, 1), {})


def test_line_integrals(phantom, operator):
    want = transform.radon(phantom, theta=ANGLES, circle=False)  # [detectors, views]
    found = N * np.asarray(operator.forward(jnp.asarray(phantom)[None, ..., None]))[0, ..., 0].T
    assert found.shape == want.shape
    np.testing.assert_allclose(found, want, atol=2e-3 * want.max())


def test_filtered_back_projection(phantom, operator):
    sinogram = transform.radon(phantom, theta=ANGLES, circle=False)
    want = transform.iradon(sinogram, theta=ANGLES, circle=False, filter_name="ramp", output_size=N)
    y = jnp.asarray(sinogram.T / N, jnp.float32)[None, ..., None]
    found = np.asarray(operator.pinv(y))[0, ..., 0]
    np.testing.assert_allclose(found, want, atol=0.02)
    error = np.sqrt(np.mean((found - phantom) ** 2))
    assert error < 0.12 and error == pytest.approx(np.sqrt(np.mean((want - phantom) ** 2)), rel=0.02)
