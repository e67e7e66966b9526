"""Floating-point operations of a JAX function, counted in its jaxpr: matrix products and convolutions.

A multiply-add is two. Loops count as often as they run, a branch as its dearest side. Padding counts as data, as it
does for PyTorch's counter (`jaxdiff.planning.flops` leaves it out); the zeros of a dilated input, which belong to the
gradient of a stride, do not. Needs JAX alone, for the peers have environments without jaxdiff.
"""

import math
from collections.abc import Callable
from typing import Any

import jax


def count_flops(function: Callable, *args: Any) -> float:
    """Operations of ``function(*args)``; the arguments may be abstract."""
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


def _count(jaxpr: Any) -> float:
    total = 0.0
    for eqn in jaxpr.eqns:
        name, params = eqn.primitive.name, eqn.params
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            inner = math.prod(eqn.invars[0].aval.shape[i] for i in contracted)
            total += 2.0 * inner * math.prod(eqn.outvars[0].aval.shape)
        elif name == "conv_general_dilated":
            kernel = eqn.invars[1].aval.shape
            features = kernel[params["dimension_numbers"].rhs_spec[0]]
            outputs = math.prod(eqn.outvars[0].aval.shape)
            total += 2.0 * outputs * math.prod(kernel) / features / math.prod(params["lhs_dilation"])
        elif name == "cond":
            total += max(_count(branch.jaxpr) for branch in params["branches"])
        elif name == "scan":
            total += params["length"] * _count(params["jaxpr"].jaxpr)
        elif name == "while":
            raise ValueError("a while loop runs an unknown number of times")
        else:
            total += sum(_count(inner) for value in params.values() for inner in inner_jaxprs(value))
    return total


def inner_jaxprs(value: Any) -> list[Any]:
    """The jaxprs in a parameter of an equation: the bodies of jit, remat, custom derivatives, shard_map."""
    values = value if isinstance(value, tuple | list) else [value]
    bodies = [getattr(v, "jaxpr", v) for v in values]
    return [body for body in bodies if hasattr(body, "eqns")]
