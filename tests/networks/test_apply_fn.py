import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.core.predictions import EDM
from jaxdiff.core.types import Level
from jaxdiff.networks.apply import apply_fn, init_params
from jaxdiff.networks.unet import UNet

X = jax.random.normal(jax.random.key(1), (3, 4, 4, 2))
ONES = Level(jnp.ones(()), jnp.ones(()))


class Probe(nn.Module):
    """Shows what a network is given: ``gain * x + noise + label``, plus 1000 in training."""

    @nn.compact
    def __call__(self, x, noise, cond, train=False):
        gain = self.param("gain", nn.initializers.ones, ())
        out = gain * x + (noise + cond["label"])[:, None, None, None]
        return out + 1000 * nn.Dropout(0.5, deterministic=not train)(jnp.ones_like(x)) * train


def test_the_network_sees_the_prediction_scales_and_the_condition():
    prediction = EDM(0.5)
    apply = apply_fn(Probe(), prediction)
    params, cond = {"gain": jnp.array(2.0)}, {"label": jnp.array([1, 2, 3])}
    cur = Level(jnp.ones(3), jnp.array([0.1, 1.0, 10.0]))
    out = apply(params, X, cur, ONES, cond)
    for i, sigma in enumerate([0.1, 1.0, 10.0]):
        # EDM, Table 1: c_in = 1 / sqrt(sigma^2 + sigma_data^2), c_noise = log(sigma) / 4.
        expected = 2 * X[i] / np.sqrt(sigma**2 + 0.25) + np.log(sigma) / 4 + i + 1
        np.testing.assert_allclose(out[i], expected, rtol=1e-5, atol=1e-5)


def test_one_level_for_all_is_that_level_for_each_and_next_is_not_used():
    apply = apply_fn(Probe(), EDM(0.5))
    params, cond = {"gain": jnp.array(2.0)}, {"label": jnp.zeros(3, jnp.int32)}
    one, each = Level(jnp.array(0.6), jnp.array(0.8)), Level(jnp.full(3, 0.6), jnp.full(3, 0.8))
    out = apply(params, X, one, ONES, cond)
    np.testing.assert_array_equal(out, apply(params, X, each, each, cond))


def test_a_key_means_training():
    apply = apply_fn(Probe(), EDM(0.5))
    params, cond = {"gain": jnp.array(1.0)}, {"label": jnp.zeros(3, jnp.int32)}
    assert jnp.abs(apply(params, X, ONES, ONES, cond)).max() < 100
    trained = apply(params, X, ONES, ONES, cond, jax.random.key(0))
    assert jnp.abs(trained).max() > 1000  # kept ones are doubled
    assert jnp.abs(trained - apply(params, X, ONES, ONES, cond, jax.random.key(1))).max() > 1000


def test_initial_parameters_are_float32_and_follow_from_the_key(quick):
    net = UNet(channels=8, channel_mults=(1,), blocks_per_level=1, num_classes=2, dtype="bfloat16")
    cond = {"label": jnp.zeros(5, jnp.int32)}

    @quick
    def init(key):
        return init_params(net, key, (8, 8, 3), cond)

    params, again = init(jax.random.key(0)), init(jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    jax.tree.map(np.testing.assert_array_equal, params, again)
    kernel = params["conv_in"]["kernel"]
    limit = np.sqrt(6 / (9 * 3 + 9 * 8))  # Glorot's uniform law
    assert 0.8 * limit < jnp.abs(kernel).max() <= limit
    other = init(jax.random.key(1))["conv_in"]["kernel"]
    assert jnp.abs(kernel - other).max() > 0.1 * limit


@pytest.mark.parametrize("labels", [jnp.array([-1, -1, -1]), None], ids=["null", "missing"])
def test_a_condition_may_be_absent(labels, quick):
    net = UNet(channels=8, channel_mults=(1,), blocks_per_level=1, num_classes=2, attention_resolutions=())
    params = quick(lambda: init_params(net, jax.random.key(0), (4, 4, 2), {}))()
    cond = {} if labels is None else {"label": labels}
    apply = apply_fn(net, EDM(0.5))
    out = quick(lambda p: apply(p, X, ONES, ONES, cond))(params)
    assert out.shape == X.shape and out.dtype == jnp.float32
