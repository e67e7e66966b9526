"""Turn a run or a published model into a folder that sample.py takes: jaxdiff convert SRC DIR [--to diffusers].

SRC is the folder of a run, of which DIR keeps what samples are made with and nothing else; or the folder of a pipeline
of diffusers, with its model_index.json, a single file of Stable Diffusion or FLUX.1, or an original file of
improved-diffusion, guided-diffusion (ADM), DiT, SiT, EDM, EDM2 or score SDE. With --to diffusers it is a run or a model
of ours, and DIR becomes such a folder. docs/convert.md lists what is read, and what is refused.
"""

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import jax
import numpy as np
import tyro

from jaxdiff import cli, singles
from jaxdiff.autoencoders import is_autoencoder
from jaxdiff.checkpoints import read_checkpoint
from jaxdiff.exports import export
from jaxdiff.models import Checkpoint, Dtype, check_new, find_model, is_run, write_model
from jaxdiff.originals import config_of, open_original, tensors_of
from jaxdiff.pipelines import Pipeline, is_pipeline, read_pipeline
from jaxdiff.pretrained.adm import Ways
from jaxdiff.pretrained.prompts import lacking
from jaxdiff.singles import Given, PredictionName

CODEC = "codec"
"""Where a model's folder holds what decodes its latents."""


@dataclasses.dataclass(frozen=True)
class Command:
    """Convert a run or a published model."""

    src: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SRC")]
    """The folder of a run, or a published folder or file; with --to, a run's folder, or a model's."""
    dir: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """The folder to write; it must be new or empty."""
    to: Literal["jaxdiff", "diffusers"] = "jaxdiff"
    """Whose layout is written."""
    ema: str | None = None
    """Of a run: which average, as in sample.py (by default the first)."""
    step: int | None = None
    """And the step of its checkpoint (by default the last)."""
    codec: str | None = None
    """Of a run on latents: what decodes them, as in sample.py (by default the run's own); it comes into the folder."""
    dtype: Dtype = "float32"
    """Of the numbers that are written."""
    sit: bool = False
    """The file, which has the names of DiT, is SiT's."""
    heads: int | None = None
    """Attention heads of a U-Net of improved- or guided-diffusion that is none of the published ones, as the file does
    not say; this and the next five are read together, where any of them is given."""
    head_channels: int | None = None
    """Or the channels of a head."""
    heads_first: bool = True
    """Its attention's outputs are sorted by head first; not so with the program's --use_new_attention_order."""
    cosine: bool = False
    """It was trained on the cosine schedule."""
    chain: int = 1000
    """Steps of its chain."""
    rescaled: bool = False
    """It is told the time in thousandths of the chain."""
    size: int | None = None
    """Side of its images; of score SDE's as well, 32 by default, and of Stable Diffusion's."""
    prediction: PredictionName | None = None
    """What the U-Net of a single file predicts, which its tensors do not tell: by default eps, but v in those of Stable
    Diffusion 2, whose base model of 512 pixels has eps."""
    vae: Path | None = None
    """The file of an autoencoder, for a single file that holds none, or in place of its own."""
    tokenizer: Path | None = None
    """The folder with CLIP's vocab.json and merges.txt, or with a pipeline's folders tokenizer, tokenizer_2 and so on,
    which no single file holds: prompts need them."""

    @property
    def given(self) -> Given:
        """What the flags say of a single file."""
        return Given(self.prediction, self.size, self.vae, self.tokenizer)

    @property
    def ways(self) -> Ways | None:
        """What the flags say of a file that does not tell; None where they say nothing."""
        plain = (None, None, True, False, 1000, False, None)
        said = (self.heads, self.head_channels, self.heads_first, self.cosine, self.chain, self.rescaled, self.size)
        if said == plain:
            return None
        for name, value in (("heads", self.heads), ("head_channels", self.head_channels), ("size", self.size)):
            if value is not None and value < 1:
                raise ValueError(f"{name} = {value} is not allowed: at least 1 (--{name.replace('_', '-')})")
        rest = (self.heads_first, self.cosine, self.chain, self.rescaled, self.size or Ways().size)
        return Ways(self.heads or 1, self.head_channels or 0, *rest)


