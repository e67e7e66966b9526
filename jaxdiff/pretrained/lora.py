"""LoRA files: low-rank changes of published layers, read, merged into our parameters, and written.

    safetensors     <layer>.lora_A.weight [r, in], <layer>.lora_B.weight [out, r]      (peft, and diffusers since 2023)
                    <layer>.lora.down.weight, <layer>.lora.up.weight                  (diffusers before)
                    lora_unet_<layer, with _ for .>.lora_down.weight, .lora_up.weight, .alpha      (kohya's programs)

    W' = W + weight * (alpha / r) * up down        alpha = r where the file has none

A change is made in the file's own layout, and the table that loads the network rearranges it into ours, kernel by
kernel. Sources: arXiv:2106.09685, Sec. 4.1.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np

from jaxdiff.core.types import Params
from jaxdiff.networks.lora import DOWN, UP, Where, is_pair, stacked
from jaxdiff.networks.unet import UNet
from jaxdiff.pretrained import safetensors
from jaxdiff.pretrained.exchange import Shape
from jaxdiff.pretrained.lora_names import WEIGHT, aliases, finder, kernels
from jaxdiff.pretrained.pickles import one_line, refusing


class Change(NamedTuple):
    """What a file says of one of its layers."""

    down: np.ndarray
    """[r, in], or a convolution's [r, in, h, w]."""
    up: np.ndarray
    """[out, r], or [out, r, 1, 1]."""
    alpha: float | None = None
    """None: r."""

    @property
    def delta(self) -> np.ndarray:
        """``(alpha / r) up down``, float32 [out, in * h * w]."""
        rank = len(self.down)
        up, down = (np.asarray(a, np.float32).reshape(len(a), -1) for a in (self.up, self.down))
        return (1.0 if self.alpha is None else self.alpha / rank) * up @ down


Changes: TypeAlias = Mapping[str, Change]
"""By the file's names of the layers, without the name of the network that they are in."""

NETWORK = "network"
"""The part of a file that changes the network which makes the picture."""

PREFIXES = (
    (r"(base_model\.model\.)?(unet|transformer|diffusion_model)\.", NETWORK),
    (r"lora_(unet|transformer)_", NETWORK),
    (r"text_encoder(_(?P<number>[23]))?\.", "text_encoder"),
    (r"lora_te(?P<number>[123])?_", "text_encoder"),
    (r"base_model\.model\.", NETWORK),
)
"""What names of layers begin with, and which network it means; all others are the picture's network."""

PAIR = re.compile(
    r"(?P<layer>.+?)(?:\.(?:lora_(?P<ab>[AB])(?:\.[^.]+)?|lora(?:_linear_layer)?\.(?P<du>down|up)|"
    r"lora_(?P<kohya>down|up))|(?P<old>_lora)\.(?P<ou>down|up))\.weight"
)
"""The name of one of the two factors."""


def read(path: Path) -> dict[str, dict[str, Change]]:
    """The changes in a file, by the part of the model: "network", "text_encoder", "text_encoder_2" ...

    Raises FileNotFoundError, and ValueError of one line where the file holds anything but pairs of factors.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path} (--lora)")
    arrays = safetensors.read(path)
    with refusing(path):
        return parts_of(arrays, _metadata(path))


def parts_of(
    arrays: Mapping[str, np.ndarray], metadata: Mapping[str, object] | None = None
) -> dict[str, dict[str, Change]]:
    """`read`, from the file's arrays, and what peft wrote of its adapter beside them. Raises ValueError."""
    factors: dict[tuple[str, str], dict[str, np.ndarray]] = {}
    alphas: dict[tuple[str, str], float] = {}
    for name, array in arrays.items():
        if name.endswith(".alpha"):
            alphas[_place(name.removesuffix(".alpha"))] = float(np.asarray(array, np.float32).reshape(()))
            continue
        match = PAIR.fullmatch(name)
        if match is None:
            raise ValueError(f"{name} is neither the down nor the up of a LoRA: other kinds of changes are not read")
        kind = match["ab"] or match["du"] or match["kohya"] or match["ou"]
        layer = match["layer"] + (".0" if match["old"] and match["layer"].endswith("to_out") else "")
        factors.setdefault(_place(layer), {})["down" if kind in ("A", "down") else "up"] = array
    found: dict[str, dict[str, Change]] = {}
    for (part, layer), pair in factors.items():
        if pair.keys() != {"down", "up"} or pair["down"].ndim < 2 or pair["up"].shape[1:2] != pair["down"].shape[:1]:
            raise ValueError(f"{layer} has no pair of a down [r, in] and an up [out, r]")
        alpha = alphas.get((part, layer), _written_alpha(metadata or {}, part, layer))
        found.setdefault(part, {})[layer] = Change(pair["down"], pair["up"], alpha)
    return found


def merged(params: Mapping[str, Params], network: object, loras: Sequence[tuple[Changes, float]]) -> dict[str, Params]:
    """The network's parameters with these changes added, each with its weight; only what changes is copied.

    Raises ValueError of one line that names a layer which this network has not, or has in another shape.
    """
    deltas = _by_tensor(network, params, loras)
    find = finder(network)

    def walk(node: Mapping[str, Params], path: Where) -> dict[str, Params]:
        return {name: leaf(value, (*path, name)) for name, value in node.items()}

    def leaf(value: Params, path: Where) -> Params:
        if isinstance(value, Mapping):
            return walk(value, path)
        if path[-1] != "kernel":
            return value
        published = find(path, tuple(value.shape))
        if not published.shapes.keys() & deltas.keys():
            return value
        arrays = {name: _summed(deltas.get(name, ()), shape) for name, shape in published.shapes.items()}
        return value + jnp.asarray(published.load(arrays))

    return walk(params, ())


