"""The contact between networks and the rest: an `ApplyFn`, and initial parameters."""

from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxdiff.core.gaussian import expand
from jaxdiff.core.types import ApplyFn, Cond, Level, Params, Prediction


def apply_fn(network: nn.Module, prediction: Prediction) -> ApplyFn:
    """``(params, x, cur, nxt, cond, key=None) -> network(c_in(cur) x, c_noise(cur), cond)``, float32.

    `cur` is one level for all or one per example; `nxt` is not used. A `key` switches drop-out on.
    """

    def apply(
        params: Params,
        x: Float[Array, "b h w c"],
        cur: Level,
        nxt: Level,
        cond: Cond,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "b h w c_out"]:
        del nxt
        cur = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, x.shape[:1]), cur)
        inputs = expand(prediction.c_in(cur), x) * x
        rngs = None if key is None else {"dropout": key}
        noise = prediction.c_noise(cur)
        out = network.apply({"params": params}, inputs, noise, cond, train=key is not None, rngs=rngs)
        return cast(Array, out)

    return apply


def init_params(network: nn.Module, key: Key[Array, ""], image_shape: tuple[int, int, int], cond: Cond) -> Params:
    """Initial float32 parameters for images of shape ``(h, w, c)`` and conditions like the example `cond`.

    Traceable: `jit` it, or what it is part of.
    """
    x = jnp.zeros((1, *image_shape))
    cond = {name: leaf[:1] for name, leaf in cond.items()}
    return network.init(key, x, jnp.zeros((1,)), cond)["params"]
