"""A picture as a condition: absent it is zeros, and only networks that are made for it take one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.networks.dit import DiT
from jaxdiff.networks.image_condition import with_image
from jaxdiff.networks.unet import UNet

X = jax.random.normal(jax.random.key(1), (2, 8, 8, 2))
IMAGE = jax.random.normal(jax.random.key(2), (2, 8, 8, 3))
NOISE = jnp.array([3.0, 700.0])
UNET = UNet(channels=8, channel_mults=(1,), blocks_per_level=1, attention_resolutions=(), middle_attention=False)
DIT = DiT(patch=4, width=8, depth=1, heads=2, mlp_ratio=1)


@pytest.mark.parametrize("plain", [UNET, DIT], ids=["unet", "dit"])
def test_a_dropped_picture_is_an_absent_one_and_zeros(plain, randomised, quick):
    net = plain.clone(image_channels=3)
    params = randomised(jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes(net, {})), 0.3)
    run = quick(lambda cond: net.apply({"params": params}, X, NOISE, cond))
    shown, absent, zeros = run({"image": IMAGE}), run({}), run({"image": 0 * IMAGE})
    assert shown.shape == X.shape
    np.testing.assert_allclose(absent, zeros, atol=1e-6)
    assert jnp.abs(shown - absent).max() > 1e-3
    # The parameters are the same with and without one, and more than those of a network that takes none.
    assert jax.tree.leaves(shapes(net, {"image": IMAGE})) == jax.tree.leaves(shapes(net, {}))
    assert count(net) > count(plain)


def shapes(net, cond):
    return jax.eval_shape(net.init, jax.random.key(0), X, NOISE, cond)["params"]


def count(net):
    return sum(leaf.size for leaf in jax.tree.leaves(shapes(net, {})))


def test_its_channels_come_after_those_of_x():
    both = with_image(X, {"image": IMAGE}, 3)
    np.testing.assert_array_equal(both[..., :2], X)
    np.testing.assert_array_equal(both[..., 2:], IMAGE)
    assert with_image(X, {"image": IMAGE}, 0) is X
    with pytest.raises(ValueError, match=r"--network\.image-channels"):
        with_image(X, {"image": IMAGE[:, :4]}, 3)
