"""Several conditions at once: AND, NOT, and what they are for normal data."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.core.predictions import V
from jaxdiff.core.types import Level
from jaxdiff.sampling import exact
from jaxdiff.sampling.guidance import beliefs_of, cfg, composed, guided, pair
from jaxdiff.sampling.sample import denoiser, image_keys, normal

KEYS = image_keys(0, jnp.arange(3))
X = normal(KEYS, (4, 4, 2))
AT = Level(jnp.float32(0.6), jnp.float32(0.8))
MEANS = jnp.array([-0.7, 0.2, 0.9, 0.0])
"""Of three classes, and of absent labels."""


def apply(params, x, cur, nxt, cond, key=None):
    """An exact network of normal data of standard deviation 0.5, told the class."""
    data = exact.Mixture(MEANS[cond["label"]][:, None, None, None, None], jnp.float32(0.5), jnp.ones(1))
    return exact.network(V(), exact.of_mixture(data))(params, x, cur, nxt, cond)


def told(label):
    return {"label": jnp.full(3, label)}


def belief(label):
    return denoiser(apply, {}, V(), told(label))(X, AT, AT)


def close(ours, x0, eps):
    np.testing.assert_allclose(ours.x0, x0, atol=1e-5)
    np.testing.assert_allclose(ours.eps, eps, atol=1e-5)


def test_beliefs_of_many_conditions_are_those_of_each():
    conds = [told(i) for i in (2, 0, 1)]
    for found, label in zip(beliefs_of(apply, {}, V(), conds)(X, AT, AT), (2, 0, 1), strict=True):
        close(found, *belief(label)[:2])


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_and_of_nothing_more_is_guidance(scale):
    plain = guided(pair(apply, {}, V(), told(1)), cfg(scale))(X, AT, AT)
    close(guided(composed(apply, {}, V(), told(1), ()), cfg(scale))(X, AT, AT), plain.x0, plain.eps)
    with_nothing = composed(apply, {}, V(), told(1), [(told(0), jnp.float32(0.0))])
    close(guided(with_nothing, cfg(scale))(X, AT, AT), plain.x0, plain.eps)


def test_not_of_itself_cancels():
    nothing = composed(apply, {}, V(), told(1), [(told(1), jnp.float32(-1.0))])
    close(guided(nothing, cfg(5.0))(X, AT, AT), *belief(-1)[:2])


def test_the_same_again_is_guidance_of_twice_the_scale():
    twice = composed(apply, {}, V(), told(1), [(told(1), jnp.float32(1.0))])
    want = guided(pair(apply, {}, V(), told(1)), cfg(2.0))(X, AT, AT)
    close(guided(twice, cfg(1.0))(X, AT, AT), want.x0, want.eps)


def test_and_multiplies_the_densities():
    # N(a) N(b) / N(0), of one variance, is the normal of mean a + b; the scores add up at every level.
    both = composed(apply, {}, V(), told(0), [(told(2), jnp.float32(1.0))])
    data = exact.Mixture((MEANS[0] + MEANS[2])[None], jnp.float32(0.5), jnp.ones(1))
    close(guided(both, cfg(1.0))(X, AT, AT), *exact.of_mixture(data)(X, AT, AT)[:2])


def test_a_negative_prompt_is_the_reference():
    both = composed(apply, {}, V(), told(0), [(told(2), jnp.float32(0.5))], told(1))
    m, other, ref = belief(0), belief(2), belief(1)
    close(
        guided(both, cfg(1.0))(X, AT, AT),
        m.x0 + 0.5 * (other.x0 - ref.x0),
        m.eps + 0.5 * (other.eps - ref.eps),
    )
