import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.networks.unet import UNet

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (2, 8, 8, 2))
NOISE = jnp.array([3.0, 700.0])
TINY = UNet(channels=8, channel_mults=(1, 2), blocks_per_level=1, attention_resolutions=(4,))

VARIANTS = {
    "ddpm": TINY,
    "adm": TINY.clone(scale_shift=True, resample_blocks=True, head_channels=8, num_classes=3, learned_variance=True),
    "ncsnpp": TINY.clone(
        resample_blocks=True,
        resample_projection=True,
        resample_taps=(1, 3, 3, 1),
        residual_input=True,
        fourier_scale=0.01,
        embedding_channels=16,
        skip_scale=0.5**0.5,
        decoder_attention=False,
        augment_dim=9,
        num_classes=3,
        label_before_mlp=True,
    ),
    "vdm": UNet(channels=8, channel_mults=(1,), attention_resolutions=(), fourier_features=(0, 1), add_input=True),
    "patches": TINY.clone(patch=2, channel_mults=(1,), attention_resolutions=(), heads=2),
}
CONDS = {"label": jnp.array([0, -1]), "augment": jnp.ones((2, 9))}


@pytest.fixture(scope="module")
def initial(quick):
    """Initial parameters of every variant, made once."""
    return {name: quick(net.init)(KEY, X, NOISE, CONDS)["params"] for name, net in VARIANTS.items()}


@pytest.mark.parametrize("name", VARIANTS)
def test_output_starts_at_zero_and_answers_to_the_noise_level(name, initial, run, randomised):
    net, params = VARIANTS[name], initial[name]
    start = run(net, params, X, NOISE, CONDS)
    assert start.shape == (2, 8, 8, 4 if net.learned_variance else 2)
    np.testing.assert_array_equal(start, X if net.add_input else 0)
    params = randomised(params)
    out, other = run(net, params, X, NOISE, CONDS), run(net, params, X, NOISE[::-1], CONDS)
    assert jnp.abs(out - other).max() > 1e-3


@pytest.mark.parametrize("name", ["adm", "ncsnpp"])
def test_bfloat16_stays_close_to_float32(name, initial, run, randomised):
    net, params = VARIANTS[name], randomised(initial[name])
    wide = run(net, params, X, NOISE, CONDS)
    narrow = run(net.clone(dtype="bfloat16"), params, X, NOISE, CONDS)
    assert {leaf.dtype for leaf in jax.tree.leaves(initial[name])} == {jnp.dtype("float32")}
    assert narrow.dtype == wide.dtype == jnp.float32
    error = jnp.sqrt(jnp.mean(jnp.square(narrow - wide))) / wide.std()
    assert 0 < error < 0.05


def test_attention_is_where_it_is_asked_for():
    def where(**attributes):
        net = TINY.clone(**attributes)
        shapes = jax.eval_shape(net.init, KEY, X, NOISE, {})["params"]
        return sorted(name for name in shapes if "attention" in name)

    below = ["decoder_1_0_attention", "decoder_1_1_attention", "encoder_1_0_attention"]
    assert where() == [*below, "middle_attention"]
    assert where(decoder_attention=False) == [*below[1:], "middle_attention"]
    assert where(attention_resolutions=()) == ["middle_attention"]
    assert where(attention_resolutions=(), middle_attention=False) == []
    assert where(attention_resolutions=(4,), patch=2) == [
        "decoder_0_0_attention",
        "decoder_0_1_attention",
        "encoder_0_0_attention",
        "middle_attention",
    ]


def test_labels_and_their_absence(initial, run, randomised):
    net, params = VARIANTS["adm"], randomised(initial["adm"])
    null = run(net, params, X, NOISE, {"label": jnp.array([-1, -1])})
    np.testing.assert_array_equal(run(net, params, X, NOISE, {}), null)
    labelled = run(net, params, X, NOISE, {"label": jnp.array([1, -1])})
    np.testing.assert_array_equal(labelled[1], null[1])
    assert jnp.abs(labelled[0] - null[0]).max() > 0.01


def test_dropout_only_in_training(initial, run, quick, randomised):
    net, params = VARIANTS["patches"].clone(dropout=0.5), randomised(initial["patches"])
    still = run(net, params, X, NOISE)
    np.testing.assert_allclose(still, run(VARIANTS["patches"], params, X, NOISE), rtol=1e-6)

    @quick
    def train(key):
        return net.apply({"params": params}, X, NOISE, {}, train=True, rngs={"dropout": key})

    once, again = train(jax.random.key(1)), train(jax.random.key(1))
    np.testing.assert_array_equal(once, again)
    assert jnp.abs(once - still).max() > 0.01
    assert jnp.abs(once - train(jax.random.key(2))).max() > 0.01


def gradient(quick, net, params):
    return quick(jax.grad(lambda p: jnp.sum(net.apply({"params": p}, X, NOISE, CONDS) ** 2)))(params)


def test_every_parameter_matters(initial, quick, randomised):
    slopes = gradient(quick, VARIANTS["ncsnpp"], randomised(initial["ncsnpp"]))
    for path, leaf in jax.tree.leaves_with_path(slopes):
        assert jnp.isfinite(leaf).all() and jnp.abs(leaf).max() > 0, jax.tree_util.keystr(path)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"patch": 3}, "multiple of 6.*--network.patch"),
        ({"channel_mults": (1, 1, 1, 1, 1)}, "multiple of 16.*--network.channel-mults"),
        ({"head_channels": 5}, "--network.head-channels"),
        ({"heads": 3}, "--network.heads"),
    ],
)
def test_what_does_not_fit_is_refused(attributes, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(TINY.clone(**attributes).init, KEY, X, NOISE, {})
