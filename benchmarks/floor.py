"""The least that a program can take: its matrix products and convolutions, each of them run alone.

XLA's own kernels for exactly the operations of jaxdiff's programs, at the shapes that one device sees, on all devices
at once: no norms, no activations, no copies, no optimiser, and no device that waits for another. No program made of
these kernels takes less; what a program takes beyond it is all that could be saved without better kernels.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.flops import inner_jaxprs
from benchmarks.jaxdiff_side import config_of, fastest, image_shape, sampler_and_args, step_and_args
from benchmarks.sizes import spec_of
from benchmarks.worker import serve
from jaxdiff.training.cpu import use_cpu

KINDS = {"dot_general": "dot", "conv_general_dilated": "conv"}


def floor(spec: dict, seconds: float) -> dict[str, Any]:
    """{"dot": s, "conv": s, "programs": n} of one run of a spec's program, `seconds` of measuring for each shape."""
    made = spec_of(spec)
    use_cpu(made.batch)
    local = made._replace(batch=made.batch // jax.device_count())
    program = step_and_args if made.task == "train" else sampler_and_args
    function, args = program(config_of(local), image_shape(local))
    counted: dict[str, tuple[Any, float]] = {}
    for eqn, times in operations(jax.make_jaxpr(function)(*args).jaxpr):
        key = str((eqn.primitive, [v.aval for v in eqn.invars], eqn.params))
        counted[key] = (eqn, counted[key][1] + times if key in counted else times)
    nothing = fastest(everywhere(lambda x: x, (1,)), seconds)
    total: dict[str, Any] = {"dot": 0.0, "conv": 0.0, "programs": len(counted)}
    for eqn, times in counted.values():
        total[KINDS[eqn.primitive.name]] += times * max(0.0, fastest(alone(eqn), seconds) - nothing)
    return total


def operations(jaxpr: Any, times: float = 1.0) -> Iterator[tuple[Any, float]]:
    """(product or convolution, how often it runs), of a jaxpr and all that it calls."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in KINDS:
            yield eqn, times
        inside = times * (eqn.params["length"] if eqn.primitive.name == "scan" else 1)
        for value in eqn.params.values():
            for inner in inner_jaxprs(value):
                yield from operations(inner, inside)


def alone(eqn: Any) -> Callable[[], jax.Array]:
    """Runs this product or convolution."""
    return everywhere(partial(eqn.primitive.bind, **eqn.params), *(v.aval.shape for v in eqn.invars))


def everywhere(function: Callable[..., jax.Array], *shapes: tuple[int, ...]) -> Callable[[], jax.Array]:
    """Runs a function on every device at once, of operands of these shapes that each device has of its own."""
    mesh = jax.make_mesh((jax.device_count(),), ("device",))
    place, rng = P("device"), np.random.default_rng(0)

    @jax.jit
    @partial(jax.shard_map, mesh=mesh, in_specs=place, out_specs=place)
    def whole(*operands: jax.Array) -> jax.Array:
        return function(*(x[0] for x in operands))[None]

    values = [rng.standard_normal((mesh.size, *shape), np.float32) for shape in shapes]
    operands = [jax.device_put(value, NamedSharding(mesh, place)) for value in values]
    return lambda: whole(*operands).block_until_ready()


if __name__ == "__main__":
    serve(calls={"floor": floor})
