"""FLOPs of a function, counted from its jaxpr: matrix products and convolutions, a multiplication and an addition each.

    dot_general             2 x batch x rows x columns x contracted
    conv_general_dilated    2 x the pairs of an input and an output element that a kernel element joins, so that
                            neither padding nor the zeros between dilated elements count
    scan                    its length x its body
    while                   one turn of its body (the number of turns is not in the jaxpr): said in `notes`
    cond                    the dearest branch: said in `notes` where branches differ
    shard_map               devices x its body, which is one device's part

Recomputation (remat) is in the jaxpr of a gradient, and so counts as often as it happens. Everything else, cheap by
comparison on a chip made for matrix products, is left out.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend import core


class Flops(NamedTuple):
    """Of one call, on all devices together."""

    dot: float = 0.0
    """Matrix products."""
    conv: float = 0.0
    """Convolutions."""
    notes: frozenset[str] = frozenset()
    """What could not be counted exactly."""

    @property
    def total(self) -> float:
        return self.dot + self.conv

    def times(self, n: float) -> "Flops":
        return Flops(self.dot * n, self.conv * n, self.notes)


def add(a: Flops, b: Flops) -> Flops:
    """The sum, and the notes of both."""
    return Flops(a.dot + b.dot, a.conv + b.conv, a.notes | b.notes)


def count(jaxpr: core.Jaxpr) -> Flops:
    """The FLOPs of a jaxpr."""
    total = Flops()
    for eqn in jaxpr.eqns:
        total = add(total, count_equation(eqn))
    return total


def count_equation(eqn: core.JaxprEqn) -> Flops:
    """The FLOPs of one equation with all that it calls."""
    name, params = eqn.primitive.name, eqn.params
    if name == "dot_general":
        return Flops(dot=dot_flops(eqn))
    if name == "conv_general_dilated":
        return Flops(conv=conv_flops(eqn))
    if name == "pallas_call":
        return kernel_flops(eqn)
    inner = [count(jaxpr) for jaxpr in sub_jaxprs(params)]
    if not inner:
        return Flops()
    if name == "cond":
        dearest = max(inner, key=lambda flops: flops.total)
        differ = any(flops.total != dearest.total for flops in inner)
        return dearest._replace(notes=dearest.notes | ({"cond: the dearest branch"} if differ else set()))
    total = inner[0]
    for flops in inner[1:]:
        total = add(total, flops)
    if name == "scan":
        return total.times(float(params["length"]))
    if name == "while":
        return total._replace(notes=total.notes | ({"while: one turn"} if total.total else set()))
    if name == "shard_map":
        return total.times(float(params["mesh"].size))
    return total


def sub_jaxprs(params: dict[str, Any]) -> Iterator[core.Jaxpr]:
    """The jaxprs among an equation's parameters."""
    for value in params.values():
        for leaf in value if isinstance(value, tuple | list) else (value,):
            if isinstance(leaf, core.ClosedJaxpr):
                yield leaf.jaxpr
            elif isinstance(leaf, core.Jaxpr):
                yield leaf


def shape_of(atom: Any) -> tuple[int, ...]:
    """The shape of an equation's argument or result."""
    return atom.aval.shape


def dot_flops(eqn: core.JaxprEqn) -> float:
    """2 x the output's elements x the contracted ones."""
    (contracted, _), _ = eqn.params["dimension_numbers"]
    left = shape_of(eqn.invars[0])
    return 2.0 * math.prod(shape_of(eqn.outvars[0])) * math.prod(left[i] for i in contracted)


def conv_flops(eqn: core.JaxprEqn) -> float:
    """2 x batch x input channels of a group x output channels x the joined pairs along each axis of the image."""
    params, dims = eqn.params, eqn.params["dimension_numbers"]
    left, right, out = (shape_of(v) for v in (*eqn.invars[:2], eqn.outvars[0]))
    pairs = 1
    for i, (low, high) in enumerate(params["padding"]):
        del high
        pairs *= joined_pairs(
            size=left[dims.lhs_spec[2 + i]],
            kernel=right[dims.rhs_spec[2 + i]],
            out=out[dims.out_spec[2 + i]],
            stride=params["window_strides"][i],
            low=low,
            spread=params["lhs_dilation"][i],
            kernel_spread=params["rhs_dilation"][i],
        )
    batch, features = out[dims.out_spec[0]], out[dims.out_spec[1]]
    # With batch groups an output channel sees one part of the batch, so that `batch` is that part's size already.
    return 2.0 * batch * features * right[dims.rhs_spec[1]] * pairs


def joined_pairs(size: int, kernel: int, out: int, stride: int, low: int, spread: int, kernel_spread: int) -> int:
    """Pairs of an output and a kernel element that meet a real input element, along one axis."""
    place = np.arange(out)[:, None] * stride + np.arange(kernel)[None] * kernel_spread - low
    return int(np.sum((place >= 0) & (place < (size - 1) * spread + 1) & (place % spread == 0)))


def kernel_flops(eqn: core.JaxprEqn) -> Flops:
    """What a Pallas kernel says of itself, or its body at every point of its grid."""
    estimate = eqn.params.get("cost_estimate")
    if estimate is not None:
        return Flops(dot=float(estimate.flops), notes=frozenset({"kernels: their own estimates"}))
    body = count(eqn.params["jaxpr"])
    return body.times(float(math.prod(eqn.params["grid_mapping"].grid)))


def count_function(function, *args, **kwargs) -> Flops:
    """The FLOPs of a call; arguments may be `jax.ShapeDtypeStruct`s."""
    return count(jax.make_jaxpr(function)(*args, **kwargs).jaxpr)
