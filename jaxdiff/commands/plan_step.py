"""The training step and the sampler of a run, compiled for chips that are not there, by shapes alone."""

import importlib.util
import os
import time
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, PyTree

from jaxdiff import build, sampler
from jaxdiff.config import Config
from jaxdiff.core.types import Level
from jaxdiff.networks.autoencoder import AutoencoderKL
from jaxdiff.networks.classifier import Classifier
from jaxdiff.planning import collectives, flops, hlo, memory
from jaxdiff.planning.chips import Slice
from jaxdiff.planning.report import Program
from jaxdiff.planning.roofline import roofline
from jaxdiff.training.engine import jit_step
from jaxdiff.training.sharding import BATCH, make_mesh, replicated

ALONE = {
    "TPU_SKIP_MDS_QUERY": "1",  # do not look for a TPU's metadata server
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no device is opened, so that others may compile at the same time
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_STDERR_LOG_LEVEL": "3",
}
"""The environment in which libtpu compiles without a TPU."""

AUGMENT = 9
"""Numbers that tell the network of an image's augmentation."""


def open_slice(slice_: Slice) -> list[Any]:
    """The devices of a slice, to compile for. Raises: ValueError without a compiler, or for a slice unknown to it."""
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            "jaxdiff plan needs TPU's compiler, libtpu, which is not installed: pip install 'jaxdiff[tpu]'"
        )
    from jax.experimental import topologies

    for name, value in ALONE.items():
        os.environ.setdefault(name, value)
    # A U-Net's convolutions keep the compiler busy for a quarter of an hour at its usual effort.
    jax.config.update("jax_exec_time_optimization_effort", -1.0)
    bounds = [*(min(2, n) for n in slice_.shape[:2]), 1]
    options = {"chip_config_name": slice_.chip.config} if slice_.chip.config else {}
    try:
        found = topologies.get_topology_desc(slice_.name, "tpu", chips_per_host_bounds=bounds, **options)
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"topology = {slice_.name} is refused by libtpu: {error} (--topology)") from error
    return list(found.devices)


def abstract_batch(config: Config, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a batch, spread over the mesh."""
    b, place = config.batch_size, NamedSharding(mesh, BATCH)
    dtype = jnp.float32 if config.data.source.startswith("records:") else jnp.uint8
    batch = {"image": jax.ShapeDtypeStruct((b, *build.image_shape(config)), dtype, sharding=place)}
    if config.image_channels:
        batch["source"] = jax.ShapeDtypeStruct(batch["image"].shape, jnp.uint8, sharding=place)
    if config.data.labels and config.network.num_classes:
        batch["label"] = jax.ShapeDtypeStruct((b,), jnp.int32, sharding=place)
    if config.data.augment:
        batch["augment"] = jax.ShapeDtypeStruct((b, AUGMENT), jnp.float32, sharding=place)
    return batch


def plan_training(config: Config, slice_: Slice, devices: list[Any]) -> Program:
    """One training step, as train.py runs it."""
    build.check_devices(config, len(devices))
    mesh = make_mesh(config.mesh, devices)
    (_, state), batch = build.state_fn(config, mesh), abstract_batch(config, mesh)
    frozen = build.frozen_shapes(config, mesh)
    jitted = jit_step(mesh, build.step_fn(config), state)
    held = {
        "parameters": memory.bytes_per_device((state.params, frozen)),
        "optimiser": memory.bytes_per_device(state.opt_state),
        "averages": memory.bytes_per_device(state.ema),
        "batch": memory.bytes_per_device(batch),
    }
    return plan_program(jitted, (state, batch, *frozen), held, slice_, mesh)


def plan_sampling(config: Config, batch_size: int, slice_: Slice, devices: list[Any]) -> Program | None:
    """The sampling of one batch, all steps, as sample.py does; None for a run that makes no images."""
    if isinstance(config.network, Classifier | AutoencoderKL):
        return None
    mesh = make_mesh(config.mesh, devices)
    _, state = build.state_fn(config, mesh)
    whole = build.frozen_shapes(config, mesh) or state.ema or (state.params,)
    weights = sampler.Weights(whole[0])
    rows, whole = NamedSharding(mesh, BATCH), replicated(mesh)
    index = jax.ShapeDtypeStruct((batch_size,), jnp.int32, sharding=rows)
    number = jax.ShapeDtypeStruct((), jnp.float32, sharding=whole)
    seed = jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)
    level = jax.ShapeDtypeStruct((config.sampling.steps + 1,), jnp.float32, sharding=whole)
    cond = {"label": index} if config.network.num_classes else {}
    if config.image_channels:
        shape = (batch_size, *build.image_shape(config))
        cond["image"] = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=rows)
    levels = Level(*(cast(Array, level) for _ in Level._fields))
    scales = sampler.Scales(*(cast(Array, number) for _ in sampler.Scales._fields))
    args = (weights, seed, index, levels, cond, scales)
    held = {"parameters": memory.bytes_per_device(weights)}
    return plan_program(sampler.sampler(config), args, held, slice_, mesh)


def plan_program(jitted: Callable, args: PyTree, held: dict[str, int], slice_: Slice, mesh: Mesh) -> Program:
    """Traces, counts and compiles; `held` are the bytes of its arguments on a chip."""
    started = time.monotonic()
    with jax.set_mesh(mesh):
        traced = jitted.trace(*args)
        counted = flops.count(traced.jaxpr.jaxpr)
        notes = sorted(counted.notes)
        try:
            compiled = compile_afresh(traced.lower())
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            seconds = time.monotonic() - started
            return Program(False, reason(error), held, counted, {}, 0.0, None, tuple(notes), seconds)
    seconds = time.monotonic() - started
    stats, text = compiled.memory_analysis(), compiled.as_text()
    if stats is None or text is None:
        raise ValueError("this libtpu does not say what a program needs: pip install 'jaxdiff[tpu]' (--topology)")
    # The peak, and not the sum of the sizes: temporaries that never live together share their places.
    hbm = held | {
        "padding": stats.argument_size_in_bytes - sum(held.values()),
        "gradients, activations, temporaries": stats.peak_memory_in_bytes - stats.argument_size_in_bytes,
        "program": stats.generated_code_size_in_bytes,
    }
    module = hlo.parse(text)
    if not all(known for _, _, known in hlo.runs(module)):
        notes.append("loops of unknown length in the compiled program: one turn")
    traffic = collectives.collectives(module)
    moved = memory.moved(module)
    line = roofline(slice_, counted.total, moved, sum((kind.sent for kind in traffic.values()), 0.0))
    return Program(True, "", hbm, counted, traffic, moved, line, tuple(notes), seconds)


def compile_afresh(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """The program, past the cache of programs, which cannot read back what no device here can run."""
    cached = jax.config.jax_enable_compilation_cache  # pyright: ignore[reportAttributeAccessIssue]
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        return lowered.compile()
    finally:
        jax.config.update("jax_enable_compilation_cache", cached)


def reason(error: Exception) -> str:
    """The compiler's sentence, on one line."""
    lines = str(error).removeprefix("RESOURCE_EXHAUSTED: ").splitlines()
    return " ".join(lines[0].split()) if lines else ""


def sampling_batch(config: Config, wanted: int, count: int) -> int:
    """`wanted` images, or 64 for 0, rounded up to what the mesh can share out."""
    data, fsdp, _, _ = config.mesh.sizes(count)
    parts = data * fsdp
    return -(-(wanted or 64) // parts) * parts
