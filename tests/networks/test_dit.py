import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.networks.dit import Block, DiT, rotate, sincos_positions, stacked

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (2, 4, 8, 3))
NOISE = jnp.array([3.0, 700.0])
TINY = DiT(patch=2, width=16, depth=3, heads=2, num_classes=4)
ROTARY = TINY.clone(positions="rotary", qk_norm=True, learned_variance=True)


@pytest.fixture(scope="module")
def initial(quick):
    return {net: quick(net.init)(KEY, X, NOISE, {})["params"] for net in (TINY, ROTARY)}


@pytest.mark.parametrize("net", [TINY, ROTARY], ids=["sincos", "rotary"])
def test_output_starts_at_zero_and_bfloat16_stays_close_to_float32(net, initial, run, randomised):
    start = run(net, initial[net], X, NOISE)
    assert start.shape == (2, 4, 8, 6 if net.learned_variance else 3)
    np.testing.assert_array_equal(start, 0)
    params = randomised(initial[net], 0.2)
    wide, narrow = run(net, params, X, NOISE), run(net.clone(dtype="bfloat16"), params, X, NOISE)
    assert narrow.dtype == wide.dtype == jnp.float32
    assert float(wide.std()) > 0.1
    assert 0 < jnp.sqrt(jnp.mean(jnp.square(narrow - wide))) / wide.std() < 0.05


@pytest.mark.parametrize("grid", [None, (2, 4)], ids=["plain", "rotary"])
def test_the_scanned_blocks_are_the_blocks_one_after_the_other(grid, initial, quick, randomised):
    net = TINY if grid is None else ROTARY
    params = randomised(initial[net], 0.2)["blocks"]
    h, emb = jax.random.normal(KEY, (2, 8, 16)), jax.random.normal(KEY, (2, 16))
    fields = (2, 4, grid, net.qk_norm, 0.0, False, "float32")

    stack = stacked(net.depth, "none")(*fields)
    together, _ = quick(stack.apply)({"params": params}, h, emb)
    block = quick(Block(*fields).apply)
    for i in range(net.depth):
        h, _ = block({"params": jax.tree.map(lambda leaf, i=i: leaf[i], params)}, h, emb)
    np.testing.assert_allclose(together, h, rtol=1e-6, atol=1e-6)


def test_labels_and_their_absence(initial, run, randomised):
    params = randomised(initial[TINY], 0.2)
    null = run(TINY, params, X, NOISE, {"label": jnp.array([-1, -1])})
    np.testing.assert_array_equal(run(TINY, params, X, NOISE), null)
    labelled = run(TINY, params, X, NOISE, {"label": jnp.array([3, -1])})
    np.testing.assert_array_equal(labelled[1], null[1])
    assert jnp.abs(labelled[0] - null[0]).max() > 0.01


@pytest.mark.parametrize("net", [TINY, ROTARY], ids=["sincos", "rotary"])
def test_tokens_know_where_they_are(net, initial, run, randomised):
    """Two patches change places: without positions their outputs would just do the same."""
    params = randomised(initial[net], 0.2)
    swapped = jnp.concatenate([X[:, :, 2:4], X[:, :, :2], X[:, :, 4:]], axis=2)
    out, other = run(net, params, X, NOISE), run(net, params, swapped, NOISE)
    assert jnp.abs(other[:, :, 4:] - out[:, :, 4:]).max() > 1e-3


def test_rotations_depend_on_the_distance_alone():
    q, k = jax.random.normal(KEY, (2, 16))
    tiled = [jnp.tile(a, (1, 12, 1, 1)) for a in (q, k)]
    left, right = (rotate(a, 3, 4)[0, :, 0] for a in tiled)
    np.testing.assert_allclose(jnp.linalg.norm(left, axis=-1), jnp.linalg.norm(q), rtol=1e-5)
    scores = np.asarray(left @ right.T).reshape(3, 4, 3, 4)
    np.testing.assert_allclose(scores[1:, 1:, 1:, 1:], scores[:-1, :-1, :-1, :-1], atol=1e-4)
    assert np.ptp(scores[0, 0]) > 0.1  # and they do depend on it


def test_fixed_positions_tell_rows_and_columns_apart():
    grid = sincos_positions(3, 5, 16).reshape(3, 5, 16)
    np.testing.assert_array_equal(grid[:, :, :8], np.broadcast_to(grid[:1, :, :8], (3, 5, 8)))
    np.testing.assert_array_equal(grid[:, :, 8:], np.broadcast_to(grid[:, :1, 8:], (3, 5, 8)))
    flat = grid.reshape(15, 16)
    assert len(np.unique(flat, axis=0)) == 15
    np.testing.assert_allclose((flat**2).sum(-1), 8, rtol=1e-5)


def test_dropout_only_in_training(initial, run, quick, randomised):
    net, params = TINY.clone(dropout=0.5), randomised(initial[TINY], 0.2)
    np.testing.assert_array_equal(run(net, params, X, NOISE), run(TINY, params, X, NOISE))

    @quick
    def train(key):
        return net.apply({"params": params}, X, NOISE, {}, train=True, rngs={"dropout": key})

    assert jnp.abs(train(jax.random.key(1)) - train(jax.random.key(2))).max() > 0.01


@pytest.mark.parametrize(
    ("attributes", "message"),
    [({"patch": 3}, "multiple of 3.*--network.patch"), ({"heads": 3}, "--network.heads")],
)
def test_what_does_not_fit_is_refused(attributes, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(TINY.clone(**attributes).init, KEY, X, NOISE, {})
