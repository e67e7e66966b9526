"""EDM2's layers keep magnitudes, and its published sizes have the published numbers of parameters."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.core.magnitudes import fourier, on_sphere
from jaxdiff.networks.edm2 import EDM2, MPConv, mp_cat, mp_silu, mp_sum, pixel_norm
from jaxdiff.pretrained.edm2 import edm2_shapes

RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.standard_normal(shape), jnp.float32)


def power(x):
    return float(jnp.square(x).mean())


def test_activations_and_waves_have_unit_magnitude():
    assert abs(power(mp_silu(normal(400_000))) - 1) < 0.01
    assert abs(power(fourier(normal(400), 1024)) - 1) < 0.05
    # The waves of one frequency and phase, in turns: cos(2 pi (0.25 * 2 + 0.5)) = 1.
    np.testing.assert_allclose(fourier(jnp.array([2.0]), 1, (0.25,), (0.5,)), [[math.sqrt(2)]], rtol=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_sums_have_unit_magnitude(share):
    a, b = normal(200_000), normal(200_000)
    total = mp_sum(a, b, share)
    assert abs(power(total) - 1) < 0.02
    # The ratio of the two shares in it.
    assert abs(float((total * b).mean()) * (1 - share) - float((total * a).mean()) * share) < 0.02


@pytest.mark.parametrize("share", [0.3, 0.5])
def test_concatenations_have_unit_magnitude_and_the_shares_do_not_depend_on_the_widths(share):
    joined = mp_cat(normal(5000, 8), normal(5000, 24), share)
    assert abs(power(joined) - 1) < 0.02
    first, second = (float(jnp.square(part).sum(-1).mean()) for part in (joined[:, :8], joined[:, 8:]))
    assert abs(math.sqrt(first / second) - (1 - share) / share) < 0.03


def test_pixels_have_unit_magnitude():
    x = pixel_norm(normal(4, 3, 3, 16) * jnp.array([1e-2, 1.0, 7.0, 1e3])[:, None, None, None])
    np.testing.assert_allclose(jnp.square(x).mean(-1)[1:], 1, rtol=1e-3)
    # The small number added to the magnitude shows where that is small.
    np.testing.assert_allclose(jnp.sqrt(jnp.square(x[0]).mean(-1)), 1, atol=0.03)


@pytest.mark.parametrize("size", [0, 1, 3])
def test_layers_have_unit_magnitude_whatever_their_weights_are(size):
    layer, x = MPConv(64, size), normal(4096, 32) if size == 0 else normal(2, 32, 32, 32)
    params = layer.init(jax.random.key(0), x)["params"]
    out = layer.apply({"params": params}, x)
    inner = out if size < 3 else out[:, 1:-1, 1:-1]  # at the border a part of the input is missing
    assert abs(power(inner) - 1) < 0.05
    larger = {"kernel": params["kernel"] * jnp.linspace(2, 300, 64)}
    np.testing.assert_allclose(layer.apply({"params": larger}, x), out, atol=2e-3)
    np.testing.assert_allclose(layer.apply({"params": params}, x, 3.0), 3 * out, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(layer.apply({"params": on_sphere(larger)}, x), out, atol=2e-3)
    np.testing.assert_allclose(jnp.square(on_sphere(larger)["kernel"]).reshape(-1, 64).mean(0), 1, rtol=1e-3)


def test_the_output_starts_at_zero_and_the_label_matters_later():
    network = EDM2(channels=16, channel_mults=(1, 2), blocks_per_level=1, attention_levels=(1,), head_channels=16,
                   num_classes=3)  # fmt: skip
    x, noise = normal(2, 4, 4, 3), jnp.array([0.1, 0.7])
    cond = {"label": jnp.array([0, 2])}
    params = network.init(jax.random.key(0), x, noise, cond)["params"]
    apply = jax.jit(lambda params, cond: network.apply({"params": params}, x, noise, cond))
    assert not np.any(apply(params, cond))
    gains = jax.tree_util.tree_map_with_path(lambda path, a: a + ("gain" in path[-1].key), params)
    given, absent = apply(gains, cond), apply(gains, {"label": jnp.array([-1, 2])})
    assert np.abs(given - absent)[0].max() > 1e-2
    np.testing.assert_array_equal(given[1], absent[1])


@pytest.mark.parametrize(
    ("channels", "millions"), [(128, 125), (192, 280), (256, 498), (320, 777), (384, 1119), (448, 1523)],
    ids=["XS", "S", "M", "L", "XL", "XXL"],
)  # fmt: skip
def test_published_sizes(channels, millions):
    """arXiv:2312.02696, Table 2; on ImageNet-512's latents, the uncertainty's 129 numbers left out."""
    shapes = edm2_shapes(EDM2(channels=channels, num_classes=1000), 4)
    assert round(sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) / 1e6) == millions


def test_widths_and_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="head_channels = 64 must divide"):
        edm2_shapes(EDM2(channels=100), 3)
    with pytest.raises(ValueError, match="height 6 must be a multiple of 8"):
        EDM2().init(jax.random.key(0), jnp.zeros((1, 6, 8, 3)), jnp.zeros(1), {})
