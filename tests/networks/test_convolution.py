"""The 3x3 convolution whose gradient is made of products, against XLA's; and the 1x1 convolution."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, NamedSharding, PartitionSpec

from jaxdiff.networks.convolution import LARGE, convolution, kernel_gradient, of_images, plain, pointwise

AXES = ("data", "fsdp", "sequence", "tensor")


def draw(b, side, c, d):
    shapes = (b, side, side, c), (3, 3, c, d), (b, side, side, d)
    return [jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(shapes)]


def assert_close(found, expected):
    np.testing.assert_allclose(found, expected, atol=1e-5 * float(jnp.abs(expected).max()))


def test_the_gradient_of_the_kernel_is_the_sum_over_pixels_of_their_products_by_neighbours():
    x, _, dy = draw(3, 5, 2, 4)
    found = of_images(x, dy)
    wide = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    for i in range(3):
        for j in range(3):
            expected = np.einsum("bhwc,bhwd->cd", wide[:, i : i + 5, j : j + 5], dy)
            np.testing.assert_allclose(found[i, j], expected, atol=1e-4)


# Either operand the narrower one; several images in one product, one image in several; a prime number of images.
@pytest.mark.parametrize(("b", "side", "c", "d"), [(4, 16, 6, 4), (4, 16, 4, 6), (2, 36, 2, 2), (7, 20, 3, 5)])
def test_values_and_gradients_are_those_of_the_plain_convolution(b, side, c, d):
    x, kernel, dy = draw(b, side, c, d)
    assert side * side >= LARGE
    assert jnp.array_equal(convolution(x, kernel), plain(x, kernel))
    found, expected = (jax.vjp(op, x, kernel)[1](dy) for op in (convolution, plain))
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b)


def test_every_other_derivative_is_there_too():
    """Forward, of either operand and both; reverse over forward, as in MeanFlow; of a gradient; recomputed."""
    x, kernel, _ = draw(2, 16, 3, 3)

    def derivatives(op):
        def along(kernel):
            return jax.jvp(lambda x: op(jnp.sin(op(x, kernel)), kernel), (x,), (jnp.cos(x),))[1]

        def slope(kernel):
            return jax.grad(lambda x: jnp.sin(op(x, kernel)).sum())(x)

        return (
            jax.jvp(op, (x, kernel), (jnp.cos(x), jnp.sin(kernel)))[1],
            jax.jvp(lambda kernel: op(x, kernel), (kernel,), (jnp.sin(kernel),))[1],
            jax.grad(lambda kernel: jnp.square(along(kernel)).sum())(kernel),
            jax.grad(lambda kernel: jnp.square(slope(kernel)).sum())(kernel),
            jax.grad(lambda kernel: jax.checkpoint(lambda k: jnp.sin(op(x, k)))(kernel).sum())(kernel),
        )

    for a, b in zip(derivatives(convolution), derivatives(plain), strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("side", [8, 16])
def test_in_loops_the_gradient_of_the_image_is_in_the_order_of_axes_that_xla_is_fast_in(side):
    x, kernel, _ = draw(1, side, 3, 3)

    def orders(op):
        def step(x, _):
            return jax.grad(lambda x: jnp.square(op(x, kernel)).sum())(x), None

        program = jax.jit(lambda x: jax.lax.scan(step, x, length=3)[0]).lower(x).compile()
        return set(re.findall("dim_labels=([^,]+)", program.as_text()))

    assert orders(convolution) == {"b01f_01io->b01f"} < orders(plain)


def test_small_images_other_types_and_other_platforms_have_the_plain_one():
    def products(side, dtype):
        x, kernel, dy = (a.astype(dtype) for a in draw(2, side, 2, 2))
        gradient = jax.make_jaxpr(lambda kernel: jax.vjp(lambda k: convolution(x, k), kernel)[1](dy))(kernel)
        return "dot_general" in str(gradient)

    assert products(16, "float32") and not products(15, "float32") and not products(16, "bfloat16")
    device = AbstractDevice("TPU v5 lite", 1, "tpu")
    tpu = AbstractMesh((2, 1, 1, 1), AXES, (AxisType.Auto,) * 4, abstract_device=device)
    with jax.sharding.use_abstract_mesh(tpu):
        assert not products(16, "float32")


@pytest.mark.parametrize("b", [8, 3])
def test_each_device_sums_its_images_and_there_is_one_sum_over_devices(b):
    mesh = jax.make_mesh((2, 2, 1, 2), AXES, axis_types=(AxisType.Auto,) * 4)
    x, _, dy = draw(b, 16, 3, 4)
    place = NamedSharding(mesh, PartitionSpec(("data", "fsdp") if b == 8 else None))
    with jax.set_mesh(mesh):
        program = jax.jit(kernel_gradient).lower(*jax.device_put((x, dy), place)).compile()
        assert_close(program(*jax.device_put((x, dy), place)), of_images(x, dy))
    text = program.as_text()
    assert text.count(" all-reduce(") == (b == 8) and " all-gather(" not in text


def test_a_1x1_convolution_is_a_product():
    x, _, _ = draw(2, 4, 3, 5)
    kernel = jax.random.normal(jax.random.key(4), (1, 1, 3, 5))
    expected = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    assert_close(pointwise(x, kernel), expected)
