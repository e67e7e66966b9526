"""Models and runs of ours as folders that diffusers' pipelines are made from: the inverse of `pipelines`.

Where a model was converted from such a folder, and nothing of what its JSON files say was changed since, they are
written as they were.
"""

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from jaxdiff.config import Config
from jaxdiff.core.paths import DiscreteVP, Linear
from jaxdiff.families import Family, family_of, written_json
from jaxdiff.models import Checkpoint, check_new
from jaxdiff.networks.dit import DiT
from jaxdiff.networks.unet import UNet
from jaxdiff.pipelines import CODECS, PIPELINES, PUBLISHED, SCHEDULER, TEXT, tokens_of
from jaxdiff.pretrained import safetensors
from jaxdiff.pretrained.folders import WEIGHTS, read_json, weights_file
from jaxdiff.pretrained.prompts import INDEX, PARTS
from jaxdiff.schedulers import Schedule, open_scheduler, scheduler_json

Json = Mapping[str, object]

ALIKE = ("parent", "name", "dtype", "remat", "kernel", "dropout", "drop", "max_period")
"""Attributes that need not be as in diffusers: how a network is computed or trained, and DiT's sinusoids, which are
told of in a note."""


def export(model: Checkpoint, folder: Path, out: Path) -> str:
    """Writes the pipeline of a model, whole or not at all; `folder` is where the model lies.

    Returns a note, or "". Raises ValueError, one line, for what diffusers has not, or where `out` holds something.
    """
    check_new(out)
    config, published = model.config, folder / PUBLISHED
    kind, family = family_of(config.network)
    network: Any = config.network
    params, data = model.params["network"], config.data
    written = written_json(network, params, data.channels, data.size)
    _check_same(network, family, written)
    kept = _kept(published / family.part / "config.json", family.config, network)
    index = _index(model, published / INDEX, kind, family)
    schedule = _schedule(config)
    way = PIPELINES[str(index["_class_name"])]
    scheduler = _kept(
        published / "scheduler" / SCHEDULER, lambda said: open_scheduler(said, tokens_of(data.size, way)), schedule
    )
    scheduler = scheduler or scheduler_json(schedule)
    index["scheduler"] = ["diffusers", scheduler["_class_name"]]
    files = {**_codec_files(config), **_text_files(folder / TEXT)}
    index = _without_absent(index, {family.part, "scheduler", *(place.partition("/")[0] for place in files)})

    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.parent / f".{out.name}.part-{os.getpid()}"
    try:
        for place, source in files.items():
            (part / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, part / place)
        (part / family.part).mkdir(parents=True)
        (part / "scheduler").mkdir()
        safetensors.write(part / family.part / WEIGHTS[0], family.dump(params, network))
        jsons = {f"{family.part}/config.json": kept or written, f"scheduler/{SCHEDULER}": scheduler, INDEX: index}
        for place, content in jsons.items():
            (part / place).write_text(json.dumps(content, indent=2) + "\n")
        part.replace(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    if isinstance(network, DiT) and family.config(written).max_period != network.max_period:
        return "note: diffusers tells this network slightly different sinusoids of the time"
    return ""


def _kept(file: Path, read: Callable[[Json], object], value: object) -> Json | None:
    """The JSON that was published, where it still says what `value` is."""
    if not file.is_file():
        return None
    said = read_json(file)
    return said if read(said) == value else None


def _check_same(network: Any, family: Family, written: Json) -> None:
    """Refuses what the written config.json cannot say."""
    if isinstance(network, UNet):
        return  # `unet_json` has refused it
    there = family.config(written)
    for field in dataclasses.fields(network):
        ours, theirs = getattr(network, field.name), getattr(there, field.name)
        if field.name not in ALIKE and ours != theirs:
            kind = type(network).__name__
            raise ValueError(f"diffusers has no {kind} with {field.name} = {ours!r}, but with {theirs!r}")


def _schedule(config: Config) -> Schedule:
    path, threshold = getattr(config.objective, "path", None), config.sampling.threshold
    if not isinstance(path, DiscreteVP | Linear) or threshold == "dynamic":
        raise ValueError(
            f"diffusers' schedulers have no {type(path).__name__} with threshold {threshold}: "
            "DiscreteVP and Linear, with none or static"
        )
    prediction: Any = config.objective.prediction
    return Schedule(path, prediction, config.solver, config.grid, threshold)


def _index(model: Checkpoint, file: Path, kind: str, family: Family) -> dict[str, object]:
    """The model_index.json: the published one, or that of the pipeline without texts."""
    if file.is_file():
        return dict(read_json(file))
    config = model.config
    codec = config.codec.partition("=")[0] if config.latents else ""
    fits = {(UNet, ""): "DDPMPipeline", (UNet, "vq"): "LDMPipeline", (DiT, "kl"): "DiTPipeline"}
    name = fits.get((family.network, codec))
    if name is None or kind == "UNet2DConditionModel":
        of = f"latents of {codec}" if config.latents else "pixels"
        raise ValueError(
            f"diffusers has no pipeline of a {kind} for {of} alone: UNet2DModel on pixels or latents of vq, "
            "DiT on latents of kl"
        )
    index: dict[str, object] = {"_class_name": name, family.part: ["diffusers", kind]}
    index |= {part: ["diffusers", there] for there, (part, ours, _) in CODECS.items() if ours == codec}
    if family.network is DiT:
        index |= {"id2label": {str(i): label for i, label in enumerate(model.label_names)}}
    return index


def _without_absent(index: Json, parts: Collection[str]) -> dict[str, object]:
    """The index without the names of parts that are not written, such as checks of what a picture shows."""
    return {name: [None, None] if isinstance(v, list) and name not in parts else v for name, v in index.items()}


def _codec_files(config: Config) -> dict[str, Path]:
    latents, (name, _, place) = config.latents, config.codec.partition("=")
    if latents is None:
        return {}
    folder, parts = Path(place), {ours: part for part, ours, _ in CODECS.values()}
    if name not in parts or not folder.is_dir():
        known = " and ".join(f"{ours}=FOLDER" for ours in parts)
        raise ValueError(f"the codec {config.codec!r} cannot be written for diffusers: {known} can")
    if any(latents.mean) or any(std != 1 for std in latents.std):
        raise ValueError("latents with a mean and a standard deviation of their own cannot be written for diffusers")
    return {f"{parts[name]}/{file}": folder / file for file in ("config.json", weights_file(folder).name)}


def _text_files(folder: Path) -> dict[str, Path]:
    files = sorted(folder.rglob("*")) if folder.is_dir() else []
    names = {path: path.relative_to(folder) for path in files if path.is_file()}
    return {str(name): path for path, name in names.items() if name.parts[0].startswith(PARTS)}
