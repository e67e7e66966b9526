"""Attention by separate layers, in closed forms; plain convolutions that halve; waves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.networks.axes import parameter_axes
from jaxdiff.networks.blocks import Downsample
from jaxdiff.networks.layers import sinusoid
from jaxdiff.networks.multihead import MultiHead
from jaxdiff.networks.unet import UNet

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (2, 5, 6))
CONTEXT = jax.random.normal(jax.random.key(2), (2, 4, 3))
MASK = jnp.array([[True, False, True, False], [True, True, True, True]])


def drawn(layer, randomised, *inputs):
    shapes = jax.eval_shape(layer.init, KEY, *inputs)["params"]
    return randomised(jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes), 0.7)


def test_layers_are_as_asked(randomised):
    layer = MultiHead(heads=3, head_channels=4, qkv_bias=False, qk_norm=True)
    shapes = jax.tree.map(jnp.shape, drawn(layer, randomised, X, CONTEXT))
    assert shapes == {
        "q": {"kernel": (6, 12)},
        "k": {"kernel": (3, 12)},
        "v": {"kernel": (3, 12)},
        "norm_q": {"scale": (4,)},
        "norm_k": {"scale": (4,)},
        "out": {"kernel": (12, 6), "bias": (6,)},
    }


def test_queries_of_zero_take_the_mean_of_what_they_see(randomised):
    layer = MultiHead(heads=3, head_channels=4)
    p = drawn(layer, randomised, X, CONTEXT)
    p = p | {"q": jax.tree.map(jnp.zeros_like, p["q"])}

    def expected(mask):
        values = CONTEXT @ p["v"]["kernel"] + p["v"]["bias"]
        mean = jnp.sum(mask[..., None] * values, 1) / mask.sum(1)[:, None]
        out = mean @ p["out"]["kernel"] + p["out"]["bias"]
        return jnp.broadcast_to(out[:, None], X.shape)

    run = jax.jit(lambda mask: layer.apply({"params": p}, X, CONTEXT, mask))
    np.testing.assert_allclose(run(MASK), expected(MASK), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(run(None), expected(jnp.ones_like(MASK)), rtol=1e-4, atol=1e-5)


def test_to_itself_is_to_a_context_that_is_the_same(randomised):
    layer = MultiHead(heads=2, head_channels=3)
    p = drawn(layer, randomised, X)
    run = jax.jit(lambda *inputs: layer.apply({"params": p}, X, *inputs))
    np.testing.assert_allclose(run(), run(X), rtol=1e-5, atol=1e-6)
    values = X @ p["v"]["kernel"] + p["v"]["bias"]
    alone = values @ p["out"]["kernel"] + p["out"]["bias"]
    np.testing.assert_allclose(run(None, None, jnp.array(True)), alone, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(run(None, None, jnp.array(False)), run(), rtol=1e-5, atol=1e-6)


def test_normed_queries_have_no_length(randomised):
    for qk_norm in (True, False):
        layer = MultiHead(heads=2, head_channels=3, qkv_bias=False, qk_norm=qk_norm)
        p = drawn(layer, randomised, X)
        longer = p | {name: {"kernel": 5.0 * p[name]["kernel"]} for name in "qk"}
        difference = layer.apply({"params": longer}, X) - layer.apply({"params": p}, X)
        assert (jnp.abs(difference).max() < 1e-4) == qk_norm


@pytest.mark.parametrize(("symmetric", "first"), [(True, 0), (False, 1)])
def test_the_middle_of_a_halving_kernel_lies_on(symmetric, first):
    x = jax.random.normal(KEY, (1, 6, 4, 1))
    kernel = jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1.0)
    params = {"conv": {"kernel": kernel, "bias": jnp.zeros(1)}}
    out = Downsample(symmetric=symmetric).apply({"params": params}, x)
    np.testing.assert_allclose(out, x[:, first::2, first::2], rtol=1e-6)


def test_cosines_first():
    noise = jnp.array([0.3, 500.0])
    sines, cosines = jnp.split(sinusoid(noise, 8), 2, axis=-1)
    np.testing.assert_array_equal(sinusoid(noise, 8, cosine_first=True), jnp.concatenate([cosines, sines], axis=-1))


def test_heads_and_hidden_channels_are_what_tensor_parallelism_divides():
    net = UNet(channels=8, channel_mults=(1,), blocks_per_level=1, transformer_depths=(2,), text_width=6)
    shapes = jax.eval_shape(net.init, KEY, jnp.zeros((1, 4, 4, 2)), jnp.zeros(1), {})["params"]
    found = {}
    for path, leaf in jax.tree.leaves_with_path(shapes["encoder_0_0_attention"]["blocks"]):
        names = tuple(str(key.key) for key in path)
        axes = parameter_axes(("encoder_0_0_attention", "blocks", *names), leaf.ndim)
        assert len(axes) == leaf.ndim and axes[0] == "layer"
        found["/".join(names)] = axes[1:]
    divided = {name: axes for name, axes in found.items() if any(axes)}
    assert divided.pop("mlp_0/kernel") == (None, None, "hidden")
    assert divided.pop("mlp_0/bias") == (None, "hidden")
    assert divided.pop("mlp_1/kernel") == ("hidden", None)
    for kind in ("self", "cross"):
        assert divided.pop(f"{kind}_attention/out/kernel") == ("heads", None)
        for name in "qkv":
            assert divided.pop(f"{kind}_attention/{name}/kernel") == (None, "heads")
    assert not divided
