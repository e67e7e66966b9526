"""A trained model as a folder, without optimiser or history: what ships with the package and is handed on.

model.safetensors    the parameters, one average of them, by the names of their modules joined by dots
config.json          the run's config, and what else its record holds: names of classes, tokenizer, some captions

What a config names that lies in the folder itself, such as the codec `kl=codec`, is found wherever the folder is.
"""

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

import jaxdiff
from jaxdiff.config import Config, from_json, to_json
from jaxdiff.core.types import Params
from jaxdiff.pretrained import safetensors
from jaxdiff.training.workdir import read_config, write_json

WEIGHTS, CONFIG = "model.safetensors", "config.json"

SHIPPED = epath.Path(Path(__file__).parent / "shipped")
"""The models that come with the package, a folder each."""

Dtype = Literal["float32", "bfloat16", "float16"]


class Checkpoint(NamedTuple):
    """What a sampler reads of a run or of a model."""

    config: Config
    label_names: tuple[str, ...]
    step: int
    params: Params
    tokenizer: str
    """Learned by the run, or ""."""
    captions: tuple[str, ...]
    """Some that it was trained on."""


def find_model(name: epath.PathLike) -> epath.Path | None:
    """The folder of a model: `name` itself if it holds one, or what ships under this name; None for all else."""
    folder = epath.Path(name)
    if (folder / WEIGHTS).exists():
        return folder
    shipped = SHIPPED / str(name)
    is_shipped = str(name) in shipped_models() and not (folder / CONFIG).exists()
    return shipped if is_shipped else None


def is_run(folder: epath.PathLike) -> bool:
    """Whether this is the folder of a run, and of no model: other programs have a config.json too."""
    try:
        return find_model(folder) is None and bool(read_config(folder))
    except (FileNotFoundError, ValueError):
        return False


def is_trained(folder: epath.PathLike) -> bool:
    """Whether this can be sampled: a run or a model, by its folder or its name."""
    return find_model(folder) is not None or is_run(folder)


def shipped_models() -> tuple[str, ...]:
    """The names of the models that come with the package."""
    return tuple(sorted(p.name for p in SHIPPED.iterdir() if (p / WEIGHTS).exists())) if SHIPPED.exists() else ()


def read_model(folder: epath.PathLike) -> Checkpoint:
    """The model in a folder, its parameters as float32. Raises: ValueError where the folder holds no such model."""
    folder = epath.Path(folder)
    config, record = read_model_config(folder)
    params: Params = {}
    for name, array in safetensors.read(Path(folder / WEIGHTS)).items():
        *modules, leaf = name.split(".")
        node = params
        for module in modules:
            node = node.setdefault(module, {})
        node[leaf] = jnp.asarray(array, jnp.float32)
    names, captions = (tuple(record.get(key, ())) for key in ("label_names", "captions"))
    return Checkpoint(config, names, record["step"], params, record.get("tokenizer", ""), captions)


def read_model_config(folder: epath.PathLike) -> tuple[Config, Mapping[str, Any]]:
    """(its config, all that is written beside the parameters). Raises: as `read_model`."""
    folder = epath.Path(folder)
    record = json.loads((folder / CONFIG).read_text()) if (folder / CONFIG).exists() else {}
    if not (isinstance(record, dict) and "jaxdiff" in record and "step" in record):
        raise ValueError(f"{folder} has {WEIGHTS}, but no {CONFIG} that jaxdiff wrote beside it")
    config = from_json(record["config"])
    assert isinstance(config, Config)
    return in_place(config, folder), record


def write_model(
    folder: epath.PathLike, model: Checkpoint, dtype: Dtype = "float32", files: Mapping[str, Path] | None = None
) -> None:
    """Writes the model, whole or, if that fails or the process is killed, not at all; `dtype` is that of the file.

    Of the data's place only the last part of the path is kept. `files` are copied beside the model, each to the place
    in the folder that is its key. Raises: ValueError where the folder holds something.
    """
    final = Path(folder)
    check_new(final)
    final.parent.mkdir(parents=True, exist_ok=True)
    part = final.parent / f".{final.name}.part-{os.getpid()}"
    try:
        part.mkdir()
        for place, source in (files or {}).items():
            (part / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, part / place)
        _write(part, model, dtype)
        part.replace(final)  # over an empty folder too
    finally:
        shutil.rmtree(part, ignore_errors=True)


def check_new(folder: Path) -> None:
    """Refuses a place where something is. Raises: ValueError."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is not empty: name a new folder")


def _write(folder: Path, model: Checkpoint, dtype: Dtype) -> None:
    config = model.config
    text = "minilm" if config.text.startswith("minilm=/") else config.text  # a package has its weights
    data = dataclasses.replace(config.data, source=nameless(config.data.source))
    config = dataclasses.replace(config, data=data, text=text)
    record = {"config": to_json(config), "step": model.step}
    record |= {"label_names": list(model.label_names), "captions": list(model.captions), "tokenizer": model.tokenizer}
    arrays = {
        ".".join(str(key.key) for key in path): np.asarray(jnp.asarray(leaf, jnp.dtype(dtype)))
        for path, leaf in jax.tree_util.tree_flatten_with_path(model.params)[0]
    }
    safetensors.write(folder / WEIGHTS, arrays)
    write_json(epath.Path(folder / CONFIG), {"jaxdiff": jaxdiff.__version__} | record)


def nameless(source: str) -> str:
    """A source without the folders of its place: "records:/data/latents" is "records:latents"."""
    kind, colon, place = source.partition(":")
    if kind == "tfds":
        return ":".join(source.split(":")[:2])  # tfds:NAME:DIR
    named = colon and "/" not in kind and not place.startswith("//")
    return f"{kind}:{PurePath(place).name}" if named else PurePath(source).name


def in_place(config: Config, folder: epath.Path) -> Config:
    """The config of a model with what it names in the model's folder where that is."""
    return dataclasses.replace(config, codec=_found(config.codec, folder), text=_found(config.text, folder))


def _found(spec: str, folder: epath.Path) -> str:
    """NAME=PLACE with the place in the folder, where the folder has it."""
    name, equals, place = spec.partition("=")
    inside = equals and place and not PurePath(place).is_absolute() and (folder / place).exists()
    return f"{name}={folder / place}" if inside else spec
