"""Where the kernels of our networks are published, one by one, and what LoRA files call the published layers.

A `Published` says of one kernel what tensors it is made of; the tables of each family of networks know it. A kernel
that no published network has is published under its own name, so that every network's changes can be written.

LoRA files write a layer's name as it is, or with "_" in place of its dots, or by the original programs' name of it,
where one layer may be several of ours, one after the other: query, key and value.
"""

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.core.types import Params
from jaxdiff.networks.dit import DiT
from jaxdiff.networks.flux import Flux
from jaxdiff.networks.lora import is_convolution, stacked
from jaxdiff.networks.mmdit import MMDiT
from jaxdiff.networks.pixart import PixArt
from jaxdiff.networks.unet import UNet
from jaxdiff.pretrained import dit, exchange, flux, mmdit, pixart, rows
from jaxdiff.pretrained.exchange import Origin, Origins, Shape
from jaxdiff.pretrained.rows import Row
from jaxdiff.pretrained.single_transformers import FLUX, FLUX_GROUPS, SD3, SD3_GROUPS, layers_of
from jaxdiff.pretrained.unet_names import diffusers_names, original_names
from jaxdiff.pretrained.weights import Where, torch_name

WEIGHT = ".weight"


class Published(NamedTuple):
    """One kernel of ours as the tensors of a published file."""

    shapes: Mapping[str, Shape]
    """Of its tensors, by their names."""
    load: Callable[[Mapping[str, np.ndarray]], np.ndarray]
    """From its tensors to the kernel."""
    dump: Callable[[Where, np.ndarray], Mapping[str, np.ndarray]]
    """From a parameter of the kernel's layer, the kernel or another one that stands at this path, to its tensors."""


Find: TypeAlias = Callable[[Where, Shape], Published]
"""What is published of our kernel of this path and shape."""

Aliases: TypeAlias = Mapping[str, tuple[str, ...]]
"""Of a name that files use: the published layers that it means, whose outputs lie one after the other in it."""


def finder(network: object) -> Find:
    """Where this network's kernels are published; the paths are those of the network's own parameters."""
    table = _table(network)

    def find(path: Where, shape: Shape) -> Published:
        try:
            return _by_origins(table, path, shape)
        except ValueError:  # the published networks have no such part
            return _by_own_name(path, shape)

    return find


def aliases(network: object, shapes: Mapping[str, object]) -> Aliases:
    """What files may call the published layers of this network, whose parameters have these `shapes`."""
    find, found = finder(network), {}
    original = _original(network)
    for path, shape in kernels(shapes):
        layers = [name.removesuffix(WEIGHT) for name in find(path, shape).shapes]
        found |= {layer: (layer,) for layer in layers}
        names = original(path, shape)
        if len(names) == 1:
            found[names[0]] = tuple(layers)
        elif len(names) == len(layers):
            found |= {name: (layer,) for name, layer in zip(names, layers, strict=True)}
    for pattern, several in ORIGINAL_STREAMS.get(type(network), {}).items():
        for layer in list(found):
            if match := re.fullmatch(several[0].replace(".", r"\.").replace("{}", r"(\d+)"), layer):
                names = tuple(name.format(*match.groups()) for name in several)
                if all(name in found for name in names):
                    found[pattern.format(*match.groups())] = names
    return found | {name.replace(".", "_"): layers for name, layers in found.items()}


def kernels(shapes: Mapping[str, object]) -> list[tuple[Where, Shape]]:
    """(path, shape) of every kernel in a tree of parameters or of their shapes."""
    leaves = jax.tree_util.tree_flatten_with_path(shapes)[0]
    named = [(tuple(str(key.key) for key in keys), tuple(leaf.shape)) for keys, leaf in leaves]
    return [(path, shape) for path, shape in named if path[-1] == "kernel"]


def _table(network: object) -> Origins:
    match network:
        case UNet():
            return diffusers_names(network)
        case MMDiT():
            return rows.origins(mmdit.rows(network))
        case Flux():
            return rows.origins(flux.rows(network))
        case PixArt():
            return rows.origins(pixart.rows(network))
        case DiT():
            return rows.origins(dit.rows(network))
    return rows.origins(())


def _by_origins(origins: Origins, path: Where, shape: Shape) -> Published:
    abstract = _tree(path, jax.ShapeDtypeStruct(shape, np.float32))

    def load(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        return np.asarray(_at(exchange.load(arrays, abstract, origins), path))

    def dump(at: Where, array: np.ndarray) -> Mapping[str, np.ndarray]:
        return exchange.dump(_tree(at, jnp.asarray(array)), origins)

    return Published(exchange.torch_shapes(abstract, origins), load, dump)


def _by_own_name(path: Where, shape: Shape) -> Published:
    if is_convolution(path, shape):
        return _by_origins(lambda at, _: Origin((torch_name(at),)), path, shape)
    blocks = range(shape[0]) if stacked(path) else None
    at = next((i for i, name in enumerate(path) if name.endswith("blocks")), 0)
    layer = path[:-1] if blocks is None else (*path[: at + 1], "{}", *path[at + 1 : -1])
    return _by_origins(rows.origins((Row(".".join(path[:-1]), (".".join(layer),), blocks),)), path, shape)


def _tree(path: Where, leaf: object) -> Mapping[str, object]:
    """A tree of one parameter, or of its shape."""
    for name in reversed(path[1:]):
        leaf = {name: leaf}
    return {path[0]: leaf}


def _at(tree: Params, path: Where) -> jax.Array:
    for name in path:
        tree = tree[name]
    return tree


def _original(network: object) -> Callable[[Where, Shape], tuple[str, ...]]:
    """The original programs' names of the layers of a kernel; () where they have none."""
    try:
        origins = original_names(network) if isinstance(network, UNet) else None
    except ValueError:  # levels of attention that only the size of the picture tells
        origins = None

    def names(path: Where, shape: Shape) -> tuple[str, ...]:
        try:
            found = () if origins is None else origins(path, shape).names
        except ValueError:
            found = ()
        return tuple(name.removesuffix(WEIGHT) for name in found)

    return names


ORIGINAL_STREAMS: Mapping[type, Mapping[str, tuple[str, ...]]] = {
    Flux: layers_of(FLUX, FLUX_GROUPS),
    MMDiT: layers_of(SD3, SD3_GROUPS),
}
"""What the original programs call the layers of networks with two streams, and so do LoRA files made by their users."""