class _Slice(NamedTuple):
    """A part of a change: of one published tensor, whose outputs are some of those of the file's layer."""

    change: Change
    first: int
    weight: float


def _by_tensor(
    network: object, shapes: Mapping[str, object], loras: Sequence[tuple[Changes, float]]
) -> dict[str, list[_Slice]]:
    """What is added to each published tensor. Raises ValueError."""
    known, find = aliases(network, shapes), finder(network)
    sizes = {name: s for path, shape in kernels(shapes) for name, s in find(path, shape).shapes.items()}
    found: dict[str, list[_Slice]] = {}
    faults = []
    for changes, weight in loras:
        for layer, change in changes.items():
            names = [name + WEIGHT for name in known.get(layer, ())]
            theirs = (len(change.up), math.prod(change.down.shape[1:]))
            ours = (sum(sizes[name][0] for name in names), math.prod(sizes[names[0]][1:]) if names else 0)
            if not names:
                faults.append(f"{layer} is not known")
            elif theirs != ours:
                faults.append(f"{layer} changes {list(theirs)} and not {list(ours)}")
            first = 0
            for name in names:
                found.setdefault(name, []).append(_Slice(change, first, weight))
                first += sizes[name][0]
    if faults:
        raise ValueError(f"a LoRA of another network: {one_line('; '.join(faults))} (--lora)")
    return found


def _summed(slices: Sequence[_Slice], shape: Shape) -> np.ndarray:
    whole = np.zeros(shape, np.float32)
    for change, first, weight in slices:
        part = change._replace(up=change.up[first : first + shape[0]])
        whole += np.float32(weight) * part.delta.reshape(shape)
    return whole


def dump(factors: Mapping[str, Params], network: object, scale: float) -> dict[str, np.ndarray]:
    """Our factors as a file's arrays in the names that peft and diffusers read; `scale` is put into `up`.

    Layers of which a published network has several side by side share one `down`.
    """
    find, arrays = finder(network), {}
    prefix = "unet" if isinstance(network, UNet) else "transformer"
    for path, down, up in pairs(factors):
        rank, blocks = down.shape[-1], stacked(path)
        published = find(path, tuple(product_shape(path, down, up)))
        several = len(published.shapes) // (down.shape[0] if blocks else 1)
        # The table rearranges inputs as it does those of the kernel, and outputs as it does those of a bias.
        downs = published.dump(path, np.concatenate([down] * several, axis=-1))
        columns = [published.dump((*path[:-1], "bias"), (up[:, r] if blocks else up[r])) for r in range(rank)]
        for name, tensor in downs.items():
            layer = f"{prefix}.{name.removesuffix(WEIGHT)}"
            wide = np.stack([column[name.removesuffix(WEIGHT) + ".bias"] for column in columns], axis=1)
            arrays[f"{layer}.lora_A.weight"] = np.ascontiguousarray(tensor)
            wide = np.asarray(scale * wide, np.float32)
            arrays[f"{layer}.lora_B.weight"] = wide.reshape(*wide.shape, *(1,) * (tensor.ndim - 2))
    return arrays


def product_shape(path: Where, down: np.ndarray, up: np.ndarray) -> Shape:
    """The shape of the kernel that the factors change."""
    return (*down.shape[:-1], *up.shape[stacked(path) + 1 :])


def pairs(factors: Mapping[str, Params], path: Where = ()) -> list[tuple[Where, np.ndarray, np.ndarray]]:
    """(path of the kernel, down, up) of every pair of factors in the tree."""
    if is_pair(factors):
        return [(path, np.asarray(factors[DOWN]), np.asarray(factors[UP]))]
    return [pair for name in factors for pair in pairs(factors[name], (*path, name))]


def _place(name: str) -> tuple[str, str]:
    """(part of the model, layer) of a file's name."""
    name = name.replace(".processor.", ".")
    for prefix, part in PREFIXES:
        if match := re.match(prefix, name):
            number = match.groupdict().get("number")
            return (part if number in (None, "1") else f"{part}_{number}"), name[match.end() :]
    return NETWORK, name


def _metadata(path: Path) -> Mapping[str, object]:
    """The settings of peft's adapter, which diffusers writes into the file's head; {} in other files."""
    with path.open("rb") as file:
        head = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    text = head.get("__metadata__", {}).get("lora_adapter_metadata", "{}")
    found = json.loads(text)
    return found if isinstance(found, dict) else {}


def _written_alpha(metadata: Mapping[str, object], part: str, layer: str) -> float | None:
    """peft's alpha of a layer, None where the metadata do not say."""
    names = ("unet.", "transformer.", "") if part == NETWORK else (f"{part}.", "")
    for name in names:
        pattern = metadata.get(f"{name}alpha_pattern")
        if isinstance(pattern, dict):
            for end, alpha in pattern.items():
                if layer == end or layer.endswith("." + end):
                    return float(alpha)
        alpha = metadata.get(f"{name}lora_alpha")
        if isinstance(alpha, int | float):
            return float(alpha)
    return None
