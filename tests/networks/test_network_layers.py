import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.networks.blocks import Attention, ResBlock
from jaxdiff.networks.layers import (
    GroupNorm,
    NoiseEmbedding,
    label_index,
    num_groups,
    random_fourier,
    sinusoid,
    with_waves,
)
from jaxdiff.networks.resample import downsample, upsample

KEY = jax.random.key(0)


def test_group_norm_whitens_each_group_and_forgets_affine_changes():
    x = jax.random.normal(KEY, (2, 5, 4, 8)) * 3 + 1  # two groups of four channels
    norm = GroupNorm(eps=0.0)
    params = norm.init(KEY, x)
    groups = norm.apply(params, x).reshape(2, 20, 2, 4)
    np.testing.assert_allclose(groups.mean((1, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(groups.std((1, 3)), 1, atol=1e-5)
    np.testing.assert_allclose(norm.apply(params, 5 * x - 2), norm.apply(params, x), atol=1e-4)


def test_modulated_group_norm_scales_and_shifts_the_plain_one(randomised):
    x = jax.random.normal(KEY, (3, 4, 4, 8))
    s, t = jax.random.normal(jax.random.key(1), (2, 3, 8))
    norm = GroupNorm()
    params = randomised(norm.init(KEY, x), 0.3)
    expected = norm.apply(params, x) * (1 + s[:, None, None]) + t[:, None, None]
    np.testing.assert_allclose(norm.apply(params, x, (s, t)), expected, atol=1e-5)


@pytest.mark.parametrize(("channels", "groups"), [(3, 1), (8, 2), (64, 16), (128, 32), (200, 25), (384, 32)])
def test_groups_divide_the_channels(channels, groups):
    assert num_groups(channels) == groups


def test_attention_does_not_know_the_order_of_the_pixels_and_averages_when_indifferent(quick, randomised):
    x = jax.random.normal(KEY, (2, 4, 4, 8))
    layer = Attention(heads=2)
    params = randomised(quick(layer.init)(KEY, x), 0.3)
    order = jax.random.permutation(jax.random.key(3), 16)

    def shuffle(x):
        return x.reshape(2, 16, 8)[:, order].reshape(x.shape)

    apply = quick(layer.apply)
    np.testing.assert_allclose(apply(params, shuffle(x)), shuffle(apply(params, x)), atol=1e-4)
    assert jnp.abs(apply(params, x) - x).max() > 0.1
    # Without queries and keys every pixel receives the same average value.
    kernel = params["params"]["qkv"]["kernel"].at[:, : 2 * 8].set(0)
    bias = params["params"]["qkv"]["bias"].at[: 2 * 8].set(0)
    params["params"]["qkv"] = {"kernel": kernel, "bias": bias}
    added = apply(params, x) - x
    np.testing.assert_allclose(added, jnp.broadcast_to(added[:, :1, :1], x.shape), atol=1e-5)


def test_sinusoids_reach_ddpms_frequencies():
    half = 16  # DDPM: exp(-log(10000) i / (half - 1)), so that the last period is 2 pi 10000
    noise = jnp.array([0.0, 1.0, 250.0])
    ours = sinusoid(noise, 2 * half, max_period=10000 ** (half / (half - 1)))
    angle = np.asarray(noise)[:, None] * np.geomspace(1, 1e-4, half)
    np.testing.assert_allclose(ours, np.concatenate([np.sin(angle), np.cos(angle)], -1), atol=1e-4)


def test_fourier_features_are_constant_bounded_and_of_the_scale():
    noise = jnp.linspace(-1, 1, 5)
    a = random_fourier(noise, 512, 16.0)
    np.testing.assert_array_equal(a, random_fourier(noise, 512, 16.0))
    np.testing.assert_allclose(a[:, :256] ** 2 + a[:, 256:] ** 2, 1, atol=1e-5)
    slope = jax.jacfwd(lambda t: random_fourier(t[None], 512, 16.0)[0, :256])(jnp.array(0.0))
    assert np.std(slope / (2 * np.pi)) == pytest.approx(16, rel=0.15)


def test_absent_labels_take_the_last_row():
    cond = {"label": jnp.array([0, -1, 6])}
    assert label_index(cond, 3, 7).tolist() == [0, 7, 6]
    assert label_index({}, 2, 7).tolist() == [7, 7]


@pytest.mark.parametrize("before", [False, True])
def test_conditions_move_the_embedding_and_absent_ones_are_the_null(before, quick):
    net = NoiseEmbedding(8, 16, num_classes=3, label_before_mlp=before, augment_dim=9)
    noise = jnp.array([1.0, 2.0])
    params, apply = quick(net.init)(KEY, noise, {}), quick(net.apply)
    null = apply(params, noise, {})
    absent = {"label": jnp.array([-1, -1]), "augment": jnp.zeros((2, 9))}
    np.testing.assert_array_equal(apply(params, noise, absent), null)
    one = apply(params, noise, {"label": jnp.array([-1, 2])})
    np.testing.assert_array_equal(one[0], null[0])
    assert jnp.abs(one[1] - null[1]).max() > 0.01
    turned = apply(params, noise, {"augment": jnp.ones((2, 9))})
    assert jnp.abs(turned - null).max() > 0.01
    assert jnp.abs(null[0] - null[1]).max() > 0.01  # and the noise level does, too


def test_waves_have_the_periods_of_their_exponents():
    x = jax.random.uniform(KEY, (1, 2, 2, 3))
    features = with_waves(x, (1, 3))
    assert features.shape == (1, 2, 2, 15)
    np.testing.assert_array_equal(features[..., :3], x)
    np.testing.assert_allclose(with_waves(x + 1 / 2, (1, 3))[..., 3:], features[..., 3:], atol=1e-4)
    faster = jnp.abs(with_waves(x + 1 / 8, (1, 3)) - features).max((0, 1, 2))
    assert (faster[3:9] > 0.1).all() and (faster[9:] < 1e-4).all()
    np.testing.assert_allclose(features[..., 3:6] ** 2 + features[..., 6:9] ** 2, 1, atol=1e-5)


@pytest.mark.parametrize("resample", [None, downsample, upsample])
def test_residual_branches_start_at_zero(resample, quick):
    x, emb = jax.random.normal(KEY, (1, 4, 4, 8)), jnp.ones((1, 6))
    block = ResBlock(8, resample, skip_scale=0.5)
    out = quick(lambda: block.init_with_output(KEY, x, emb, False)[0])()
    np.testing.assert_allclose(out, 0.5 * (x if resample is None else resample(x)), rtol=1e-6)
    if resample is None:
        out = quick(lambda: Attention(skip_scale=0.5).init_with_output(KEY, x)[0])()
        np.testing.assert_allclose(out, 0.5 * x, rtol=1e-6)
