"""FLOPs against closed forms."""

import jax
import jax.numpy as jnp
import pytest

from jaxdiff.planning.flops import count_function

A = jax.ShapeDtypeStruct((5, 7), jnp.float32)
B = jax.ShapeDtypeStruct((7, 11), jnp.float32)
PRODUCT = 2 * 5 * 7 * 11
IMAGE = jax.ShapeDtypeStruct((3, 8, 8, 4), jnp.float32)


def conv(x, w, stride=1, padding="VALID", groups=1):
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, w, (stride, stride), padding, dimension_numbers=numbers, feature_group_count=groups
    )


def test_matrix_products():
    assert count_function(jnp.matmul, A, B).dot == PRODUCT
    x, y = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((2, 3, 4, 5), (2, 6, 4, 5)))
    assert count_function(lambda x, y: jnp.einsum("bnhd,bmhd->bhnm", x, y), x, y).total == 2 * (2 * 4) * 3 * 6 * 5


def test_convolutions():
    w = jax.ShapeDtypeStruct((3, 3, 4, 6), jnp.float32)
    assert count_function(conv, IMAGE, w).conv == 2 * 3 * 6 * 6 * 6 * 9 * 4
    assert count_function(lambda x, w: conv(x, w, stride=2), IMAGE, w).conv == 2 * 3 * 3 * 3 * 6 * 9 * 4
    # With padding, the rows at both edges have two of three taps: 8 * 3 - 2 along each axis.
    assert count_function(lambda x, w: conv(x, w, padding="SAME"), IMAGE, w).conv == 2 * 3 * 22 * 22 * 6 * 4
    each = jax.ShapeDtypeStruct((3, 3, 1, 4), jnp.float32)
    assert count_function(lambda x, w: conv(x, w, groups=4), IMAGE, each).conv == 2 * 3 * 6 * 6 * 4 * 9


@pytest.mark.parametrize(("stride", "padding"), [(1, "SAME"), (2, "VALID"), (2, "SAME")])
def test_a_gradient_is_two_more_of_the_same(stride, padding):
    """Input's and filter's: the same triples of input, kernel and output, whatever zeros are laid between."""
    w = jax.ShapeDtypeStruct((3, 3, 4, 6), jnp.float32)

    def loss(x, w):
        return jnp.sum(conv(x, w, stride, padding) ** 2)

    assert count_function(jax.grad(loss, (0, 1)), IMAGE, w).conv == 3 * count_function(loss, IMAGE, w).conv > 0

    def product(a, b):
        return jnp.sum((a @ b) ** 2)

    assert count_function(jax.grad(product, (0, 1)), A, B).dot == 3 * PRODUCT


def test_recomputation_is_counted():
    def twice(a, b):
        return jnp.sum(jnp.sin(a @ b) @ jnp.ones((11, 11)))

    plain = count_function(jax.grad(twice), A, B).dot
    again = count_function(jax.grad(jax.checkpoint(twice)), A, B).dot
    assert again - plain == PRODUCT


def test_loops_branches_and_calls():
    square = jax.ShapeDtypeStruct((4, 4), jnp.float32)
    once = 2 * 4**3

    def scanned(x):
        return jax.lax.scan(lambda c, _: (jax.lax.fori_loop(0, 3, lambda i, c: c @ c, c), None), x, None, length=5)[0]

    assert count_function(scanned, square) == (15 * once, 0.0, frozenset())
    assert count_function(jax.jit(jax.vmap(lambda r: r @ r)), square).dot == 2 * 4 * 4
    loop = count_function(lambda x: jax.lax.while_loop(lambda x: x[0, 0] < 1, lambda x: x @ x, x), square)
    assert loop.dot == once and loop.notes == {"while: one turn"}
    branch = count_function(lambda x: jax.lax.cond(x[0, 0] < 1, lambda x: x @ x @ x, lambda x: x, x), square)
    assert branch.dot == 2 * once and len(branch.notes) == 1
    same = count_function(lambda x: jax.lax.cond(x[0, 0] < 1, lambda x: x @ x, lambda x: x @ x.T, x), square)
    assert same.dot == once and not same.notes


def test_each_device_of_a_shard_map_counts():
    mesh = jax.sharding.AbstractMesh((4,), ("x",))
    spec = jax.sharding.PartitionSpec("x")

    def whole(a, b):
        return jax.shard_map(jnp.matmul, mesh=mesh, in_specs=(spec, jax.sharding.PartitionSpec()), out_specs=spec)(a, b)

    a = jax.ShapeDtypeStruct((8, 7), jnp.float32)
    assert count_function(whole, a, B).dot == count_function(jnp.matmul, a, B).dot
