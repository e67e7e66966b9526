"""Attention maps that are taken from another example: prompt-to-prompt's side of the network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.core.cond import absent
from jaxdiff.core.predictions import V
from jaxdiff.core.types import Level
from jaxdiff.networks.apply import apply_fn
from jaxdiff.networks.attention import borrowed, plain
from jaxdiff.networks.text_condition import taken, until
from jaxdiff.networks.unet import UNet

NET = UNet(
    channels=8,
    channel_mults=(1, 2),
    blocks_per_level=1,
    attention_resolutions=(),
    heads=2,
    transformer_depths=(0, 1),
    middle_transformer=1,
    text_width=6,
)
X = jax.random.normal(jax.random.key(1), (4, 8, 8, 2))
X = X.at[2:].set(X[:2])  # the target's pictures are the source's
WORDS = {"text_tokens": jax.random.normal(jax.random.key(2), (4, 3, 6)), "text_mask": jnp.ones((4, 3))}
AT = Level(jnp.float32(0.6), jnp.float32(0.8))


def leaves(words, pixels, share=(0.0, 0.0)):
    """The leaves of a batch of two sources and two targets."""
    own = -jnp.ones((2, 3), jnp.int32)
    return {
        "text_words": jnp.concatenate([own, jnp.broadcast_to(jnp.array(words, jnp.int32), (2, 3))]),
        "text_pixels": jnp.array([-1, -1, pixels, pixels], jnp.int32),
        "text_until": jnp.broadcast_to(jnp.array(share, jnp.float32), (4, 2)),
    }


@pytest.fixture(scope="module")
def params(randomised):
    shapes = jax.eval_shape(NET.init, jax.random.key(0), X, jnp.ones(4), {})["params"]
    return randomised(jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes), 0.3)


@pytest.fixture(scope="module")
def ask(params, quick):
    run = quick(lambda cond, x: apply_fn(NET, V())(params, x, AT, AT, cond))
    return lambda cond, x=X: run({**WORDS, **cond}, x)


@pytest.mark.parametrize("mask", [None, jnp.array([[True, True, False], [True, True, True]])])
def test_maps_are_the_sources_and_values_ones_own(mask):
    q, k, v = (jax.random.normal(jax.random.key(i), (2, n, 2, 4)) for i, n in ((0, 5), (1, 3), (2, 3)))
    none = jnp.full((2, 3), -1)
    np.testing.assert_allclose(borrowed(q, k, v, mask, none), plain(q, k, v, mask), atol=1e-5)
    all_of_them = none.at[1].set(jnp.arange(3))
    want = plain(q[:1], k[:1], v[1:], None if mask is None else mask[:1])
    out = borrowed(q, k, v, mask, all_of_them)
    np.testing.assert_allclose(out[1:], want, atol=1e-5)
    np.testing.assert_allclose(out[:1], plain(q, k, v, mask)[:1], atol=1e-5)
    # Where one word is another's neighbour, it brings that one's map to its own value.
    moved = borrowed(q, k, v, None, none.at[1].set(jnp.array([2, 0, 1])))[1:]
    np.testing.assert_allclose(moved, plain(q[:1], k[:1], v[1:, jnp.array([1, 2, 0])]), atol=1e-5)


def test_absent_leaves_change_nothing(ask):
    plain = ask({})
    np.testing.assert_allclose(ask(leaves([-1, -1, -1], -1)), plain, atol=1e-5)
    np.testing.assert_allclose(ask(absent(leaves([0, 1, 2], 0))), plain, atol=1e-5)
    np.testing.assert_allclose(ask(leaves([0, 1, 2], 0, (np.inf, np.inf))), plain, atol=1e-5)


def test_the_targets_alone_change_and_only_while_it_is_noisy(ask):
    plain, ratio = ask({}), float(AT.sigma / AT.alpha)
    for words, pixels, share in (([0, 1, 2], -1, (ratio - 0.1, 9.0)), ([-1, -1, -1], 0, (9.0, ratio - 0.1))):
        made = ask(leaves(words, pixels, share), X.at[2:].add(0.5))
        free = ask(leaves(words, pixels, (ratio + 0.1, ratio + 0.1)), X.at[2:].add(0.5))
        np.testing.assert_allclose(made[:2], plain[:2], atol=1e-5)
        assert jnp.abs(made[2:] - free[2:]).max() > 1e-3


def test_the_same_text_with_the_sources_maps_is_the_source(ask):
    same = {**WORDS, "text_tokens": WORDS["text_tokens"].at[2:].set(WORDS["text_tokens"][:2])}
    made = ask({**same, **leaves([0, 1, 2], 0)})
    np.testing.assert_allclose(made[2:], made[:2], atol=1e-5)


def test_the_token_before_all_others_goes_with_its_text():
    words, pixels = taken({"text_words": jnp.array([[-1, -1], [1, -1]])}, null=True)
    assert words.tolist() == [[-1, -1, -1], [0, 2, -1]] and pixels is None
    assert taken({"text_words": jnp.array([[1, -1]])}, null=False)[0].tolist() == [[1, -1]]
    other = {"label": jnp.zeros(2)}
    assert until(other, jnp.ones(2)) is other
