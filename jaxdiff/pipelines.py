"""Folders of whole pipelines, as diffusers saves them, as models of ours and the files that go with them.

    ours                        diffusers'
    model.safetensors           unet or transformer
    config.json                 the same, scheduler, and what the pipeline's class does by default
    codec                       vae or vqvae
    text                        tokenizer, text_encoder and their numbered fellows: see pretrained/prompts.py
    published                   the JSON files as they were, for the way back

Where a folder holds no folder of a part, as those of the first DDPMs, the part lies in the folder itself.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from jaxdiff.config import Config, Sampling
from jaxdiff.core import times
from jaxdiff.core.codec import Opened
from jaxdiff.core.paths import DiscreteVP
from jaxdiff.data import Data, Latents
from jaxdiff.families import FAMILIES, Part, class_of, read_part
from jaxdiff.models import Checkpoint
from jaxdiff.networks.flux import PATCH, Flux
from jaxdiff.networks.mmdit import MMDiT
from jaxdiff.networks.pixart import PixArt
from jaxdiff.networks.unet import UNet
from jaxdiff.objectives.denoising import Denoising
from jaxdiff.objectives.hybrid import Hybrid
from jaxdiff.pretrained.autoencoder import open_autoencoder
from jaxdiff.pretrained.fields import Json
from jaxdiff.pretrained.folders import read_json, weights_file
from jaxdiff.pretrained.pickles import refusing
from jaxdiff.pretrained.prompts import INDEX, RECIPES, files_of, lacking, open_encoders
from jaxdiff.pretrained.vq import open_vq
from jaxdiff.schedulers import Schedule, open_scheduler

SCHEDULER = "scheduler_config.json"
CODEC, TEXT, PUBLISHED = "codec", "text", "published"
"""Where things lie in the folders of ours."""


class Way(NamedTuple):
    """What a pipeline does unless it is told otherwise."""

    steps: int
    cfg_scale: float = 1.0
    own_grid: bool = False
    """It lays the grid itself, and its scheduler but shifts it."""


PIPELINES: Mapping[str, Way] = {
    "DDPMPipeline": Way(1000),
    "DDIMPipeline": Way(50),
    "LDMPipeline": Way(50),
    "DiTPipeline": Way(50, 4.0),
    "StableDiffusionPipeline": Way(50, 7.5),
    "StableDiffusionXLPipeline": Way(50, 5.0),
    "StableDiffusion3Pipeline": Way(28, 7.0),
    "FluxPipeline": Way(28, own_grid=True),
    "PixArtAlphaPipeline": Way(20, 4.5),
    "PixArtSigmaPipeline": Way(20, 4.5),
}
"""By diffusers' name of the class."""


CODECS: Mapping[str, tuple[str, str, Callable[[str], Opened]]] = {
    "AutoencoderKL": ("vae", "kl", open_autoencoder),
    "VQModel": ("vqvae", "vq", open_vq),
}
"""By diffusers' name of the class: its part in a pipeline, our name of the codec, what opens its folder."""


class Pipeline(NamedTuple):
    """What a folder becomes."""

    model: Checkpoint
    files: Mapping[str, Path]
    """What is copied beside the model, by its place there."""


def is_pipeline(folder: Path) -> bool:
    """Whether this is the folder of a pipeline."""
    return (folder / INDEX).is_file()


def read_pipeline(folder: Path) -> Pipeline:
    """The model and its files. Raises FileNotFoundError or ValueError, one line that names what is not supported."""
    index = read_json(folder / INDEX)
    kind = str(index.get("_class_name"))
    if kind not in PIPELINES:
        raise ValueError(f"{folder}: the pipeline {kind} is not known: allowed are {', '.join(PIPELINES)}")
    way = PIPELINES[kind]
    place = part_folder(folder, index)
    part = read_part(place)
    schedule = read_schedule(part_of(folder, "scheduler") / SCHEDULER, tokens_of(part.size, way))
    files = {f"{PUBLISHED}/{INDEX}": folder / INDEX}
    files[f"{PUBLISHED}/{FAMILIES[part.kind].part}/config.json"] = place / "config.json"
    files[f"{PUBLISHED}/scheduler/{SCHEDULER}"] = part_of(folder, "scheduler") / SCHEDULER
    latents = None
    for place in (folder / name for name, _, _ in CODECS.values() if name in index):
        latents = _latents(place, part)
        files |= {f"{CODEC}/{name}": place / name for name in ("config.json", weights_file(place).name)}
    config = _config(part, schedule, way, latents)
    if kind in RECIPES:
        files |= {f"{TEXT}/{place}": path for place, path in files_of(folder).items()}
        config = _with_texts(config, folder, index)
    return Pipeline(Checkpoint(config, _names(index, part), 0, {"network": part.params}, "", ()), files)


