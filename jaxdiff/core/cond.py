"""Conditions: a mapping from names to arrays with a leading axis b; absent is -1 in integers, 0 in floats."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxdiff.core.types import Cond


def absent(cond: Cond) -> Cond:
    """The absent condition of the same shapes and types: what guidance compares with."""
    return {
        name: jnp.full_like(leaf, -1 if jnp.issubdtype(leaf.dtype, jnp.integer) else 0) for name, leaf in cond.items()
    }


def drop(key: Key[Array, ""] | Key[Array, "b"], cond: Cond, rate: float | Float[Array, ""]) -> Cond:
    """`cond` with each example's whole condition made absent with probability `rate` in [0, 1].

    Examples are independent; all leaves of one example go together. `key` is one for the batch, or one per
    example. Source: arXiv:2207.12598, Alg. 1.
    """
    if not cond:
        return cond
    b = next(iter(cond.values())).shape[0]
    if key.ndim:
        mask = jax.vmap(lambda k: jax.random.bernoulli(k, rate))(key)
    else:
        mask = jax.random.bernoulli(key, rate, (b,))
    gone = absent(cond)
    return {name: jax.vmap(jnp.where)(mask, gone[name], leaf) for name, leaf in cond.items()}
