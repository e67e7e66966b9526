"""Folders as diffusers saves them: a part's config.json and its weights, in one file or in several."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import numpy as np

from jaxdiff.pretrained.pickles import refusing
from jaxdiff.pretrained.weights import read_weights

WEIGHTS = (
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.fp16.safetensors",
    "diffusion_pytorch_model.bin",
)
"""What diffusers calls the weights, the best first."""

INDEX = "diffusion_pytorch_model.safetensors.index.json"
"""What says which file of several holds a tensor."""

NAMES = (WEIGHTS[0], INDEX, *WEIGHTS[1:])
"""Both, in the order in which they are looked for."""

TRANSFORMERS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "model.fp16.safetensors",
    "model.safetensors.index.fp16.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""What transformers calls the same."""


def read_json(path: Path) -> Mapping[str, object]:
    """The object in a JSON file. Raises FileNotFoundError, and ValueError of one line for anything else."""
    with refusing(path):
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("holds no object")
    return cast(Mapping[str, object], found)


def weights_file(folder: Path, names: tuple[str, ...] = NAMES) -> Path:
    """The file of the weights, or the index of several. Raises FileNotFoundError where there is none."""
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"there is no weights file {folder / names[0]}")


def weights_files(folder: Path, names: tuple[str, ...] = NAMES) -> list[Path]:
    """The files that hold the tensors, one or several. Raises as `weights_file`, and ValueError for a broken index."""
    file = weights_file(folder, names)
    if file.suffix != ".json":
        return [file]
    places = read_json(file).get("weight_map")
    with refusing(file):
        if not isinstance(places, dict) or not all(Path(str(name)).name == name for name in places.values()):
            raise ValueError("weight_map is not allowed: names of tensors with the file beside it that holds each")
    return [folder / name for name in sorted(set(cast(dict[str, str], places).values()))]


def weights_in(folder: Path, names: tuple[str, ...] = NAMES) -> dict[str, np.ndarray]:
    """The tensors of a part by name. Raises as `read_weights` and `weights_files`."""
    arrays: dict[str, np.ndarray] = {}
    for file in weights_files(folder, names):
        arrays |= read_weights(file)
    return arrays
