"""Fréchet distances: closed forms, SciPy's matrix square root, singular covariances, the limit of infinite n."""

import numpy as np
import pytest

from jaxdiff.evaluation.frechet import extrapolated, factor, frechet, frechet_from
from jaxdiff.evaluation.moments import Gaussian, gaussian, moments

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _the_same_draws_in_any_order():
    RNG.bit_generator.state = np.random.default_rng(0).bit_generator.state


def wishart(d, n, scale=1.0):
    """A mean, and a covariance of rank min(d, n) with eigenvalues over several decades."""
    f = RNG.normal(size=(d, n)) * np.logspace(0, -3, n)
    return Gaussian(scale * RNG.normal(size=d), scale**2 * (f @ f.T))


def rotation(d):
    return np.linalg.qr(RNG.normal(size=(d, d)))[0]


def both(a, b):
    return [frechet(a, b), frechet_from(factor(b.covariance), a, b)]


def test_commuting_covariances():
    # |mu gap|^2 + sum (s - t)^2 of the standard deviations along the common axes.
    s, t = np.array([1.0, 2.0, 0.5, 0.0]), np.array([3.0, 0.0, 0.5, 2.0])
    gap = np.array([1.0, 0.0, -2.0, 0.5])
    q = rotation(4)
    a, b = Gaussian(gap, q @ np.diag(s**2) @ q.T), Gaussian(np.zeros(4), q @ np.diag(t**2) @ q.T)
    assert np.allclose(both(a, b), gap @ gap + np.sum((s - t) ** 2), rtol=1e-8)


def test_scaled_set():
    x = RNG.normal(size=(50, 8))
    a, b = gaussian(moments(x)), gaussian(moments(3 * x + 1))
    want = np.sum((2 * a.mean + 1) ** 2) + 4 * np.trace(a.covariance)
    assert np.allclose(both(a, b), want, rtol=1e-8)


@pytest.mark.parametrize("d, n", [(6, 20), (40, 40), (40, 8)])
def test_a_set_has_no_distance_from_itself(d, n):
    a = wishart(d, n, 10.0)
    assert frechet(a, a) < 1e-9 and 0 <= both(a, a)[1] < 1e-4


def test_points():
    a, b = (Gaussian(m, np.zeros((3, 3))) for m in (np.array([1.0, 2, 3]), np.zeros(3)))
    assert both(a, b) == [14.0, 14.0]


@pytest.mark.parametrize("d", [5, 64])
def test_scipys_square_root(d):
    linalg = pytest.importorskip("scipy.linalg", reason="needs the extra test")
    a, b = wishart(d, 2 * d), wishart(d, 3 * d, 2.0)
    cross = np.trace(linalg.sqrtm(a.covariance @ b.covariance)).real
    want = np.sum((a.mean - b.mean) ** 2) + np.trace(a.covariance) + np.trace(b.covariance) - 2 * cross
    assert np.allclose(both(a, b), want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("n, m", [(10, 200), (10, 15), (200, 30)])
def test_fewer_features_than_dimensions(n, m):
    # tr (S T)^(1/2) of sample covariances is the sum of the singular values of X Y^T, over sqrt((n-1) (m-1)).
    d = 60
    x, y = RNG.normal(size=(n, d)), RNG.normal(size=(m, d)) * np.linspace(0.1, 2, d)
    x, y = x - x.mean(0), y - y.mean(0)
    cross = np.linalg.svd(x @ y.T, compute_uv=False).sum() / np.sqrt((n - 1) * (m - 1))
    want = np.sum(x**2) / (n - 1) + np.sum(y**2) / (m - 1) - 2 * cross
    a, b = gaussian(moments(x)), gaussian(moments(y))
    assert abs(frechet(a, b) - want) < 1e-9 and abs(both(a, b)[1] - want) < 1e-5


def test_rotation_and_exchange_change_nothing():
    a, b, q = wishart(12, 30), wishart(12, 5), rotation(12)
    turned = [Gaussian(q @ g.mean + 7, q @ g.covariance @ q.T) for g in (a, b)]
    assert np.allclose([frechet(*turned), frechet(b, a)], frechet(a, b), rtol=1e-9)


def test_the_factor_gives_the_covariance_and_its_rank():
    g = wishart(12, 5)
    f = factor(g.covariance)
    assert f.shape == (12, 5) and np.allclose(f @ f.T, g.covariance, atol=1e-12)


def test_the_bias_of_few_features_is_extrapolated_away():
    d, n = 16, 3000
    reference = Gaussian(np.zeros(d), np.eye(d))
    sets = RNG.normal(size=(6, n, d))
    biased = np.mean([frechet(gaussian(moments(x)), reference) for x in sets])
    # Of the mean d / n, of the covariance d (d + 1) / (4 n).
    assert np.isclose(biased, (d + d * (d + 1) / 4) / n, rtol=0.2)
    limits = [extrapolated(x, reference) for x in sets]
    assert abs(np.mean(limits)) < 0.3 * biased
    # A true distance stays, and the subsets are counted.
    assert np.isclose(extrapolated(sets[0] + 1, reference), d, rtol=0.02)
    assert extrapolated(sets[0], reference) == limits[0] != extrapolated(sets[0], reference, seed=1)


def test_what_cannot_be_compared_is_refused():
    a = wishart(4, 9)
    with pytest.raises(ValueError, match="4 and of 5 numbers"):
        frechet(a, wishart(5, 9))
    with pytest.raises(ValueError, match="eigenvalue -1"):
        frechet(a, Gaussian(a.mean, np.diag([1.0, 1, 1, -1])))
    with pytest.raises(ValueError, match="19 features"):
        extrapolated(np.zeros((19, 4)), a)
