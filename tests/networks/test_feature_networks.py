"""The published sizes of the feature networks (by shapes alone), and what makes FID's Inception its own."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.networks import inception
from jaxdiff.networks.efficientnet_lite import EfficientNetLite0
from jaxdiff.networks.frozen import DepthwiseConv
from jaxdiff.networks.inception import InceptionV3
from jaxdiff.networks.lpips import LPIPS, VGG16, AlexNet


def shapes(net, *sides):
    images = [jax.ShapeDtypeStruct((3, side, side, 3), jnp.float32) for side in sides]
    out, variables = jax.eval_shape(net.init_with_output, jax.random.key(0), *images)
    return out, variables["params"]


def count(params, left_out=()):
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return sum(math.prod(leaf.shape) for path, leaf in leaves if path[-1].key not in left_out)


def test_inception_has_the_published_count_and_outputs():
    out, params = shapes(InceptionV3(), 299)
    # torchvision's InceptionV3 without its auxiliary head has 23,834,568 with 1000 classes; here are 1008.
    assert count(params, ("mean", "var")) == 23_834_568 + 8 * 2049
    assert [tuple(leaf.shape) for leaf in out] == [(3, n) for n in (64, 192, 768, 2048, 2023, 1008, 1008)]


def test_efficientnet_has_the_published_count_and_outputs():
    out, params = shapes(EfficientNetLite0(), 224)
    assert count(params, ("mean", "var")) == 4_652_008  # 4.65 M
    assert (out.features.shape, out.logits.shape) == ((3, 1280), (3, 1000))


@pytest.mark.parametrize("backbone, published", [(AlexNet(), 2_469_696), (VGG16(), 14_714_688)])
def test_lpips_has_the_convolutions_of_its_classifier(backbone, published):
    out, params = shapes(LPIPS(backbone), 64, 64)
    heads = params.copy()
    convolutions = heads.pop("backbone")
    assert count(convolutions) == published
    assert count(heads) == {"AlexNet": 1152, "VGG16": 1472}[type(backbone).__name__]
    assert out.shape == (3,)


def test_the_mean_pool_leaves_padding_out():
    ones = jnp.ones((1, 5, 5, 2))
    np.testing.assert_allclose(inception._mean(ones), ones, rtol=1e-6)


def test_only_the_last_block_pools_by_maximum(quick):
    """With all weights zero but the pool branch's, a lone bright pixel keeps its height under a maximum only."""
    x = jnp.zeros((1, 8, 8, 4)).at[0, 4, 4, 0].set(9.0)
    heights = []
    for max_pool in (False, True):
        net = inception.Mixed8(max_pool)
        params = quick(net.init)(jax.random.key(0), x)["params"]
        kernel = params["branch_pool"]["conv"]["kernel"]
        params["branch_pool"]["conv"]["kernel"] = kernel.at[0, 0, 0, 0].set(1.0)
        heights.append(float(quick(net.apply)({"params": params}, x).max()))
    np.testing.assert_allclose(heights, [1.0, 9.0], rtol=1e-3)


@pytest.mark.parametrize("size, stride, side", [(3, 1, 7), (5, 1, 7), (3, 2, 8), (5, 2, 8), (3, 2, 7)])
def test_a_sum_of_shifts_is_the_depthwise_convolution(quick, size, stride, side):
    x = jax.random.normal(jax.random.key(0), (2, side, side, 6))
    kernel = jax.random.normal(jax.random.key(1), (size, size, 1, 6))
    ours = quick(DepthwiseConv(size, stride).apply)({"params": {"kernel": kernel}}, x)
    theirs = jax.lax.conv_general_dilated(
        x, kernel, (stride,) * 2, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=6
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
