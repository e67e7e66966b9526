"""Low-rank changes of kernels: what they add, and to what."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.networks import lora
from jaxdiff.networks.apply import init_params
from jaxdiff.networks.dit import DiT
from jaxdiff.networks.flux import Flux
from jaxdiff.networks.mmdit import MMDiT
from jaxdiff.networks.text_transformer import TextTransformer
from jaxdiff.networks.unet import UNet

RNG = np.random.default_rng(0)
TEXT_UNET = UNet(
    channels=8,
    channel_mults=(1, 2),
    blocks_per_level=1,
    attention_resolutions=(8,),
    transformer_depths=(0, 2),
    middle_transformer=1,
    head_channels=4,
    text_width=8,
    text_pooled=8,
    text_encoder=TextTransformer(vocabulary=20, length=4, width=8, depth=1, heads=2),
    linear_projection=False,
)
NETWORKS = {
    "unet": TEXT_UNET,
    "dit": DiT(patch=2, width=16, depth=2, heads=2),
    "mmdit": MMDiT(width=16, depth=3, heads=2, dual=1, text_width=6, text_pooled=5),
    "flux": Flux(width=16, depth=2, single_depth=2, heads=2, axes=(2, 2, 4), text_width=6, text_pooled=5),
}


quickly = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def normal(*shape):
    return jnp.asarray(RNG.standard_normal(shape), jnp.float32)


def leaves(tree):
    return {tuple(key.key for key in path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def shapes_of(network):
    return jax.eval_shape(lambda key: init_params(network, key, (8, 8, 3), {}), jax.random.key(0))


def filled(shapes, rank=2, chosen=lora.any_kernel):
    """Random parameters of these shapes, and factors whose `up` is not zero."""
    params = jax.tree.map(lambda s: normal(*s.shape), shapes)
    factors = jax.eval_shape(lambda: lora.initial(jax.random.key(1), shapes, rank, chosen))
    return params, jax.tree.map(lambda f: normal(*f.shape), factors)


def test_a_dense_kernel_with_head_axes_changes_by_the_sum_over_the_rank():
    down, up = normal(5, 2), normal(2, 3, 4, 6)
    want = sum(np.multiply.outer(np.asarray(down)[:, r], np.asarray(up)[r]) for r in range(2))
    np.testing.assert_allclose(lora.product(down, up, (5, 3, 4, 6), 0.5), 0.5 * want, rtol=1e-5, atol=1e-6)


def test_stacked_kernels_change_block_by_block():
    down, up = normal(3, 5, 2), normal(3, 2, 4, 6)
    whole = lora.product(down, up, (3, 5, 4, 6))
    for block in range(3):
        np.testing.assert_allclose(whole[block], lora.product(down[block], up[block], (5, 4, 6)), rtol=1e-5, atol=1e-6)


def test_a_convolution_changes_as_two_convolutions_after_each_other():
    def conv(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    x, kernel, down, up = normal(2, 6, 6, 4), normal(3, 3, 4, 5), normal(3, 3, 4, 2), normal(2, 5)
    merged = lora.merge({"kernel": kernel}, {"kernel": {"down": down, "up": up}}, 0.7)["kernel"]
    want = conv(x, kernel) + 0.7 * conv(conv(x, down), up[None, None])
    np.testing.assert_allclose(conv(x, merged), want, atol=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_kernel_of_a_network_has_factors_that_fit(name):
    shapes = shapes_of(NETWORKS[name])
    params, factors = filled(shapes)
    merged = leaves(quickly(lora.merge)(params, factors, 0.3))
    changed = {path for path, leaf in leaves(params).items() if np.any(merged[path] != leaf)}
    assert changed == {path for path in merged if path[-1] == "kernel"}
    # A change of rank 2: of each stacked block, seen as a matrix from inputs to outputs, two singular values remain.
    for path in changed:
        inner, _ = lora.split_shape(path, merged[path].shape)
        change = np.asarray(merged[path] - leaves(params)[path], np.float64)
        blocks = change if lora.stacked(path) else change[None]
        rows = int(np.prod(inner[lora.stacked(path) :]))
        for block in blocks:
            values = np.linalg.svd(block.reshape(rows, -1), compute_uv=False)
            assert np.all(values[2:] < 1e-4 * values[0]), path


def test_factors_start_at_no_change():
    shapes = shapes_of(NETWORKS["dit"])
    params, _ = filled(shapes)
    start = quickly(lambda key: lora.initial(key, shapes, 2, lora.any_kernel))(jax.random.key(1))
    assert all(np.any(down) for path, down in leaves(start).items() if path[-1] == "down")
    unchanged = quickly(lora.merge)(params, start)
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(unchanged), jax.tree.leaves(params), strict=True))


def test_attention_is_what_has_queries_keys_values_and_outputs():
    chosen = {
        name: {path for path in leaves(shapes_of(network)) if path[-1] == "kernel" and lora.in_attention(path)}
        for name, network in NETWORKS.items()
    }
    attention = ("encoder_1_0_attention", "middle_attention", "decoder_1_0_attention", "decoder_1_1_attention")
    inside = {
        (module, "blocks", kind, layer, "kernel")
        for module in attention
        for kind in ("self_attention", "cross_attention")
        for layer in ("q", "k", "v", "out")
    }
    plain = {(f"{side}_attention", layer, "kernel") for side in ("encoder_0_0", "decoder_0_0", "decoder_0_1")
             for layer in ("qkv", "out")}  # fmt: skip
    words = {("text_encoder", f"attention_0_{layer}", "kernel") for layer in ("qkv", "out")}
    assert chosen["unet"] == inside | plain | words
    assert chosen["dit"] == {("blocks", "qkv", "kernel"), ("blocks", "out", "kernel")}
    layers = ("qkv", "out", "text_qkv", "text_out")
    joint = {("blocks", layer, "kernel") for layer in layers}
    assert chosen["flux"] == joint | {("single_blocks", layer, "kernel") for layer in ("qkv", "out")}
    dual = {("dual_blocks", layer, "kernel") for layer in (*layers, "dual_qkv", "dual_out")}
    assert chosen["mmdit"] == joint | dual | {("last_blocks", layer, "kernel") for layer in layers[:3]}


def test_several_changes_add_up_by_their_weights():
    shapes = shapes_of(NETWORKS["dit"])
    params, first = filled(shapes)
    _, second = filled(shapes, rank=3, chosen=lora.in_attention)
    both = lora.merge_all(params, [lora.Part(first, 0.5), lora.Part(second, -2.0)])
    one, two = (lora.merge(params, tree, 1.0) for tree in (first, second))
    want = jax.tree.map(lambda p, a, b: p + 0.5 * (a - p) - 2.0 * (b - p), params, one, two)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), both, want)


def test_factors_of_another_network_are_refused():
    params = {"a": {"kernel": normal(4, 5)}}
    with pytest.raises(ValueError, match="factors of b"):
        lora.merge(params, {"b": {"kernel": {"down": normal(4, 2), "up": normal(2, 5)}}})
    with pytest.raises(ValueError, match=r"make no kernel \[4, 5\]"):
        lora.merge(params, {"a": {"kernel": {"down": normal(5, 2), "up": normal(2, 4)}}})
    with pytest.raises(ValueError, match=r"--lora\.targets all"):
        lora.initial(jax.random.key(0), params, 2, lora.in_attention)
