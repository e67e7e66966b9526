"""Attention whose map is the identity: what perturbed-attention guidance compares with."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.core.predictions import V
from jaxdiff.core.types import Level
from jaxdiff.networks.apply import apply_fn, identity_attention
from jaxdiff.networks.blocks import Attention
from jaxdiff.networks.dit import DiT
from jaxdiff.networks.layers import PERTURBED, GroupNorm
from jaxdiff.networks.unet import UNet

UNET = UNet(channels=8, channel_mults=(1,), blocks_per_level=1, attention_resolutions=(4,), patch=2)
DIT = DiT(patch=4, width=8, depth=3, heads=2, mlp_ratio=1)
X = jax.random.normal(jax.random.key(1), (2, 8, 8, 2))
AT = Level(jnp.float32(0.6), jnp.float32(0.8))


@pytest.fixture(scope="module")
def params(randomised):
    """Random ones; shapes alone are asked of the networks."""

    def draw(net):
        shapes = jax.eval_shape(net.init, jax.random.key(0), X, jnp.ones(2), {})["params"]
        return randomised(jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes), 0.3)

    return {net: draw(net) for net in (UNET, DIT)}


@pytest.fixture(scope="module")
def ask(quick):
    """(net, perturbed) -> (params, x) -> output, compiled."""

    def ask(net, perturbed):
        apply = apply_fn(net, V(), perturbed)
        return quick(lambda params, x: apply(params, x, AT, AT, {}))

    return ask


def test_no_attention_at_all_leaves_every_token_of_a_transformer_to_itself(params, ask):
    other = X.at[:, :4, :4].add(1.0)  # the first token
    for layers, apart in (((0, 1, 2), True), ((0, 2), False), ((1,), False)):
        run = ask(DIT, identity_attention(DIT, layers))
        changed = jnp.abs(run(params[DIT], X) - run(params[DIT], other))
        assert changed[:, :4, :4].max() > 0.1
        rest = changed.at[:, :4, :4].set(0.0).max()
        assert rest == 0 if apart else rest > 1e-3


def test_queries_and_keys_matter_only_where_attention_is_left(params, quick):
    apply = apply_fn(DIT, V(), identity_attention(DIT))  # the middle one
    slopes = quick(jax.grad(lambda p: jnp.sum(apply(p, X, AT, AT, {}) ** 2)))(params[DIT])["blocks"]["qkv"]["kernel"]
    queries, keys, values = jnp.abs(slopes).reshape(3, 8, 3, 8).max((1, 3)).T
    assert (queries > 0).tolist() == (keys > 0).tolist() == [True, False, True]
    assert (values > 0).all()


@pytest.mark.parametrize("layers", [(), ("encoder_0_0_attention", "decoder_0_1_attention")], ids=["middle", "chosen"])
def test_in_a_unet_the_output_is_that_of_the_values(layers, params, ask):
    # Keys of zero attend to all alike; values of zero make both kinds of attention the same.
    names = layers or ("middle_attention",)
    p = params[UNET]
    plain, perturbed = ask(UNET, None), ask(UNET, identity_attention(UNET, layers))
    assert jnp.abs(plain(p, X) - perturbed(p, X)).max() > 1e-2

    def with_columns(start, stop, value):
        new = dict(p)
        for name in names:
            qkv = jax.tree.map(lambda a: a.at[..., start:stop].set(value), p[name]["qkv"])
            new[name] = {**p[name], "qkv": qkv}
        return new

    np.testing.assert_array_equal(perturbed(with_columns(0, 16, 0.7), X), perturbed(p, X))
    assert jnp.abs(plain(with_columns(0, 16, 0.7), X) - plain(p, X)).max() > 1e-2
    no_values = with_columns(16, 24, 0.0)
    np.testing.assert_allclose(plain(no_values, X), perturbed(no_values, X), atol=1e-5)


def test_one_attention_with_the_identity_is_its_value_path(params, quick):
    p, h = params[UNET]["middle_attention"], jax.random.normal(jax.random.key(5), (2, 4, 4, 8))
    variables = {"params": p, PERTURBED: {"identity": np.asarray(True)}}

    @quick
    def both(variables):
        normed = GroupNorm().apply({"params": p["norm"]}, h)
        values = normed @ p["qkv"]["kernel"][:, 16:] + p["qkv"]["bias"][16:]
        return Attention().apply(variables, h), h + values @ p["out"]["kernel"] + p["out"]["bias"]

    np.testing.assert_allclose(*both(variables), rtol=1e-4, atol=1e-4)


def test_layers_that_are_not_there_are_refused(params):
    with pytest.raises(ValueError, match="no layer 3: allowed are 0 to 2"):
        identity_attention(DIT, (3,))
    apply = apply_fn(UNET, V(), identity_attention(UNET, ("middle",)))
    with pytest.raises(ValueError, match=r"no attention 'middle'.* it has .*middle_attention"):
        apply(params[UNET], X, AT, AT, {})
