"""What the backward pass recomputes instead of keeping it in memory.

none   nothing
dots   all but the products with parameters, and attention: norms, activations and attention maps, which are cheap
full   whole blocks, of which only the inputs are kept: one more forward pass
"""

from typing import Any, TypeVar

import flax.linen as nn
import jax
from jax.extend.core import Primitive

PRODUCTS = ("conv_general_dilated", "pallas_call", "dot_product_attention_fwd_wrapper")
"""Operations besides the matrix product whose results "dots" keeps: convolutions and the attention kernels."""

ATTENTION = "attention"
"""The name under which the result of attention is kept."""

Module = TypeVar("Module", bound=type[nn.Module])


def is_product(operation: Primitive, *_: Any, **params: Any) -> bool:
    """Whether "dots" keeps the result: a product with parameters, which has no batch dimensions, or attention's."""
    if operation.name == "dot_general":
        return params["dimension_numbers"][1] == ((), ())
    return operation.name in PRODUCTS or (operation.name == "name" and params["name"] == ATTENTION)


def recomputed(module: Module, remat: str, static_argnums: tuple[int, ...] = (), in_scan: bool = False) -> Module:
    """The module, recomputed in the backward pass as `remat` says; `in_scan` where it is the body of a scan."""
    policies = {"dots": is_product, "full": jax.checkpoint_policies.nothing_saveable}
    if remat not in policies:
        return module
    return nn.remat(module, policy=policies[remat], static_argnums=static_argnums, prevent_cse=not in_scan)
