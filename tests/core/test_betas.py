"""The variances of chains: their ends, and what is left of a picture after the last step."""

import numpy as np
import pytest

from jaxdiff.core.betas import Betas, CosineBetas, LinearBetas, ScaledLinearBetas, ZeroTerminal
from jaxdiff.core.paths import DiscreteVP


@pytest.mark.parametrize("betas", [LinearBetas(), ScaledLinearBetas(), CosineBetas(), ZeroTerminal()])
def test_variances_rise(betas):
    found = betas(1000)
    assert isinstance(betas, Betas) and found.shape == (1000,)
    assert np.all(np.diff(found) >= 0) and 0 < found[0] and found[-1] < 1


def test_square_roots_are_even():
    roots = np.sqrt(ScaledLinearBetas(0.01, 0.09)(5))
    np.testing.assert_allclose(roots, [0.1, 0.15, 0.2, 0.25, 0.3], rtol=1e-12)


@pytest.mark.parametrize("betas", [LinearBetas(), ScaledLinearBetas()])
def test_next_to_nothing_is_left_at_the_end(betas):
    moved = ZeroTerminal(betas)
    bar, before = np.cumprod(1 - moved(1000)), np.cumprod(1 - betas(1000))
    np.testing.assert_allclose(bar[[0, -1]], [before[0], 2.0**-24], rtol=1e-6)
    # sqrt(alpha_bar) is moved along a line.
    a, b = np.sqrt(before[:-1]), np.sqrt(bar[:-1])
    np.testing.assert_allclose(b, np.polyval(np.polyfit(a, b, 1), a), atol=1e-9)
    assert float(DiscreteVP(1000, moved)(np.float32(1000)).alpha) == pytest.approx(2.0**-12, rel=1e-4)
