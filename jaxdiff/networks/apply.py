"""The contact between networks and the rest: an `ApplyFn`, and initial parameters."""

from collections.abc import Mapping, Sequence
from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from jaxdiff.core.gaussian import expand
from jaxdiff.core.types import ApplyFn, Cond, Level, Params, Prediction
from jaxdiff.networks.dit import DiT
from jaxdiff.networks.layers import PERTURBED
from jaxdiff.networks.text_condition import until
from jaxdiff.networks.unet import UNet

Perturbed = Mapping[str, Mapping[str, Bool[np.ndarray, "*depth"]]]
"""Which attention maps are the identity, by the name of the module; `identity_attention` makes one."""


def apply_fn(network: nn.Module, prediction: Prediction, perturbed: Perturbed | None = None) -> ApplyFn:
    """``(params, x, cur, nxt, cond, key=None) -> network(c_in(cur) x, c_noise(cur), cond)``, float32.

    `cur` is one level for all or one per example; `nxt` is not used. A `key` switches drop-out on. With `perturbed`
    it is the network without some of its attention, on the same parameters: the reference of perturbed-attention
    guidance. The result raises ValueError where `perturbed` names a module that the parameters lack.
    """

    def apply(
        params: Params,
        x: Float[Array, "b h w c"],
        cur: Level,
        nxt: Level,
        cond: Cond,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "b *out"]:
        del nxt
        cur = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, x.shape[:1]), cur)
        inputs = expand(prediction.c_in(cur), x) * x
        rngs = None if key is None else {"dropout": key}
        noise, cond = prediction.c_noise(cur), until(cond, cur.sigma / cur.alpha)
        variables = {"params": params}
        if perturbed is not None:
            _check_names(perturbed, params)
            variables[PERTURBED] = perturbed
        out = network.apply(variables, inputs, noise, cond, train=key is not None, rngs=rngs)
        return cast(Array, out)

    return apply


def identity_attention(network: UNet | DiT, layers: Sequence[str | int] = ()) -> Perturbed:
    """The identity in place of the attention maps of `layers`, by default those in the middle of the network.

    `layers` are names for a `UNet` (`middle_attention`, `encoder_1_0_attention` ...) and numbers from 0 to depth - 1
    for a `DiT`. Raises: ValueError for a number that is none. Source: arXiv:2403.17377, Sec. 4.
    """
    if isinstance(network, DiT):
        chosen = layers or (network.depth // 2,)
        for number in chosen:
            if number not in range(network.depth):
                raise ValueError(f"there is no layer {number!r}: allowed are 0 to {network.depth - 1}")
        return {"blocks": {"identity": np.isin(np.arange(network.depth), chosen)}}
    return {str(name): {"identity": np.asarray(True)} for name in layers or ("middle_attention",)}


def _check_names(perturbed: Perturbed, params: Params) -> None:
    for name in perturbed:
        if name not in params:
            has = ", ".join(key for key in params if key.endswith("_attention")) or "none"
            raise ValueError(f"there is no attention {name!r} in this network: it has {has}")


def init_params(network: nn.Module, key: Key[Array, ""], image_shape: tuple[int, int, int], cond: Cond) -> Params:
    """Initial float32 parameters for images of shape ``(h, w, c)`` and conditions like the example `cond`.

    Traceable: `jit` it, or what it is part of.
    """
    x = jnp.zeros((1, *image_shape))
    cond = {name: leaf[:1] for name, leaf in cond.items()}
    return network.init(key, x, jnp.zeros((1,)), cond)["params"]
