"""Classifier guidance on a mixture of normals, whose classifier and conditional denoisers are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.core import gaussian, paths
from jaxdiff.core.predictions import V
from jaxdiff.core.types import Estimate, Level
from jaxdiff.sampling.classifier_guidance import classifier_guided, log_probs

STD = 0.4
SHAPE = (2, 2, 1)
MEANS = jnp.stack([jnp.full(SHAPE, 0.5), jnp.linspace(-0.6, 0.3, 4).reshape(SHAPE), jnp.full(SHAPE, -0.5)])
WEIGHTS = jnp.array([0.5, 0.3, 0.2])
LABEL = jnp.array([0, 1, 2, 1], jnp.int32)
X = jnp.linspace(-1, 1, 16).reshape(4, *SHAPE)
LEVELS = [Level(jnp.float32(a), jnp.float32(s)) for a, s in ((0.6, 0.8), (0.7, 0.3), (1.0, 3.0), (0.02, 0.98))]


def of_class(x, cur):
    """The beliefs of every class, [k, b, h, w, c]."""
    alpha, sigma = (gaussian.expand(a, x) for a in cur)
    gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
    x0 = jnp.stack([mean + gain * (x - alpha * mean) for mean in MEANS])
    return x0, (x - alpha * x0) / sigma


def exact_log_probs(x, cur):
    alpha, sigma = (gaussian.expand(a, x) for a in cur)
    gap = jnp.square(x[:, None] - gaussian.expand(cur.alpha, x[:, None]) * MEANS)
    variance = (alpha**2 * STD**2 + sigma**2).reshape(-1, 1)
    return jax.nn.log_softmax(jnp.log(WEIGHTS) - 0.5 * gap.sum((2, 3, 4)) / variance)


def any_class(x, cur, nxt):
    x0, eps = of_class(x, cur)
    p = jnp.exp(exact_log_probs(x, cur)).T[..., None, None, None]
    return Estimate(jnp.sum(p * x0, 0), jnp.sum(p * eps, 0), 0.1 * x)


def guided(scale, level, label=LABEL, x=X):
    return classifier_guided(exact_log_probs, label, scale)(any_class)(x, level, level)


@pytest.mark.parametrize("level", LEVELS)
def test_scale_1_is_the_conditional_denoiser(level):
    x0, eps = (belief[LABEL, jnp.arange(4)] for belief in of_class(X, level))
    got = guided(1.0, level)
    np.testing.assert_allclose(got.x0, x0, atol=2e-4)
    np.testing.assert_allclose(got.eps, eps, atol=1e-4)
    assert jnp.abs(got.x0 - any_class(X, level, level).x0).max() > 0.1


@pytest.mark.parametrize("level", LEVELS)
def test_the_plane_is_kept_at_any_scale_and_0_is_none(level):
    plain, pushed = (guided(scale, level) for scale in (0.0, 4.0))
    np.testing.assert_allclose(plain.x0, any_class(X, level, level).x0, atol=1e-6)
    np.testing.assert_allclose(gaussian.diffuse(level, pushed.x0, pushed.eps), X, atol=1e-5)
    assert jnp.array_equal(pushed.v, 0.1 * X)


def test_no_label_and_no_signal_are_no_push():
    plain = any_class(X, LEVELS[0], LEVELS[0])
    some = guided(2.0, LEVELS[0], jnp.array([0, -1, -1, 1], jnp.int32))
    same = jnp.abs(some.x0 - plain.x0).max((1, 2, 3)) == 0
    assert same.tolist() == [False, True, True, False]
    noise = Level(jnp.float32(0.0), jnp.float32(1.0))
    np.testing.assert_array_equal(guided(2.0, noise).x0, any_class(X, noise, noise).x0)


def test_scales_are_traced_and_may_differ():
    run = jax.jit(lambda scale: guided(scale, LEVELS[0]))
    together = run(jnp.array([0.0, 1.0, 2.0, 7.0]))
    for i, scale in enumerate((0.0, 1.0, 2.0, 7.0)):
        np.testing.assert_allclose(together.x0[i], guided(scale, LEVELS[0]).x0[i], atol=1e-5)


@pytest.mark.parametrize("level", LEVELS)
def test_a_network_is_asked_on_its_own_path(level):
    path = paths.Cosine()

    def apply(params, x, cur, nxt, cond, key=None):
        assert cond == {} and key is None and cur.alpha.shape == (4,)
        np.testing.assert_allclose(cur.alpha**2 + cur.sigma**2, 1, rtol=1e-5)
        return exact_log_probs(x, cur) + 5.0  # logits

    got = log_probs(apply, {}, V(), path)(X, level)
    np.testing.assert_allclose(got, exact_log_probs(X, level), atol=1e-4)
    np.testing.assert_allclose(
        log_probs(apply, {}, V(), path)(X, Level(*(jnp.full(4, a) for a in level))), got, atol=1e-4
    )