def read_original(command: Command, arrays: Mapping[str, np.ndarray] | None) -> Checkpoint:
    """The model of an original file, its classes named by their numbers."""
    original = open_original(command.src, command.ways, command.sit, arrays)
    names = tuple(map(str, range(original.network.num_classes)))
    return Checkpoint(config_of(original), names, 0, {"network": original.params}, "", ())


def main(args: Sequence[str]) -> None:
    """Writes the folder that the flags ask for."""
    with cli.user_errors():
        command = cli.parse(Command, "jaxdiff convert", args, description=__doc__ or "")
        if command.to == "diffusers":
            model = read_checkpoint(command.src, command.step, command.ema)
            if note := export(model, Path(find_model(command.src) or command.src), command.dir):
                print(note)
        else:
            model = convert(command)
        count = sum(leaf.size for leaf in jax.tree.leaves(model.params))
        print(f"{type(model.config.network).__name__} of {count:,} parameters in {command.dir}")


def convert(command: Command) -> Checkpoint:
    """Writes a run or a published model as a model of ours."""
    if not command.src.exists():
        raise FileNotFoundError(f"there is no {command.src} (SRC)")
    if is_run(command.src):
        check_new(command.dir)
        return packed(command)
    if command.src.is_dir() and not is_pipeline(command.src):
        raise ValueError(f"{command.src} is no run, and has no model_index.json as a pipeline has (SRC)")
    if any(given is not None for given in (command.ema, command.step, command.codec)):
        raise ValueError(f"{command.src} is no run (--ema, --step, --codec)")
    check_new(command.dir)  # before the work, and not after it
    if command.src.is_dir():
        return write(command, read_pipeline(command.src), command.src)
    arrays = tensors_of(command.src)
    if arrays is not None and singles.recognised(arrays):
        with singles.unpacked(command.src, arrays, command.given, command.dir) as folder:
            del arrays  # what is read of the folder is another copy
            return write(command, read_pipeline(folder), folder)
    if command.given._replace(size=None) != Given():
        raise ValueError(f"{command.src} is no single file of a pipeline (--prediction, --vae, --tokenizer)")
    return write(command, Pipeline(read_original(command, arrays), {}))


def packed(command: Command) -> Checkpoint:
    """Writes what is sampled of a run, and beside it what decodes its latents."""
    model = sampled_of(read_checkpoint(command.src, command.step, command.ema))
    spec = model.config.codec if command.codec is None else command.codec
    name, _, place = spec.partition("=")
    with tempfile.TemporaryDirectory() as folder:
        files: dict[str, Path] = {}
        if name == "run":
            codec = Path(folder) / CODEC
            write_model(codec, sampled_of(read_checkpoint(place, None, None)))  # exact: it made the latents
            files, spec = {f"{CODEC}/{file.name}": file for file in codec.iterdir()}, f"run={CODEC}"
        elif Path(place).is_file():
            files, spec = {f"{CODEC}/{Path(place).name}": Path(place)}, f"{name}={CODEC}/{Path(place).name}"
        model = model._replace(config=dataclasses.replace(model.config, codec=spec))
        write_model(command.dir, model, command.dtype, files)
    return model


def sampled_of(model: Checkpoint) -> Checkpoint:
    """The model without what only its training needs."""
    return model._replace(params={"network": model.params["network"]} if is_autoencoder(model.config) else model.params)


def write(command: Command, found: Pipeline, folder: Path | None = None) -> Checkpoint:
    """Writes what was read, of a pipeline from this folder, and says what it lacks."""
    write_model(command.dir, found.model, command.dtype, found.files)
    if folder is not None and (absent := lacking(folder)):
        flag = " (--tokenizer FOLDER)" if any("tokenizer" in part for part in absent) else ""
        print(f"note: without {' and '.join(absent)} prompts are not read: it is sampled without a text{flag}")
    return found.model
