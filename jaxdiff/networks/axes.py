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

PARAMETER_AXES: dict[tuple[str, ...], tuple[str | None, ...]] = {
    # DiT's blocks, stacked along their first axis.
    ("blocks", "qkv", "kernel"): ("layer", None, None, "heads", None),
    ("blocks", "qkv", "bias"): ("layer", None, "heads", None),
    ("blocks", "out", "kernel"): ("layer", "hidden", None),
    ("blocks", "mlp_0", "kernel"): ("layer", None, "hidden"),
    ("blocks", "mlp_0", "bias"): ("layer", "hidden"),
    ("blocks", "mlp_1", "kernel"): ("layer", "hidden", None),
    # The U-Net's residual blocks.
    ("conv_0", "kernel"): (None, None, None, "hidden"),
    ("conv_0", "bias"): ("hidden",),
    ("norm_1", "scale"): ("hidden",),
    ("norm_1", "bias"): ("hidden",),
    ("conv_1", "kernel"): (None, None, "hidden", None),
}
"""Parameters with named axes, by the end of their path: of two matrices the first by columns, the second by rows."""


def parameter_axes(path: Sequence[str], ndim: int) -> tuple[str | None, ...]:
    """The logical axes of the parameter at `path`, or of its average or moment, whose paths end alike."""
    for end, axes in PARAMETER_AXES.items():
        if tuple(path[-len(end) :]) == end and len(axes) == ndim:
            return axes
    return ("layer", *(None,) * (ndim - 1)) if "blocks" in path and ndim else (None,) * ndim


def constrain(x: Array, *names: str | None) -> Array:
    """`x`, spread over the mesh in force as the names of its axes say; `x` itself where none is in force.

    An axis that does not divide evenly stays whole. Raises: ValueError where there are not as many names as axes.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if len(names) != x.ndim:
        raise ValueError(f"{len(names)} names for an array of shape {x.shape}")
    automatic = {name for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Auto}
    if mesh.size == 1 or not automatic.issuperset(MESH_AXES["batch"]):
        return x  # no mesh, one device, or inside a program for each device
    spec = []
    for name, size in zip(names, x.shape, strict=True):
        axes = tuple(axis for axis in MESH_AXES[name] if axis in automatic)
        count = 1
        for axis in axes:
            count *= mesh.shape[axis]
        spec.append(axes if count > 1 and size % count == 0 else None)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))
