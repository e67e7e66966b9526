"""The learned weight of the loss: where it is least, and that it changes nothing else."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiff.core import paths, predictions, times, weights
from jaxdiff.core.magnitudes import on_sphere
from jaxdiff.objectives.base import Batch
from jaxdiff.objectives.denoising import Denoising
from jaxdiff.objectives.uncertainty import init_params, log_uncertainty

S = 0.5
OBJECTIVE = Denoising(
    paths.Sigma(80.0),
    predictions.EDM(S),
    times.LogNormal(-0.4, 1.0),
    weights.EDMWeight(S),
    weight_of=predictions.X0(),
    uncertainty=128,
)


def nothing(params, x, cur, nxt, cond, key=None):
    """A network that says nothing: the error of EDM's output, whose variance is one, is one at every level."""
    return jnp.zeros_like(x)


def batch(n):
    x0 = S * jax.random.normal(jax.random.key(0), (n, 8, 8, 1))
    return Batch(x0, {}, jnp.arange(n, dtype=jnp.int32))


@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_it_learns_the_logarithm_of_the_error(scale):
    """Of a network that is off by scale sqrt(1 + s^2 / sigma^2) times the noise."""
    objective = Denoising(OBJECTIVE.path, predictions.Eps(), OBJECTIVE.times, uncertainty=128)

    def apply(params, x, cur, nxt, cond, key=None):
        level = cur.sigma[:, None, None, None]
        noise = (x - examples.x0) / level
        return noise * (1 - scale * jnp.sqrt(1 + (S / level) ** 2))

    examples = batch(256)
    rule = optax.adam(optax.exponential_decay(0.3, 100, 0.3))
    params = {"uncertainty": init_params(jax.random.key(1), 128)}

    @jax.jit
    def step(params, state, key):
        grads = jax.grad(lambda p: objective(apply, p, key, examples)[0])(params)
        updates, state = rule.update(grads, state)
        return on_sphere(optax.apply_updates(params, updates)), state

    state = rule.init(params)
    for i in range(300):
        params, state = step(params, state, jax.random.key(i + 2))
    sigma = jnp.exp(-0.4 + jnp.linspace(-1.3, 1.3, 9))
    found = log_uncertainty(params["uncertainty"], OBJECTIVE.path(sigma))
    np.testing.assert_allclose(found, 2 * jnp.log(scale) + jnp.log1p((S / sigma) ** 2), atol=0.15)
    assert float(jnp.square(params["uncertainty"]["kernel"]).mean()) == pytest.approx(1, abs=1e-3)


def test_the_loss_is_the_error_by_its_weight():
    params = {"uncertainty": init_params(jax.random.key(1), 128)}
    examples, key = batch(64), jax.random.key(5)
    alone = dataclasses.replace(OBJECTIVE, weight=weights.One(), weight_of=None, uncertainty=0)
    plain, none = jax.jit(lambda: alone(nothing, {}, key, examples))()
    weighted = jax.jit(jax.value_and_grad(lambda p: OBJECTIVE(nothing, p, key, examples), has_aux=True))
    (loss, metrics), _ = weighted(params)
    assert none == {} and float(metrics["error"]) == pytest.approx(float(plain), rel=1e-5)  # EDM's weight is 1 here
    # Without weights u is 0: the loss is the error, and the gradient says where the errors are larger than 1.
    (value, _), grads = weighted(jax.tree.map(jnp.zeros_like, params))
    assert float(value) == pytest.approx(float(plain), rel=1e-5)
    assert loss != value and bool(jnp.any(grads["uncertainty"]["kernel"] != 0))
    losses = jax.eval_shape(lambda: OBJECTIVE.losses(nothing, {}, key, examples, jnp.full(64, 0.5)))
    assert losses.shape == (64,)
    ends = log_uncertainty(params["uncertainty"], paths.Linear()(jnp.array([0.0, 1.0])))
    assert bool(jnp.isfinite(ends).all())
    with pytest.raises(ValueError, match="--uncertainty"):
        dataclasses.replace(OBJECTIVE, uncertainty=-1)