def part_of(folder: Path, name: str) -> Path:
    """Where a part lies."""
    return folder / name if (folder / name).is_dir() else folder


def part_folder(folder: Path, index: Mapping[str, object]) -> Path:
    """Where the network lies. Raises ValueError where the pipeline has none that is known."""
    for name in ("unet", "transformer"):
        if name in index:
            place = part_of(folder, name)
            class_of(read_json(place / "config.json"))
            return place
    raise ValueError(f"{folder}: the pipeline has neither unet nor transformer")


def read_schedule(file: Path, tokens: int) -> Schedule:
    """As `open_scheduler`, of a file."""
    json = read_json(file)
    with refusing(file):
        return open_scheduler(json, tokens)


def tokens_of(size: int, way: Way) -> int:
    """Tokens of an image of the native size where the pipeline lays its own grid, 0 elsewhere."""
    return (size // PATCH) ** 2 if way.own_grid else 0


def _latents(vae: Path, part: Part) -> Latents:
    kind = str(read_json(vae / "config.json").get("_class_name"))
    if kind not in CODECS:
        raise ValueError(f"{vae}: the codec {kind} is not supported: {' and '.join(CODECS)} are")
    _, name, opener = CODECS[kind]
    opened = opener(str(vae))
    if opened.channels != part.channels:
        raise ValueError(f"{vae}: latents of {opened.channels} channels, but the network's have {part.channels}")
    # Scale and shift are in the codec's own config.json.
    zeros, ones = (0.0,) * part.channels, (1.0,) * part.channels
    return Latents(name, opened.sha256, opened.factor, zeros, ones)


def _config(part: Part, schedule: Schedule, way: Way, latents: Latents | None) -> Config:
    path, prediction = schedule.path, schedule.prediction
    if isinstance(path, DiscreteVP):
        law = times.UniformSteps(path.num_steps)
        learned = getattr(part.network, "learned_variance", False)
        objective = Hybrid(path, prediction, law) if learned else Denoising(path, prediction, law)
    else:
        objective = Denoising(path, prediction, times.Uniform())
    if latents is not None and schedule.threshold != "none":
        raise ValueError("scheduler_config.json: clip_sample = True is not allowed with latents, which leave [-1, 1]")
    classes = getattr(part.network, "num_classes", 0)
    return Config(
        data=Data("records:published", size=part.size, channels=part.channels, labels=bool(classes)),
        network=part.network,
        objective=objective,
        solver=schedule.solver,
        grid=schedule.grid,
        sampling=Sampling(steps=way.steps, cfg_scale=way.cfg_scale, threshold=schedule.threshold),
        codec="" if latents is None else f"{latents.codec}={CODEC}",
        latents=latents,
    )


def _with_texts(config: Config, folder: Path, index: Json) -> Config:
    """The config with the reader of the pipeline's prompts, or as it is where its encoders are not there."""
    if lacking(folder):
        return config
    network, length = config.network, RECIPES[str(index["_class_name"])].length
    assert isinstance(network, UNet | PixArt | MMDiT | Flux)
    open_encoders(folder, index, network.text_width, length)  # refuses what sampling would
    data = dataclasses.replace(config.data, text=True)
    return dataclasses.replace(config, data=data, text=f"published={TEXT}", text_length=length)


def _names(index: Mapping[str, object], part: Part) -> tuple[str, ...]:
    count, said = getattr(part.network, "num_classes", 0), index.get("id2label")
    numbers = [str(i) for i in range(count)]
    if isinstance(said, dict) and all(i in said for i in numbers):
        return tuple(str(said[i]) for i in numbers)
    return tuple(numbers)
