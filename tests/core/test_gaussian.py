"""The 2x2 system of the (x0, eps) plane."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.core import gaussian
from jaxdiff.core.predictions import EDM, X0, Eps, Flow, Score, V
from jaxdiff.core.types import Level

SHAPE = (5, 2, 3, 1)


def normals(*seeds):
    return [jax.random.normal(jax.random.key(seed), SHAPE) for seed in seeds]


def levels(b=5):
    return Level(jnp.linspace(0.9, 0.1, b), jnp.linspace(0.3, 1.4, b))


def per_image(a):
    return np.asarray(a, float)[:, None, None, None]


def test_diffuse_is_the_definition():
    (x0, eps), level = normals(0, 1), levels()
    expected = per_image(level.alpha) * np.asarray(x0, float) + per_image(level.sigma) * np.asarray(eps, float)
    np.testing.assert_allclose(gaussian.diffuse(level, x0, eps), expected, rtol=1e-5, atol=1e-6)


def test_one_level_for_all_is_that_level_for_each():
    x0, eps, out = normals(0, 1, 2)
    one, same = Level(jnp.array(0.6), jnp.array(0.8)), Level(jnp.full(5, 0.6), jnp.full(5, 0.8))
    np.testing.assert_array_equal(gaussian.diffuse(one, x0, eps), gaussian.diffuse(same, x0, eps))
    for a, b in zip(gaussian.estimate(V(), one, x0, out)[:2], gaussian.estimate(V(), same, x0, out)[:2], strict=True):
        np.testing.assert_array_equal(a, b)


def test_snr_and_its_logarithm():
    level = levels()
    expected = (np.asarray(level.alpha, float) / np.asarray(level.sigma, float)) ** 2
    np.testing.assert_allclose(gaussian.snr(level), expected, rtol=1e-6)
    np.testing.assert_allclose(gaussian.logsnr(level), np.log(expected), rtol=1e-5, atol=1e-6)
    # (alpha / sigma)**2 overflows float32 here, its logarithm does not.
    assert np.isfinite(gaussian.logsnr(Level(jnp.array(1.0), jnp.array(1e-30))))


def test_snr_at_the_ends():
    ends = Level(jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0]))
    assert gaussian.snr(ends).tolist() == [np.inf, 0]
    assert gaussian.logsnr(ends).tolist() == [np.inf, -np.inf]


@pytest.mark.parametrize("prediction", [Eps(), X0(), V(), Flow(), Score(), EDM()], ids=repr)
def test_estimate_solves_the_system(prediction):
    # x and out are any two images, not made from an x0 and an eps.
    (x, out), level = normals(3, 4), levels()
    x0, eps, _ = gaussian.estimate(prediction, level, x, out)
    np.testing.assert_allclose(gaussian.diffuse(level, x0, eps), x, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(gaussian.target(prediction, level, x0, eps), out, rtol=1e-4, atol=1e-5)


def test_estimates_of_one_part_keep_x():
    (x, known), level = normals(5, 6), levels()
    for part, believed in enumerate((gaussian.from_x0(level, x, known), gaussian.from_eps(level, x, known))):
        np.testing.assert_array_equal(believed[part], known)
        np.testing.assert_allclose(gaussian.diffuse(level, *believed[:2]), x, rtol=1e-4, atol=1e-5)


def test_det_is_where_an_x0_error_goes():
    """With x fixed, an x0 error d moves the output by -(det / sigma) d."""
    (x, x0), level, d = normals(7, 8), levels(), 0.1
    for prediction in Eps(), X0(), V(), Flow(), Score(), EDM():
        near, far = (
            gaussian.target(prediction, level, *gaussian.from_x0(level, x, guess)[:2]) for guess in (x0, x0 + d)
        )
        slope = per_image(gaussian.det(prediction, level)) / per_image(level.sigma)
        np.testing.assert_allclose(far - near, np.broadcast_to(-slope * d, SHAPE), rtol=2e-4, atol=2e-5)


NOISE, CLEAN, MIDDLE = (0.0, 1.0), (1.0, 0.0), (0.6, 0.8)


@pytest.mark.parametrize(
    "prediction, refused",
    [
        (Eps(), {NOISE}),
        (X0(), {CLEAN}),
        (V(), set()),
        (Flow(), set()),
        (Score(), {NOISE, CLEAN}),
        # EDM's row is solvable everywhere, but its network is fed log(sigma / alpha).
        (EDM(), {NOISE, CLEAN}),
        (EDM(time=V().time), set()),
    ],
    ids=repr,
)
def test_check_solvable_refuses_exactly_these(prediction, refused):
    for at in NOISE, CLEAN, MIDDLE:
        level = Level(*(jnp.array([part, other]) for part, other in zip(at, MIDDLE, strict=True)))
        if at not in refused:
            gaussian.check_solvable(prediction, level)
            continue
        with pytest.raises(ValueError) as error:
            gaussian.check_solvable(prediction, level)
        message = str(error.value)
        assert f"{type(prediction).__name__} prediction" in message and "\n" not in message
        assert f"alpha = {at[0]:g}, sigma = {at[1]:g}" in message
        assert ("--grid.start" in message) == (at == NOISE)


def test_check_solvable_of_one_level():
    with pytest.raises(ValueError, match="alpha = 0"):
        gaussian.check_solvable(Eps(), Level(jnp.array(0.0), jnp.array(1.0)))
