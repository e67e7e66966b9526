"""The variances of chains: their ends, and what is left of a picture after the last step."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.core.betas import Betas, CosineBetas, LinearBetas, ScaledLinearBetas, ZeroTerminal
from jaxdiff.core.paths import DiscreteVP


@pytest.mark.parametrize("betas", [LinearBetas(), ScaledLinearBetas(), CosineBetas(), ZeroTerminal()])
def test_variances_rise(betas):
    found = betas(1000)
    assert isinstance(betas, Betas) and found.shape == (1000,)
    assert np.all(np.diff(found[:-1]) >= 0) and found[0] > 0 and np.all(found < 1)


def test_square_roots_are_even():
    roots = np.sqrt(ScaledLinearBetas(0.01, 0.09)(5))
    np.testing.assert_allclose(roots, [0.1, 0.15, 0.2, 0.25, 0.3], rtol=1e-12)


@pytest.mark.parametrize("betas", [LinearBetas(), ScaledLinearBetas()])
def test_next_to_nothing_is_left_at_the_end(betas):
    moved = ZeroTerminal(betas)
    bar, before = np.cumprod(1 - moved(1000)), np.cumprod(1 - betas(1000))
    np.testing.assert_allclose(bar[0], before[0], rtol=1e-9)
    assert 0 < bar[-1] <= 1.001 * 2.0**-24
    # sqrt(alpha_bar) is moved along a line.
    a, b = np.sqrt(before[:-1]), np.sqrt(bar[:-1])
    np.testing.assert_allclose(b, np.polyval(np.polyfit(a, b, 1), a), atol=1e-7)
    assert 0 < float(DiscreteVP(1000, moved)(jnp.float32(1000)).alpha) < 2.5e-4
