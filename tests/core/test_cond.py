"""Conditions: what is absent, and dropping whole conditions example by example."""

import jax
import jax.numpy as jnp
import pytest

from jaxdiff.core.cond import absent, drop


def cond_of(b):
    return {
        "label": jnp.arange(b, dtype=jnp.int32),
        "augment": jnp.ones((b, 9)),
        "text": 1.0 + jnp.zeros((b, 3, 2), jnp.bfloat16),
    }


def gone(cond):
    """Which examples have no condition, which leaf by leaf must agree."""
    by_leaf = [
        cond["label"] == -1,
        jnp.all(cond["augment"] == 0, axis=1),
        jnp.all(cond["text"] == 0, axis=(1, 2)),
    ]
    assert jnp.array_equal(by_leaf[0], by_leaf[1]) and jnp.array_equal(by_leaf[0], by_leaf[2])
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
    cond = jax.jit(drop)(key, cond_of(b), 0.3)
    lost = gone(cond)
    assert abs(lost.mean() - 0.3) < 5 * (0.3 * 0.7 / b) ** 0.5
    # Independent: an example's loss says nothing of its neighbour's.
    assert abs(jnp.corrcoef(lost[1:], lost[:-1])[0, 1]) < 5 / b**0.5
    assert jnp.array_equal(jnp.where(lost, 0, cond["label"]), jnp.where(lost, 0, jnp.arange(b)))
    assert jnp.all(jnp.where(lost[:, None], 1, cond["augment"]) == 1)
    assert not gone(drop(key, cond_of(b), 0.0)).any() and gone(drop(key, cond_of(b), 1.0)).all()


def test_an_examples_key_decides_alone():
    keys = jax.random.split(jax.random.key(1), 32)
    lost = gone(drop(keys, cond_of(32), 0.5))
    assert jnp.array_equal(gone(drop(keys[8:], cond_of(24), 0.5)), lost[8:])
    assert 0 < lost.sum() < 32


def test_no_condition_stays_none():
    assert drop(jax.random.key(0), {}, 0.5) == {}
