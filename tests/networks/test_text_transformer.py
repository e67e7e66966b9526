"""The text encoder that learns with the network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.core.cond import absent
from jaxdiff.networks.text_transformer import TextTransformer, read_text
from jaxdiff.networks.unet import UNet

NET = TextTransformer(vocabulary=20, length=6, width=8, depth=2, heads=2)
IDS = jnp.array([[3, 4, 5, -1, -1], [7, 7, 1, 2, 0], [-1, -1, -1, -1, -1]])


@pytest.fixture(scope="module")
def params(randomised):
    return randomised(NET.init(jax.random.key(0), IDS)["params"], 0.3)


def test_what_is_no_token_says_nothing(params):
    tokens, mask, pooled = NET.apply({"params": params}, IDS)
    np.testing.assert_array_equal(mask, IDS >= 0)
    assert not np.any(np.where(mask[..., None] > 0, 0, tokens)) and not np.any(pooled[2])
    np.testing.assert_allclose(pooled[0], tokens[0, :3].mean(0), rtol=1e-5, atol=1e-6)
    shorter, _, _ = NET.apply({"params": params}, IDS[:1, :3])
    np.testing.assert_allclose(tokens[:1, :3], shorter, rtol=1e-4, atol=1e-5)


def test_the_order_of_the_tokens_counts(params):
    _, _, pooled = NET.apply({"params": params}, jnp.array([[3, 4, 5], [5, 4, 3]]))
    assert np.abs(pooled[0] - pooled[1]).max() > 1e-3


def test_a_network_that_reads_has_the_same_parameters_without_a_text(randomised):
    net = UNet(
        channels=8, channel_mults=(1,), blocks_per_level=1, attention_resolutions=(), transformer_depths=(1,), heads=2,
        middle_attention=False, text_width=8, text_pooled=8, text_encoder=NET,
    )  # fmt: skip
    x, noise, cond = jnp.ones((3, 4, 4, 3)), jnp.ones(3), {"text_ids": IDS}
    shapes = [jax.eval_shape(net.init, jax.random.key(0), x, noise, c)["params"] for c in ({}, cond)]
    assert shapes[0] == shapes[1]
    params = randomised(jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes[0]), 0.3)
    told, untold, nothing = (
        jax.jit(net.apply)({"params": params}, x, noise, c)
        for c in (cond, absent(cond), {"text_ids": IDS[:, :1] * 0 - 1})
    )
    np.testing.assert_allclose(untold, nothing, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(told[2], untold[2], rtol=1e-4, atol=1e-5)
    assert np.abs(told[:2] - untold[:2]).max() > 1e-3


def test_without_an_encoder_the_condition_stays():
    assert read_text(None, {"label": IDS}, 3) == {"label": IDS}
