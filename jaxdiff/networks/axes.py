"""Logical axes: what the dimensions of activations and parameters mean to a mesh of devices.

A mesh has the axes ``data, fsdp, sequence, tensor``. Examples are spread over data and fsdp, tokens over sequence,
attention heads and hidden channels over tensor; everything else is whole on each device. A network names the axes of
what it computes with `constrain`, and its parameters are known by their names: it runs on any mesh and on none.
"""

from collections.abc import Sequence

import jax
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array

MESH_AXES: dict[str | None, tuple[str, ...]] = {
    None: (),
    "batch": ("data", "fsdp"),
    "tokens": ("sequence",),
    "heads": ("tensor",),
    "hidden": ("tensor",),
}
"""The mesh axes over which each logical axis of an activation is spread."""

MULTIHEADS = ("self_attention", "cross_attention")
"""Names of the modules `MultiHead` in a block."""

STACKS = ("blocks", "dual_blocks", "last_blocks", "single_blocks")
"""Names of stacks of blocks, whose parameters have another axis in front."""

STREAMS = ("", "text_", "dual_")
"""Before the names of layers in a block of two streams: of the image, of the text, of a second attention."""

PARAMETER_AXES: dict[tuple[str, ...], tuple[str | None, ...]] = {
    # The blocks of transformers: of DiT, and of the U-Net and others with attention by `MultiHead`.
    **{("blocks", f"{stream}qkv", "kernel"): (None, None, "heads", None) for stream in STREAMS},
    **{("blocks", f"{stream}qkv", "bias"): (None, "heads", None) for stream in STREAMS},
    **{("blocks", f"{stream}out", "kernel"): ("hidden", None) for stream in STREAMS},
    **{("blocks", f"{stream}mlp_0", "kernel"): (None, "hidden") for stream in STREAMS},
    **{("blocks", f"{stream}mlp_0", "bias"): ("hidden",) for stream in STREAMS},
    **{("blocks", f"{stream}mlp_1", "kernel"): ("hidden", None) for stream in STREAMS},
    **{(attention, name, "kernel"): (None, "heads") for attention in MULTIHEADS for name in "qkv"},
    **{(attention, name, "bias"): ("heads",) for attention in MULTIHEADS for name in "qkv"},
    **{(attention, "out", "kernel"): ("heads", None) for attention in MULTIHEADS},
    # Gated MLPs: values and gates along an axis of their own.
    ("mlp_0", "kernel"): (None, None, "hidden"),
    ("mlp_0", "bias"): (None, "hidden"),
    # The U-Net's residual blocks.
    ("conv_0", "kernel"): (None, None, None, "hidden"),
    ("conv_0", "bias"): ("hidden",),
    ("norm_1", "scale"): ("hidden",),
    ("norm_1", "bias"): ("hidden",),
    ("conv_1", "kernel"): (None, None, "hidden", None),
}
"""Parameters with named axes, by the end of their path: of two matrices the first by columns, the second by rows.

Those below "blocks", which stands for all `STACKS`, have another axis in front, that of the stack.
"""


def parameter_axes(path: Sequence[str], ndim: int) -> tuple[str | None, ...]:
    """The logical axes of the parameter at `path`, or of its average or moment, whose paths end alike."""
    path = ["blocks" if name in STACKS else name for name in path]
    stack = ("layer",) if "blocks" in path and ndim else ()
    for end, axes in PARAMETER_AXES.items():
        if tuple(path[-len(end) :]) == end and len(stack) + len(axes) == ndim:
            return (*stack, *axes)
    return (*stack, *(None,) * (ndim - len(stack)))


def constrain(x: Array, *names: str | None) -> Array:
    """`x`, spread over the mesh in force as the names of its axes say; `x` itself where none is in force.

    Raises: ValueError where there are not as many names as axes.
    """
    if len(names) != x.ndim:
        raise ValueError(f"{len(names)} names for an array of shape {x.shape}")
    if not free_axes():
        return x
    spec = [spread(name, size) or None for name, size in zip(names, x.shape, strict=True)]
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))


def free_axes() -> dict[str, int]:
    """Name and size of the axes, of more than one device, of the mesh in force over which the compiler may spread.

    None without a mesh, on one device, and inside a program that is for each device.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes = zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types, strict=True)
    return {name: size for name, size, kind in axes if kind == AxisType.Auto and size > 1}


def spread(name: str | None, size: int) -> tuple[str, ...]:
    """The mesh axes over which a logical axis of `size` is spread: of those it is meant for, all that divide it."""
    free, taken = free_axes(), []
    for axis in MESH_AXES[name]:
        if size % free.get(axis, size + 1) == 0:
            taken, size = [*taken, axis], size // free[axis]
    return tuple(taken)


def program_platform() -> str:
    """The platform that the program at hand is for: that of the mesh in force, else of this machine."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform
