"""From the flat, dotted names of a PyTorch file to the parameters of a plain transformer of ours.

rename     the file's names -> ours, still in PyTorch's layout: "blocks.3.qkv.weight"
join       separate query, key and value -> "qkv"; block after block -> a stack
arrange    linear [out, in] -> [in, out], convolution [out, in, h, w] -> [h, w, in, out], float32
"""

import re
from collections.abc import Mapping

import numpy as np

from jaxdiff.pretrained.weights import torch_layout

Rules = tuple[tuple[str, str], ...]
"""Regular expressions and what replaces them in a name, one after the other."""

BLOCK = re.compile(r"((?:.+\.)?blocks)\.(\d+)\.(.+)")


def rename(tensors: Mapping[str, np.ndarray], rules: Rules) -> dict[str, np.ndarray]:
    """The tensors by the names that the rules make of theirs; those whose new name is empty are left out."""
    renamed = {}
    for name, tensor in tensors.items():
        new = new_name(name, rules)
        if new in renamed:
            raise ValueError(f"weights: {name} is a second {new}: the file mixes two naming schemes, use another file")
        if new:
            renamed[new] = np.asarray(tensor)
    return renamed


def new_name(name: str, rules: Rules) -> str:
    """What the rules make of a name."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def join(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Query, key and value in one ("blocks.0.q.weight" and so on), and the blocks stacked: "blocks.qkv.weight"."""
    joined = dict(tensors)
    for name in [name for name in tensors if re.search(r"\.q\.(weight|bias)$", name)]:
        parts = [re.sub(r"\.q\.(\w+)$", rf".{letter}.\1", name) for letter in "qkv"]
        if set(parts) <= joined.keys():
            joined[re.sub(r"\.q\.(\w+)$", r".qkv.\1", name)] = np.concatenate([joined.pop(part) for part in parts])

    blocks: dict[str, dict[int, np.ndarray]] = {}
    for name in list(joined):
        if match := BLOCK.fullmatch(name):
            stack, index, rest = match.groups()
            blocks.setdefault(f"{stack}.{rest}", {})[int(index)] = joined.pop(name)
    for name, layers in blocks.items():
        shapes = {layer.shape for layer in layers.values()}
        if sorted(layers) != list(range(len(layers))) or len(shapes) > 1:
            raise ValueError(f"weights: {name} is missing in some blocks, or differs in shape: the file is damaged")
        joined[name] = np.stack([layers[i] for i in range(len(layers))])
    return joined


def stacked_layout(path: tuple[str, ...], array: np.ndarray) -> np.ndarray:
    """`torch_layout` for parameters of which those below "blocks" are stacked along a first axis."""
    if "blocks" in path and path[-1] == "kernel" and array.ndim == 3:
        return np.swapaxes(array, 1, 2)
    return torch_layout(path, array)
