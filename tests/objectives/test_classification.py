"""Cross-entropy at noise levels, held against two normals, whose classifier is known."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.stats import norm

from jaxdiff.core import paths, predictions, times
from jaxdiff.networks.apply import apply_fn, init_params
from jaxdiff.networks.classifier import Classifier
from jaxdiff.networks.unet import UNet
from jaxdiff.objectives.base import Batch, Objective
from jaxdiff.objectives.classification import Classification

MEAN, STD = 0.4, 0.5
OBJECTIVE = Classification(paths.Linear(), predictions.V(), times.Stratified(times.Uniform()))
KEY = jax.random.key(0)


def batch_of(n):
    label = jnp.arange(n, dtype=jnp.int32) % 2
    x0 = MEAN * (2 * label - 1)[:, None, None, None] + STD * jax.random.normal(jax.random.key(1), (n, 1, 2, 1))
    return Batch(x0, {"label": label}, jnp.arange(n, dtype=jnp.int32))


def exact(params, x, cur, nxt, cond, key=None):
    """The true log odds, times `params`; asserts that the label is not told."""
    assert cond == {}
    variance = jnp.square(cur.alpha * STD) + jnp.square(cur.sigma)
    odds = 2 * cur.alpha * MEAN * x.sum((1, 2, 3)) / variance
    return params * jnp.stack([-0.5 * odds, 0.5 * odds], axis=1)


def test_the_true_classifier_is_where_the_gradient_vanishes():
    batch = batch_of(20000)
    slope = jax.jit(jax.grad(lambda p: OBJECTIVE(exact, p, KEY, batch)[0]))
    too_bold, right, too_shy = (float(slope(jnp.float32(p))) for p in (1.5, 1.0, 0.6))
    assert too_bold > 0.03 and too_shy < -0.06 and abs(right) < 0.015


@partial(jax.jit, static_argnums=2)
def measured(batch, t, what):
    return what(exact, jnp.float32(1.0), KEY, batch, t)


def test_noise_levels_from_certain_to_chance():
    batch, n = batch_of(4000), 4000
    clean, half, noise = (float(measured(batch, jnp.full(n, t), OBJECTIVE.losses).mean()) for t in (0.0, 0.5, 1.0))
    assert clean < half - 0.05 < noise == pytest.approx(np.log(2), abs=1e-6)
    # Two pixels of mean +-m and variance V say the sign rightly with probability Phi(sqrt(2) m / sqrt(V)).
    hits = float(measured(batch, jnp.full(n, 0.5), OBJECTIVE.hits).mean())
    assert hits == pytest.approx(float(norm.cdf(2**0.5 * MEAN / (STD**2 + 1) ** 0.5)), abs=0.02)
    loss, metrics = jax.jit(lambda batch: OBJECTIVE(exact, jnp.float32(1.0), KEY, batch))(batch)
    assert clean < loss < noise and 0.5 < metrics["accuracy"] < 1


def test_noise_belongs_to_the_row_and_labels_are_needed():
    whole, t = batch_of(6), jnp.linspace(0.1, 0.9, 6)
    half = jax.tree.map(lambda a: a[3:], whole)
    losses, again = measured(whole, t, OBJECTIVE.losses), measured(half, t[3:], OBJECTIVE.losses)
    np.testing.assert_allclose(losses[3:], again, rtol=1e-5)
    with pytest.raises(ValueError, match="without labels"):
        measured(whole._replace(cond={}), t, OBJECTIVE.losses)
    assert isinstance(OBJECTIVE, Objective)


def test_a_small_network_learns_which_half_is_bright():
    encoder = UNet(channels=8, channel_mults=(1,), blocks_per_level=1, attention_resolutions=(), middle_attention=False)
    net = Classifier(encoder, 2, pool_head_channels=0)
    apply, rule = apply_fn(net, OBJECTIVE.prediction), optax.adam(0.01)
    ramp = jnp.linspace(-1, 1, 4)[None, :, None]

    def batch(key):
        label = jax.random.bernoulli(key, shape=(32,)).astype(jnp.int32)
        x0 = (2 * label - 1)[:, None, None, None] * jnp.broadcast_to(ramp, (4, 4, 1))
        return Batch(x0, {"label": label}, jnp.arange(32, dtype=jnp.int32))

    def step(state, key):
        params, memory = state
        loss, slope = jax.value_and_grad(lambda p: OBJECTIVE(apply, p, key, batch(key))[0])(params)
        change, memory = rule.update(slope, memory)
        return (optax.apply_updates(params, change), memory), loss

    @partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # runs once, on a few pixels
    def train(key):
        params = init_params(net, key, (4, 4, 1), {})
        (params, _), losses = jax.lax.scan(step, (params, rule.init(params)), jax.random.split(key, 80))
        levels = (OBJECTIVE.hits(apply, params, key, batch(key), jnp.full(32, t)) for t in (0.2, 1.0))
        return losses, *levels

    losses, seen, unseen = train(KEY)
    assert losses[0] == pytest.approx(np.log(2), abs=1e-5)
    assert losses[-20:].mean() < 0.5
    assert seen.mean() > 0.95 and 0.2 < unseen.mean() < 0.8
