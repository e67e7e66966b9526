"""The U-Net with texts: tokens by cross-attention, a vector and sizes by the embedding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.core.cond import absent
from jaxdiff.core.predictions import V
from jaxdiff.core.types import Level
from jaxdiff.networks.apply import apply_fn, identity_attention
from jaxdiff.networks.unet import UNet

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (2, 8, 8, 2))
NOISE = jnp.array([3.0, 700.0])
NET = UNet(
    channels=8,
    channel_mults=(1, 2),
    blocks_per_level=1,
    attention_resolutions=(),
    heads=2,
    transformer_depths=(0, 2),
    middle_transformer=1,
    text_width=6,
    text_pooled=5,
    size_features=4,
)
PUBLISHED = NET.clone(text_null=False, linear_projection=False, symmetric_padding=True, cosine_first=True)
COND = {
    "text_tokens": jax.random.normal(jax.random.key(2), (2, 3, 6)),
    "text_mask": jnp.array([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]]),
    "text_pooled": jax.random.normal(jax.random.key(3), (2, 5)),
    "size": jnp.array([[64.0, 64.0, 0.0, 0.0, 64.0, 64.0], [32.0, 48.0, 3.0, 0.0, 64.0, 64.0]]),
}


def zeros(net):
    shapes = jax.eval_shape(net.init, KEY, X, NOISE, {})["params"]
    return jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes)


@pytest.fixture(scope="module")
def params(randomised):
    return {net: randomised(zeros(net), 0.3) for net in (NET, PUBLISHED)}


def apart(a, b):
    return float(jnp.abs(a - b).max())


def test_parameters_are_the_same_with_and_without_a_text():
    for net in (NET, PUBLISHED):
        shapes = [jax.eval_shape(net.init, KEY, X, NOISE, cond)["params"] for cond in ({}, COND)]
        assert jax.tree.structure(shapes[0]) == jax.tree.structure(shapes[1])
        assert jax.tree.leaves(shapes[0]) == jax.tree.leaves(shapes[1])
        assert {name for name in shapes[0] if "attention" in name} == {
            "encoder_1_0_attention",
            "middle_attention",
            "decoder_1_0_attention",
            "decoder_1_1_attention",
        }
        depths = {name: len(shapes[0][name]["blocks"]["mlp_1"]["bias"]) for name in shapes[0] if "attention" in name}
        assert depths.pop("middle_attention") == 1 and set(depths.values()) == {2}
    assert "text" in zeros(NET) and "text" not in zeros(PUBLISHED)


def test_transformers_start_at_zero(quick):
    plain = NET.clone(transformer_depths=(), middle_transformer=0, text_width=0, middle_attention=False)

    @quick
    def both(key):
        out, variables = NET.init_with_output(key, X, NOISE, COND)
        params = dict(variables["params"])
        params["conv_out"] = jax.tree.map(lambda a: a + 0.1, params["conv_out"])
        with_text = NET.apply({"params": params}, X, NOISE, COND)
        return out, with_text, plain.apply({"params": params}, X, NOISE, COND)

    out, with_text, without = both(KEY)
    np.testing.assert_array_equal(out, 0)
    assert apart(with_text, 0) > 0.1
    np.testing.assert_allclose(with_text, without, atol=1e-5)


def test_an_absent_text_is_one_of_which_no_token_is_seen(params, run):
    rest = {"text_pooled": jnp.zeros((2, 5)), "size": jnp.zeros((2, 6))}
    nothing = run(NET, params[NET], X, NOISE)
    np.testing.assert_allclose(run(NET, params[NET], X, NOISE, absent(COND)), nothing, atol=1e-5)
    np.testing.assert_allclose(run(NET, params[NET], X, NOISE, rest), nothing, atol=1e-5)
    hidden = COND | rest | {"text_mask": jnp.zeros((2, 3))}
    np.testing.assert_allclose(run(NET, params[NET], X, NOISE, hidden), nothing, atol=1e-5)
    for row in (0, 1):  # of an example, whatever the others are
        one = {name: leaf.at[row].set(0.0) for name, leaf in COND.items()}
        out = run(NET, params[NET], X, NOISE, one)
        np.testing.assert_allclose(out[row], nothing[row], atol=1e-5)
        assert apart(out[1 - row], nothing[1 - row]) > 0.01


def test_without_a_learned_token_an_absent_text_is_a_token_of_zeros(params, run):
    nothing = run(PUBLISHED, params[PUBLISHED], X, NOISE)
    np.testing.assert_allclose(run(PUBLISHED, params[PUBLISHED], X, NOISE, absent(COND)), nothing, atol=1e-5)
    unseen = run(PUBLISHED, params[PUBLISHED], X, NOISE, COND | {"text_mask": jnp.zeros((2, 3))})
    assert jnp.isfinite(unseen).all()


@pytest.mark.parametrize("net", [NET, PUBLISHED], ids=["null", "published"])
def test_tokens_are_a_set_of_which_the_mask_hides_some(net, params, run):
    out = run(net, params[net], X, NOISE, COND)
    order = jnp.array([2, 0, 1])
    shuffled = COND | {name: COND[name][:, order] for name in ("text_tokens", "text_mask")}
    np.testing.assert_allclose(run(net, params[net], X, NOISE, shuffled), out, rtol=1e-4, atol=1e-5)
    other = COND | {"text_tokens": COND["text_tokens"].at[:, 2].add(3.0)}  # hidden in the first
    changed = run(net, params[net], X, NOISE, other)
    np.testing.assert_array_equal(changed[0], out[0])
    assert apart(changed[1], out[1]) > 0.01
    all_seen = {name: leaf for name, leaf in COND.items() if name != "text_mask"}
    unmasked = run(net, params[net], X, NOISE, all_seen)
    np.testing.assert_allclose(unmasked[1], out[1], rtol=1e-4, atol=1e-5)
    assert apart(unmasked[0], out[0]) > 0.01


@pytest.mark.parametrize("name", ["text_pooled", "size"])
def test_the_vector_and_the_sizes_count(name, params, run):
    out = run(NET, params[NET], X, NOISE, COND)
    other = run(NET, params[NET], X, NOISE, COND | {name: COND[name].at[0].multiply(0.5)})
    assert apart(other[0], out[0]) > 0.01
    np.testing.assert_allclose(other[1], out[1], atol=1e-5)


def test_images_of_any_size_have_the_same_parameters():
    wide = jnp.zeros((2, 16, 4, 2))
    shapes = jax.eval_shape(NET.init, KEY, wide, NOISE, COND)["params"]
    assert shapes == jax.eval_shape(NET.init, KEY, X, NOISE, COND)["params"]
    levels = UNet(channels=8, channel_mults=(1, 1), blocks_per_level=1, attention_resolutions=(), attention_levels=(1,))
    for image in (X, wide):
        names = jax.eval_shape(levels.init, KEY, image, NOISE, {})["params"]
        assert sum("attention" in name for name in names) == 4  # encoder 1, middle, decoder 2
        assert not any("_0_0_attention" in name for name in names)


def test_every_parameter_matters_and_remat_changes_none_of_it(params, quick):
    def slopes(net):
        loss = lambda p: jnp.sum(net.apply({"params": p}, X, NOISE, COND) ** 2)  # noqa: E731
        return quick(jax.grad(loss))(params[NET])

    plain = slopes(NET)
    for path, leaf in jax.tree.leaves_with_path(plain):
        assert jnp.isfinite(leaf).all() and jnp.abs(leaf).max() > 0, jax.tree_util.keystr(path)
    for remat in ("dots", "full"):
        same = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * jnp.abs(a).max())  # noqa: E731
        jax.tree.map(same, plain, slopes(NET.clone(remat=remat)))


def test_bfloat16_stays_close_to_float32(params, run):
    wide = run(NET, params[NET], X, NOISE, COND)
    narrow = run(NET.clone(dtype="bfloat16"), params[NET], X, NOISE, COND)
    assert narrow.dtype == jnp.float32
    error = jnp.sqrt(jnp.mean(jnp.square(narrow - wide))) / wide.std()
    assert 0 < error < 0.1


def test_the_middle_without_its_self_attention(params, quick):
    """Then no pixel's output depends on the queries or keys of the middle, and the text still counts."""
    at = Level(jnp.float32(0.6), jnp.float32(0.8))

    def ask(perturbed):
        apply = apply_fn(NET, V(), perturbed)
        return quick(lambda p, cond: apply(p, X, at, at, cond))

    def with_queries(factor):
        block = params[NET]["middle_attention"]["blocks"]
        kernel = {"kernel": factor * block["self_attention"]["q"]["kernel"]}
        block = block | {"self_attention": block["self_attention"] | {"q": kernel}}
        return params[NET] | {"middle_attention": params[NET]["middle_attention"] | {"blocks": block}}

    plain, perturbed = ask(None), ask(identity_attention(NET))
    assert apart(plain(with_queries(-3.0), COND), plain(with_queries(1.0), COND)) > 1e-3
    np.testing.assert_array_equal(perturbed(with_queries(-3.0), COND), perturbed(with_queries(1.0), COND))
    assert apart(perturbed(params[NET], COND), plain(params[NET], COND)) > 1e-3
    other = COND | {"text_tokens": -COND["text_tokens"]}
    assert apart(perturbed(params[NET], COND), perturbed(params[NET], other)) > 1e-3


@pytest.mark.parametrize(
    ("attributes", "cond", "message"),
    [
        ({"transformer_depths": (1,)}, {}, "1 transformer depths for 2 levels.*--network.transformer-depths"),
        ({"heads": 3}, {}, "--network.heads"),
        ({"norm_groups": 3}, {}, "norms of 3 groups.*--network.norm-groups"),
        ({"text_width": 7}, COND, "text_tokens of 6 channels.*takes 7 .--network.text-width"),
        ({"text_pooled": 7}, COND, "text_pooled of 5 channels.*takes 7 .--network.text-pooled"),
        ({"transformer_depths": (), "middle_transformer": 0}, {}, "text_width = 6 .*without transformers"),
    ],
)
def test_what_does_not_fit_is_refused(attributes, cond, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(NET.clone(**attributes).init, KEY, X, NOISE, cond)
