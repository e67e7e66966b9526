"""The classifier: the U-Net's own encoder, and what pools it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.networks.classifier import AttentionPool, Classifier
from jaxdiff.networks.unet import UNet

ENCODER = UNet(channels=8, channel_mults=(1, 1), blocks_per_level=1, attention_resolutions=(), middle_attention=False)
X = jax.random.normal(jax.random.key(1), (2, 4, 4, 2))
NOISE = jnp.array([3.0, 700.0])
NETS = {
    "attention": Classifier(ENCODER, 3, pool_head_channels=8),
    "mean": Classifier(ENCODER, 3, pool_head_channels=0),
}


@pytest.fixture(scope="module")
def initial(quick):
    return {name: quick(net.init)(jax.random.key(0), X, NOISE, {})["params"] for name, net in NETS.items()}


@pytest.mark.parametrize("name", NETS)
def test_classes_start_equal_and_answer_to_image_and_noise_level(name, initial, run, randomised):
    net = NETS[name]
    np.testing.assert_array_equal(run(net, initial[name], X, NOISE), jnp.zeros((2, 3)))
    params = randomised(initial[name])
    out = run(net, params, X, NOISE)
    assert out.dtype == jnp.float32 and jnp.abs(out[:, 0] - out[:, 1]).min() > 1e-3
    assert jnp.abs(out - run(net, params, X, NOISE[::-1])).max() > 1e-3
    assert jnp.abs(out - run(net, params, X[::-1], NOISE)).max() > 1e-3


def test_the_encoder_is_the_unets_own(initial, quick, randomised):
    whole = jax.eval_shape(ENCODER.init, jax.random.key(0), X, NOISE, {})["params"]
    part = initial["attention"]["encoder"]
    assert {name for name in whole if name not in part} == {
        *(f"decoder_{level}_{i}" for level in (0, 1) for i in (0, 1)),
        *("decoder_1_up", "norm_out", "conv_out"),
    }
    params = {n: randomised(part)[n] if n in part else jax.tree.map(jnp.zeros_like, whole[n]) for n in whole}

    @quick
    def both(params):
        _, seen = ENCODER.apply({"params": params}, X, NOISE, {}, capture_intermediates=True)
        alone = ENCODER.apply({"params": {n: params[n] for n in part}}, X, NOISE, {}, decode=False)
        return seen["intermediates"]["middle_1"]["__call__"][0], alone

    features, alone = both(params)
    np.testing.assert_allclose(alone, features, rtol=1e-5, atol=1e-5)
    assert jnp.std(alone) > 0.1


def test_attention_pooling_of_equal_keys_is_a_mean(quick, randomised):
    pool = AttentionPool(5, heads=2)
    x = X.reshape(2, 2, 2, 8)
    shapes = jax.eval_shape(pool.init, jax.random.key(0), x)["params"]
    params = randomised(jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes), 0.5)
    params["q"] = jax.tree.map(jnp.zeros_like, params["q"])

    @quick
    def both(params):
        values = x.reshape(2, 4, 8)
        values = jnp.concatenate([values.mean(1, keepdims=True), values], 1) + params["positions"]
        mean = values.mean(1) @ params["kv"]["kernel"][:, 8:] + params["kv"]["bias"][8:]
        return pool.apply({"params": params}, x), mean @ params["out"]["kernel"] + params["out"]["bias"]

    np.testing.assert_allclose(*both(params), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (Classifier(ENCODER, 1), "num_classes = 1 .*--network.num-classes"),
        (Classifier(ENCODER.clone(num_classes=3), 3), "--network.encoder.num-classes"),
        (Classifier(ENCODER, 3, pool_head_channels=5), "pool_head_channels = 5 .*--network.pool-head-channels"),
    ],
)
def test_what_does_not_fit_is_refused(net, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(net.init, jax.random.key(0), X, NOISE, {})
