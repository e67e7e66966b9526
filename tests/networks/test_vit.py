"""Laws of the plain transformers: DINOv2 and CLIP. What only the published models can tell is in tests/parity."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.networks.clip import CLIP, CLIP_B16, CLIP_B32, CLIP_L14, CLIP_L14_336, TextTower, VisionTower, unit
from jaxdiff.networks.dinov2 import DINOV2_B14, DINOV2_G14, DINOV2_L14, DINOV2_S14, DINOv2, with_registers
from jaxdiff.networks.vit import Block, cubic_weights, encode, gelu, quick_gelu, resize_positions

KEY = jax.random.key(0)
DINO = DINOv2(width=16, depth=2, heads=2, hidden=32, registers=3, patch=2, grid=4)
TEXT = TextTower(width=16, depth=3, heads=2, vocab=40, length=8, embedding=6, eos=30)
VISION = VisionTower(width=16, depth=2, heads=4, patch=4, size=8, embedding=6)
TOKENS = jnp.array([[5, 7, 30, 0, 9, 30], [1, 2, 3, 35, 30, 4]])


class Stack(nn.Module):
    """Blocks on their own."""

    block: Block
    depth: int

    @nn.compact
    def __call__(self, x):
        return encode(self.block, self.depth, x)


@pytest.fixture(scope="module")
def outcome(quick):
    """``(net, *inputs, params=None) -> (outputs, params)``, with parameters that hide no branch."""
    compiled = {}

    def outcome(net, *inputs, params=None):
        if net not in compiled:
            compiled[net] = quick(net.apply)
        params = drawn(jax.eval_shape(net.init, KEY, *inputs)["params"]) if params is None else params
        return compiled[net]({"params": params}, *inputs), params

    return outcome


def drawn(shapes):
    """Normal parameters, those that scale around one; without a program to compile."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        centre = 1.0 if "scale" in jax.tree_util.keystr(path[-1:]) else 0.0
        return jnp.asarray(centre + 0.25 * rng.standard_normal(leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def images(*shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(1), (*shape, 3))


def count(net, *shapes) -> int:
    params = jax.eval_shape(net.init, KEY, *shapes)["params"]
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize(
    ("net", "published"),
    [(DINOV2_S14, 22_056_576), (DINOV2_B14, 86_580_480), (DINOV2_L14, 304_368_640), (DINOV2_G14, 1_136_480_768)],
    ids=["S", "B", "L", "g"],
)
def test_dinov2_has_the_published_count(net, published):
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    # Less the token that masks patches in the training of the backbone.
    assert count(net, image) == published - net.width
    assert count(with_registers(net), image) == published + 3 * net.width


@pytest.mark.parametrize(
    ("net", "published"),
    [(CLIP_B32, 151_277_313), (CLIP_B16, 149_620_737), (CLIP_L14, 427_616_513), (CLIP_L14_336, 427_944_193)],
    ids=["B/32", "B/16", "L/14", "L/14@336"],
)
def test_clip_has_the_published_count(net, published):
    image = jax.ShapeDtypeStruct((1, net.vision.size, net.vision.size, 3), jnp.float32)
    assert count(net, image, jax.ShapeDtypeStruct((1, 77), jnp.int32)) == published


def test_activations():
    x = jnp.linspace(-4.0, 4.0, 41)
    np.testing.assert_allclose(gelu(x), x * jax.scipy.stats.norm.cdf(x), atol=1e-6)
    for activation in (gelu, quick_gelu):
        np.testing.assert_allclose(activation(x) - activation(-x), x, atol=1e-6)  # F(x) + F(-x) = 1
    gap = jnp.abs(quick_gelu(x) - gelu(x)).max()
    assert 0.01 < gap < 0.03  # an approximation, and not a fine one


def test_tokens_without_positions_are_a_set_unless_causal(outcome):
    x, order = jax.random.normal(KEY, (2, 5, 16)), jnp.array([3, 1, 4, 0, 2])
    for gated, causal in ((True, False), (False, True)):
        stack = Stack(Block(heads=2, hidden=24, gated=gated, layer_scale=1.0, causal=causal), 2)
        out, params = outcome(stack, x)
        moved, _ = outcome(stack, x[:, order], params=params)
        gap = jnp.abs(moved.last - out.last[:, order]).max()
        assert gap > 0.1 if causal else gap < 1e-5


def test_penultimate_is_what_the_last_block_gets(outcome):
    x, block = jax.random.normal(KEY, (2, 4, 16)), Block(heads=2, hidden=24, layer_scale=0.5)
    out, params = outcome(Stack(block, 3), x)
    passed = [x]
    for i in range(3):
        own = jax.tree.map(lambda leaf, i=i: leaf[i], params["block"])
        passed.append(outcome(block, passed[-1], params=own)[0])
    np.testing.assert_allclose(out.penultimate, passed[2], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(out.last, passed[3], rtol=1e-5, atol=1e-5)


def test_scaled_by_zero_a_block_is_the_identity(outcome):
    x, block = jax.random.normal(KEY, (2, 4, 16)), Block(heads=2, hidden=24, layer_scale=0.0)
    _, params = outcome(block, x)
    off = {**params, "scale_0": jnp.zeros(16), "scale_1": jnp.zeros(16)}
    np.testing.assert_array_equal(outcome(block, x, params=off)[0], x)


@pytest.mark.parametrize("antialias", [False, True])
def test_cubic_weights(antialias):
    for size, new, offset in ((37, 16, 0.0), (37, 16, 0.1), (5, 9, 0.0)):
        np.testing.assert_allclose(cubic_weights(size, new, offset, antialias).sum(1), 1, atol=1e-12)
    weights = cubic_weights(7, 4, 0.0, antialias)
    np.testing.assert_allclose(weights, weights[::-1, ::-1], atol=1e-12)
    np.testing.assert_allclose(cubic_weights(6, 6, 0.0, antialias), np.eye(6), atol=1e-12)
    assert np.abs(cubic_weights(6, 6, 0.1, antialias) - np.eye(6)).max() > 0.01
    # How far one place reaches: four samples, or all that lie below the stretched kernel.
    assert (cubic_weights(37, 16, 0.0, antialias)[8] != 0).sum() == (9 if antialias else 4)


def test_the_wider_kernel_is_that_of_jax_image():
    for size, new in ((37, 16), (5, 9)):
        signal = jax.random.normal(KEY, (size,))
        expected = jax.image.resize(signal, (new,), "cubic", antialias=True, precision=jax.lax.Precision.HIGHEST)
        np.testing.assert_allclose(cubic_weights(size, new, antialias=True) @ np.asarray(signal), expected, atol=1e-5)


def test_resized_positions_keep_rows_and_columns_apart():
    row, col = np.divmod(np.arange(25.0), 5)
    grid = resize_positions(jnp.asarray(np.stack([row, col], 1), jnp.float32), 3, 7).reshape(3, 7, 2)
    np.testing.assert_allclose(grid[..., 0], np.broadcast_to(grid[:, :1, 0], (3, 7)), atol=1e-5)
    np.testing.assert_allclose(grid[..., 1], np.broadcast_to(grid[:1, :, 1], (3, 7)), atol=1e-5)
    assert (np.diff(grid[:, 0, 0]) > 1).all() and (np.diff(grid[0, :, 1]) > 0.4).all()


def test_dinov2_patches_that_move_with_their_positions_leave_the_class_alone(outcome):
    x = images(2, 8, 8)
    out, params = outcome(DINO, x)
    assert out.cls.shape == (2, 16) and out.registers.shape == (2, 3, 16) and out.patches.shape == (2, 4, 4, 16)
    swapped = {**params, "positions": params["positions"].at[1:].set(jnp.roll(params["positions"][1:], 8, axis=0))}
    moved, _ = outcome(DINO, jnp.roll(x, 4, axis=1), params=swapped)
    np.testing.assert_allclose(moved.cls, out.cls, atol=1e-4)
    np.testing.assert_allclose(moved.registers, out.registers, atol=1e-4)
    np.testing.assert_allclose(moved.patches, jnp.roll(out.patches, 2, axis=1), atol=1e-4)
    stayed, _ = outcome(DINO, jnp.roll(x, 4, axis=1), params=params)
    assert jnp.abs(stayed.cls - out.cls).max() > 1e-2


def test_dinov2_resizes_its_positions_only_for_other_sizes(outcome):
    """Where they all agree there is nothing to interpolate, and where they do not the offset tells."""
    other = DINO.clone(offset=0.0, antialias=True)
    for side, tells in ((8, False), (6, True)):
        out, params = outcome(DINO, images(2, side, side))
        gap = jnp.abs(outcome(other, images(2, side, side), params=params)[0].cls - out.cls).max()
        assert (gap > 1e-3) == tells
        constant = {**params, "positions": jnp.broadcast_to(params["positions"][:1], (17, 16))}
        out, _ = outcome(DINO, images(2, side, side), params=constant)
        np.testing.assert_allclose(
            outcome(other, images(2, side, side), params=constant)[0].cls, out.cls, rtol=1e-4, atol=1e-4
        )
    with pytest.raises(ValueError, match="height 7 must be a multiple of 2"):
        jax.eval_shape(DINO.init, KEY, images(1, 7, 8))


def test_text_sees_only_what_came_before(outcome):
    out, params = outcome(TEXT, TOKENS)
    other, _ = outcome(TEXT, TOKENS.at[:, 3].set(11), params=params)
    for kind in ("last", "penultimate"):
        gap = jnp.abs(getattr(other, kind) - getattr(out, kind)).max(-1)
        assert (gap[:, :3] == 0).all() and (gap[:, 3:] > 1e-3).all()
    # The first text ended before the change, the second did not.
    gap = jnp.abs(other.embedding - out.embedding).max(-1)
    assert gap[0] == 0 and gap[1] > 1e-3


def test_padding_and_length_change_no_embedding(outcome):
    out, params = outcome(TEXT, TOKENS)
    longer = jnp.concatenate([TOKENS, jnp.array([[30, 30], [0, 0]])], axis=1)
    padded, _ = outcome(TEXT, longer, params=params)
    np.testing.assert_allclose(padded.embedding, out.embedding, atol=1e-5)
    with pytest.raises(ValueError, match="texts of 9 tokens: at most 8"):
        jax.eval_shape(TEXT.init, KEY, jnp.zeros((1, 9), jnp.int32))


def test_the_end_of_a_text(outcome):
    """The first end-of-text token, or the first highest one: they differ once the vocabulary was extended."""
    out, params = outcome(TEXT, TOKENS)
    np.testing.assert_array_equal(out.pooled, jnp.stack([out.last[0, 2], out.last[1, 4]]))
    highest, _ = outcome(TEXT.clone(eos=None), TOKENS, params=params)
    np.testing.assert_array_equal(highest.pooled, jnp.stack([out.last[0, 2], out.last[1, 3]]))


def test_logits_are_cosines(outcome):
    net, x = CLIP(vision=VISION, text=TEXT), images(3, 8, 8)
    logits, params = outcome(net, x, TOKENS)
    vision, _ = outcome(VISION, x, params=params["vision"])
    text, _ = outcome(TEXT, TOKENS, params=params["text"])
    cosines = unit(vision.embedding) @ unit(text.embedding).T
    np.testing.assert_allclose(jnp.linalg.norm(unit(text.embedding), axis=-1), 1, rtol=1e-6)
    np.testing.assert_allclose(logits, jnp.exp(params["logit_scale"]) * cosines, rtol=1e-3, atol=1e-4)
    larger = jax.tree.map(lambda leaf: leaf, params)
    larger["vision"]["projection"]["kernel"] *= 3.0
    np.testing.assert_allclose(outcome(net, x, TOKENS, params=larger)[0], logits, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="images of 8 x 12: only 8 x 8"):
        jax.eval_shape(VISION.init, KEY, images(1, 8, 12))


def test_bfloat16_stays_close_to_float32(outcome):
    for net, inputs in ((VISION, images(2, 8, 8)), (TEXT, TOKENS)):
        wide, params = outcome(net, inputs)
        narrow, _ = outcome(net.clone(dtype="bfloat16"), inputs, params=params)
        for a, b in zip(wide, narrow, strict=True):
            assert a.dtype == b.dtype == jnp.float32
            assert 0 < jnp.sqrt(jnp.mean(jnp.square(a - b))) / a.std() < 0.05


@pytest.mark.parametrize(("heads", "depth", "message"), [(3, 1, "multiple of the number of heads"), (2, 0, "depth 0")])
def test_what_does_not_fit_is_refused(heads, depth, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(TEXT.clone(heads=heads, depth=depth).init, KEY, TOKENS)
