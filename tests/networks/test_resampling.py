import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.networks.resample import (
    depth_to_space,
    downsample,
    smooth,
    space_to_depth,
    upsample,
    upsampled_convolution,
)

FIR = (1, 3, 3, 1)
KEY = jax.random.key(0)


def test_the_box_filter_is_average_pooling_and_nearest_neighbour():
    x = jax.random.normal(KEY, (2, 4, 6, 3))
    pooled = x.reshape(2, 2, 2, 3, 2, 3).mean((2, 4))
    np.testing.assert_allclose(downsample(x), pooled, atol=1e-6)
    np.testing.assert_array_equal(upsample(x), jnp.repeat(jnp.repeat(x, 2, 1), 2, 2))


@pytest.mark.parametrize("taps", [(1, 1), FIR, (1, 2, 5, 4), (1, 5, 10, 10, 5, 1)])
def test_upsampling_is_four_times_the_adjoint_of_downsampling(taps):
    x = jax.random.normal(KEY, (1, 8, 6, 2))
    _, adjoint = jax.vjp(lambda fine: downsample(fine, taps), jnp.zeros((1, 16, 12, 2)))
    np.testing.assert_allclose(upsample(x, taps), 4 * adjoint(x)[0], atol=1e-5)


def test_a_constant_stays_constant_and_a_ramp_a_ramp_away_from_the_border():
    flat = jnp.ones((1, 8, 8, 1))
    np.testing.assert_allclose(downsample(flat, FIR)[:, 1:-1, 1:-1], 1, atol=1e-6)
    np.testing.assert_allclose(upsample(flat, FIR)[:, 1:-1, 1:-1], 1, atol=1e-6)
    ramp = jnp.broadcast_to(jnp.arange(8.0)[None, :, None, None], (1, 8, 8, 1))
    slope_up = jnp.diff(upsample(ramp, FIR)[0, 1:-1, 4, 0])
    slope_down = jnp.diff(downsample(ramp, FIR)[0, 1:-1, 2, 0])
    np.testing.assert_allclose(slope_up, 0.5, atol=1e-5)
    np.testing.assert_allclose(slope_down, 2, atol=1e-5)


def test_smoothing_then_a_strided_convolution_is_the_convolution_then_the_filter():
    x, w = jax.random.normal(KEY, (1, 8, 8, 2)), jax.random.normal(KEY, (3, 3, 2, 2))

    def conv(x, w, stride, pad, groups=1):
        return jax.lax.conv_general_dilated(
            x,
            w,
            (stride, stride),
            [(pad, pad)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    filtered_first = conv(smooth(x, FIR), w, 2, 0)
    fir = np.outer(FIR, FIR) / 64.0
    kernel = jnp.asarray(np.tile(fir[:, :, None, None], (1, 1, 1, 2)), jnp.float32)
    convolved_first = conv(conv(x, w, 1, 2), kernel, 2, 0, groups=2)
    assert filtered_first.shape == (1, 4, 4, 2)
    np.testing.assert_allclose(filtered_first, convolved_first, atol=1e-4)


def test_space_to_depth_round_trip_and_content():
    x = jax.random.normal(KEY, (2, 6, 9, 2))
    packed = space_to_depth(x, 3)
    assert packed.shape == (2, 2, 3, 18)
    np.testing.assert_array_equal(depth_to_space(packed, 3), x)
    np.testing.assert_array_equal(packed[1, 1, 2].reshape(3, 3, 2), x[1, 3:6, 6:9])


@pytest.mark.parametrize("taps", [(1, 2, 1), (1, -1)])
def test_taps_that_cannot_work_are_refused(taps):
    with pytest.raises(ValueError, match=r"--network.resample-taps"):
        downsample(jnp.ones((1, 4, 4, 1)), taps)


def test_a_convolution_of_an_upsampled_image_is_computed_at_half_its_size():
    x = jax.random.normal(KEY, (2, 4, 6, 3))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 3, 5))

    def plain(x, kernel):
        up = jnp.repeat(jnp.repeat(x, 2, 1), 2, 2)
        return jax.lax.conv_general_dilated(up, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    out, pull = jax.vjp(plain, x, kernel)
    ours, our_pull = jax.vjp(upsampled_convolution, x, kernel)
    np.testing.assert_allclose(ours, out, atol=1e-5)
    for a, b in zip(our_pull(out), pull(out), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3)
