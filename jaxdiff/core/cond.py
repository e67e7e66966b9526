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


def drop(
    key: Key[Array, ""] | Key[Array, "b"],
    cond: Cond,
    rate: float | Float[Array, ""],
    apart: float | Float[Array, ""] = 0.0,
) -> Cond:
    """`cond` with each example's whole condition made absent with probability `rate` in [0, 1].

    Examples are independent; all leaves of one example go together. With a probability `apart` each, the picture that
    is a condition is absent alone, and all but the picture (rate + 2 apart <= 1). `key` is one for the batch, or one
    per example. Source: arXiv:2207.12598, Alg. 1; arXiv:2211.09800, Sec. 3.2.1 (apart).
    """
    if not cond:
        return cond
    b = next(iter(cond.values())).shape[0]
    u = jax.vmap(jax.random.uniform)(key) if key.ndim else jax.random.uniform(key, (b,))
    everything, gone = u < rate, absent(cond)
    picture, others = (everything | ((low <= u) & (u < low + apart)) for low in (rate, rate + apart))
    masks = {name: picture if name == "image" else others for name in cond}
    return {name: jax.vmap(jnp.where)(masks[name], gone[name], leaf) for name, leaf in cond.items()}
