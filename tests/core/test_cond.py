"""Conditions: what is absent, and dropping whole conditions example by example."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.core import cond as module
from jaxdiff.core.cond import absent

drop = jax.jit(module.drop)


def cond_of(b):
    return {
        "label": jnp.arange(b, dtype=jnp.int32),
        "augment": jnp.ones((b, 9)),
        "text": 1.0 + jnp.zeros((b, 3, 2), jnp.bfloat16),
    }


def gone(cond):
    """Which examples have no condition, which leaf by leaf must agree."""
    by_leaf = [
        np.asarray(cond["label"]) == -1,
        np.all(np.asarray(cond["augment"]) == 0, axis=1),
        np.all(np.asarray(cond["text"], np.float32) == 0, axis=(1, 2)),
    ]
    assert np.array_equal(by_leaf[0], by_leaf[1]) and np.array_equal(by_leaf[0], by_leaf[2])
    return by_leaf[0]


def test_absent_is_minus_one_and_zero():
    cond = absent(cond_of(5))
    assert gone(cond).all()
    assert {k: (v.shape, v.dtype) for k, v in cond.items()} == {k: (v.shape, v.dtype) for k, v in cond_of(5).items()}
    assert absent({}) == {}


@pytest.mark.parametrize("one_key", [True, False])
def test_drop_takes_whole_conditions_at_the_rate(one_key):
    b = 4096
    key = jax.random.key(0) if one_key else jax.random.split(jax.random.key(0), b)
    cond = drop(key, cond_of(b), 0.3)
    lost = gone(cond)
    assert abs(lost.mean() - 0.3) < 5 * (0.3 * 0.7 / b) ** 0.5
    # Independent: an example's loss says nothing of its neighbour's.
    assert abs(np.corrcoef(lost[1:], lost[:-1])[0, 1]) < 5 / b**0.5
    assert np.array_equal(np.asarray(cond["label"])[~lost], np.arange(b)[~lost])
    assert np.all(np.asarray(cond["augment"])[~lost] == 1)
    assert not gone(drop(key, cond_of(b), 0.0)).any() and gone(drop(key, cond_of(b), 1.0)).all()


def test_an_examples_key_decides_alone():
    keys = jax.random.split(jax.random.key(1), 32)
    lost = gone(drop(keys, cond_of(32), 0.5))
    assert np.array_equal(gone(drop(keys[8:], cond_of(24), 0.5)), lost[8:])
    assert 0 < lost.sum() < 32


def test_no_condition_stays_none():
    assert module.drop(jax.random.key(0), {}, 0.5) == {}


def test_the_picture_and_all_else_are_also_dropped_apart():
    b, key = 8192, jax.random.key(2)
    found = drop(key, {"image": jnp.ones((b, 2, 2, 1)), "label": jnp.arange(b)}, 0.1, 0.2)
    picture, label = np.asarray(found["image"])[:, 0, 0, 0] == 0, np.asarray(found["label"]) == -1
    for share, want in ((picture & label, 0.1), (picture & ~label, 0.2), (~picture & label, 0.2)):
        assert abs(share.mean() - want) < 5 * (want * (1 - want) / b) ** 0.5
    np.testing.assert_array_equal(
        drop(key, cond_of(64), 0.4, 0.0)["label"], drop(key, {**cond_of(64), "image": jnp.ones((64, 1))}, 0.4)["label"]
    )
