"""DiT-XL/2 on TPU v5e, compiled for chips that are not there: jaxdiff against a plain DiT.

The largest batch, its memory, the seconds to compile. The compiler says whether a step fits; nothing is run.
Parameters, moments and averages are float32, the rest bfloat16.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from benchmarks.jaxdiff_side import config_of
from benchmarks.plain_dit import PlainDiT, plain_state, plain_step
from benchmarks.sizes import SIDE, Spec
from benchmarks.worker import serve
from jaxdiff import build
from jaxdiff.commands.plan_step import abstract_batch, open_slice
from jaxdiff.networks.dit import DiT
from jaxdiff.planning.chips import parse_slice
from jaxdiff.planning.search import largest
from jaxdiff.training.engine import jit_step
from jaxdiff.training.sharding import MeshShape, make_mesh

GIB = 2**30
SHAPE = (SIDE, SIDE, 4)


class Program(NamedTuple):
    """A step, ready to be compiled: jitted, with its abstract arguments, on a mesh."""

    step: Any
    args: tuple
    mesh: Any


def jaxdiff_program(devices: list[Any], batch: int, depth: int, fsdp: bool, remat: str) -> Program:
    """The step of train.py; over several chips the state is shared out (FSDP) or copied."""
    network = DiT(depth=depth, width=1152, heads=16, dtype="bfloat16").clone(remat=remat)
    shape = MeshShape(fsdp=len(devices)) if fsdp else MeshShape()
    config = dataclasses.replace(config_of(Spec("dit", "train", batch)), network=network, batch_size=batch, mesh=shape)
    mesh = make_mesh(shape, devices)
    (_, state), images = build.state_fn(config, mesh), abstract_batch(config, mesh)
    return Program(jit_step(mesh, build.step_fn(config), state), (state, images), mesh)


def plain_program(devices: list[Any], batch: int, depth: int, donate: bool) -> Program:
    """The plain DiT's step; over several chips the batch is shared out and the state copied."""
    network, rule = PlainDiT(depth=depth), optax.adamw(1e-4, weight_decay=0.0)
    mesh = jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)
    whole, rows = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
    state = jax.eval_shape(lambda: plain_state(network, rule, SHAPE))
    state = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=whole), state)
    image = jax.ShapeDtypeStruct((batch, *SHAPE), jnp.uint8, sharding=rows)
    step = jax.jit(plain_step(network, rule), donate_argnums=0 if donate else (), out_shardings=whole)
    return Program(step, (state, image), mesh)


def compile_one(program: Program) -> dict[str, float | bool | str]:
    """Whether it fits, its bytes on a chip, and the seconds of tracing and compiling."""
    start = time.perf_counter()
    with jax.set_mesh(program.mesh):
        try:
            compiled = program.step.lower(*program.args).compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return {"fits": False, "seconds": time.perf_counter() - start, "why": str(error).splitlines()[0][:200]}
    stats = compiled.memory_analysis()
    # The sum of arguments and temporaries can exceed what is there: not all of them live at once.
    peak, state = stats.peak_memory_in_bytes / GIB, stats.argument_size_in_bytes / GIB
    return {"fits": True, "seconds": time.perf_counter() - start, "hbm": peak, "state": state}


def search(side: str, topology: str, start: int, unit: int, most: int, depth: int = 28) -> dict[str, Any]:
    """The largest batch on a slice up to `most` images a chip, in steps of `unit`, and what was compiled on the way."""
    devices = open_slice(parse_slice(topology))
    tried: dict[int, dict[str, Any]] = {}
    make = SIDES[side]

    def fits(batch: int) -> bool:
        tried[batch] = compile_one(make(devices, batch, depth))
        return bool(tried[batch]["fits"])

    n = len(devices)
    best = largest(fits, unit * n, start * n, most * n)
    return {"batch": best, "chips": n, "tried": tried, "at": tried.get(best, {})}


SIDES: dict[str, Callable[[list[Any], int, int], Program]] = {
    "jaxdiff": lambda devices, batch, depth: jaxdiff_program(devices, batch, depth, len(devices) > 1, "full"),
    "jaxdiff, no remat": lambda devices, batch, depth: jaxdiff_program(devices, batch, depth, False, "none"),
    "plain Flax": lambda devices, batch, depth: plain_program(devices, batch, depth, False),
    "plain Flax, donated": lambda devices, batch, depth: plain_program(devices, batch, depth, True),
}
"""What is compared."""


if __name__ == "__main__":
    serve(calls={"search": search})
