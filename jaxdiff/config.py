"""What a run is: a tree of frozen dataclasses, read from flags and from JSON.

Presets choose the types of the values, flags override their numbers (`--path.shift 2`), and the resolved tree is
stored with every checkpoint, so that a sampler needs nothing else.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Literal, get_args

import tyro

from jaxdiff.core import betas, grids, paths, predictions, times, weights
from jaxdiff.data import Data, Latents
from jaxdiff.networks.autoencoder import AutoencoderKL
from jaxdiff.networks.classifier import Classifier
from jaxdiff.networks.dit import DiT
from jaxdiff.networks.edm2 import EDM2
from jaxdiff.networks.flux import Flux
from jaxdiff.networks.lora import LoRA
from jaxdiff.networks.mmdit import MMDiT
from jaxdiff.networks.new_word import NewWord
from jaxdiff.networks.pixart import PixArt
from jaxdiff.networks.schedule import LearnedSchedule
from jaxdiff.networks.text_transformer import TextTransformer
from jaxdiff.networks.unet import UNet
from jaxdiff.objectives.autoencoder import Adversary, Autoencoding
from jaxdiff.objectives.classification import Classification
from jaxdiff.objectives.denoising import Denoising
from jaxdiff.objectives.hybrid import Hybrid
from jaxdiff.objectives.vdm import VDM
from jaxdiff.sampling.ancestral import Ancestral
from jaxdiff.sampling.ddim import DDIM
from jaxdiff.sampling.deis import DEIS
from jaxdiff.sampling.dpm_solver import DPMSolverPP
from jaxdiff.sampling.dpm_solver_single import DPMSolver, DPMSolverPPS
from jaxdiff.sampling.euler_maruyama import EulerMaruyama
from jaxdiff.sampling.guidance_rules import CFG, AnyRule, Interval
from jaxdiff.sampling.heun import Heun
from jaxdiff.sampling.plms import PLMS, PNDM
from jaxdiff.sampling.predictor_corrector import PredictorCorrector
from jaxdiff.sampling.renoise import Renoise
from jaxdiff.sampling.restart import Restart
from jaxdiff.sampling.rk45 import RK45
from jaxdiff.sampling.sa_solver import SASolver
from jaxdiff.sampling.unipc import B1, B2, UniPC
from jaxdiff.training import optim as optimisers
from jaxdiff.training.ema import Average, Decay, Power
from jaxdiff.training.sharding import MeshShape

AnySolver = (
    DDIM
    | Ancestral
    | Heun
    | EulerMaruyama
    | PredictorCorrector
    | DPMSolver
    | DPMSolverPP
    | DPMSolverPPS
    | DEIS
    | PLMS
    | PNDM
    | UniPC
    | SASolver
    | RK45
    | Restart
    | Renoise
)
"""The solvers that a config may hold."""


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How a trained network is sampled unless sample.py is told otherwise."""

    steps: int = 50
    """Steps of the solver."""
    cfg_scale: float = 1.0
    """Classifier-free guidance: ref + scale * (main - ref); 1: none."""
    guidance: AnyRule = CFG()
    """How guidance combines the belief with the condition and the one without."""
    interval: Interval = Interval()
    """The sigma/alpha at which there is guidance."""
    pag_scale: float = 0.0
    """Perturbed-attention guidance: away from the network with identity attention in its middle; 0: none."""
    distilled_scale: float = 3.5
    """The strength of guidance that networks are told which were distilled with it (FLUX.1-dev); no others are."""
    threshold: Literal["none", "static", "dynamic"] = "static"
    """Keep x0 estimates in [-1, 1]: by clipping (static) or by Imagen's quantile rule (dynamic)."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps = {self.steps} is not allowed: at least 1 (--sampling.steps)")


@dataclasses.dataclass(frozen=True)
class Config:
    """A run."""

    data: Data
    """What is learned from."""
    network: UNet | DiT | PixArt | MMDiT | Flux | EDM2 | Classifier | AutoencoderKL
    """The network."""
    objective: Annotated[Denoising | Hybrid | VDM | Classification | Autoencoding, tyro.conf.arg(name="")]
    """What a training step minimises."""
    optim: optimisers.Optim = optimisers.Optim()
    """How gradients change the parameters."""
    ema: tuple[Average, ...] = (Decay(),)
    """Averages of the parameters; the first is the one that is sampled by default."""
    solver: AnySolver = DDIM()
    """The sampler's solver."""
    grid: grids.AnyGrid = grids.UniformT()
    """The sampler's noise levels."""
    sampling: Sampling = Sampling()
    """Other defaults of sampling."""
    text: str = ""
    """What reads captions and prompts, for networks that are told them: `words`, the network's own text encoder, which
    learns with it; `minilm` or `minilm=FILE`, frozen; `published=FOLDER`, the encoders of a published pipeline."""
    text_length: int = 32
    """Tokens of a text that a frozen encoder reads; longer ones are cut."""
    text_parts: int = 1
    """Parts of 75 tokens in which the CLIP of a published pipeline reads a text, one after the other."""
    codec: str = ""
    """Where the data are latents: their codec and its decoder, taef2=taef2_decoder.safetensors, for previews and as
    sample.py's default."""
    latents: Annotated[Latents | None, tyro.conf.Suppress] = None
    """What the data are latents of, as the data themselves say; train.py fills it in."""
    start: str = ""
    """Folder of the run, or folder or name of the model, whose parameters training starts from (of its first average);
    with --lora.rank or --word.text they stay as they are, and this run stores only what it adds."""
    start_step: Annotated[int, tyro.conf.Suppress] = -1
    """The step of that run's checkpoint; train.py fills it in."""
    start_sha256: Annotated[str, tyro.conf.Suppress] = ""
    """Of those parameters; train.py fills it in."""
    lora: LoRA = LoRA()
    """Train low-rank changes of the parameters that training starts from."""
    word: NewWord = NewWord()
    """Train the embedding of one new word, and nothing else (textual inversion)."""
    mesh: MeshShape = MeshShape()
    """How the devices share out the batch and the state; changes nothing else."""
    engine: Literal["jit", "pmap"] = "jit"
    """What spreads a step over devices: the compiler, over any mesh, or pmap, over `data` alone."""
    steps: int = 1000
    """Training steps."""
    batch_size: int = 64
    """Images in a step, over all devices."""
    seed: int = 0
    """Seed of everything: initial parameters, order of the data, noise."""
    log_every: int = 50
    """Steps between lines of the log."""
    save_every: int = 500
    """Steps between checkpoints; the last step always has one."""
    keep: int = 2
    """Latest checkpoints that are kept."""
    keep_every: int = 0
    """Checkpoints at multiples of this are kept for ever; 0: none."""
    preview_every: int = 0
    """Steps between grids of samples, written to `samples/` and to TensorBoard; 0: none."""
    validate_every: int = 0
    """Steps between measurements of the validation loss by noise level; 0: none."""

    def __post_init__(self) -> None:
        lows = {"steps": 1, "batch_size": 1, "seed": 0, "log_every": 1, "save_every": 1, "keep": 1}
        lows |= {"text_length": 3, "text_parts": 1, "keep_every": 0, "preview_every": 0, "validate_every": 0}
        for name, low in lows.items():
            if not low <= getattr(self, name) < 2**31:
                flag = name.replace("_", "-")
                raise ValueError(f"{name} = {getattr(self, name)} is not allowed: at least {low} (--{flag})")
        if self.batch_size % self.optim.accumulate:
            raise ValueError(
                f"batch_size = {self.batch_size} is not a multiple of accumulate = {self.optim.accumulate} "
                "(--batch-size, --optim.accumulate)"
            )
        if self.lora.rank and self.word.text:
            raise ValueError(
                "a new word is not allowed with low-rank changes: train one of them (--word.text, --lora.rank)"
            )

    @property
    def image_channels(self) -> int:
        """Channels of the picture that the network is shown; 0: none."""
        return self.network.image_channels if isinstance(self.network, UNet | DiT) else 0


VOCABULARY: Mapping[str, type] = {
    cls.__name__: cls
    for cls in (
        *get_args(paths.FixedPath),
        *get_args(betas.AnyBetas),
        *get_args(predictions.AnyPrediction),
        *get_args(predictions.Feed),
        *get_args(times.AnyTimeLaw),
        *get_args(weights.AnyWeight),
        *get_args(grids.AnyGrid),
        *get_args(AnySolver),
        *get_args(AnyRule),
        *(Interval, B1, B2, grids.RestartInterval),
        *(LoRA, NewWord),
        *(UNet, DiT, PixArt, MMDiT, Flux, EDM2, Classifier, AutoencoderKL, TextTransformer, LearnedSchedule),
        *(Denoising, Hybrid, VDM, Classification, Autoencoding, Adversary),
        *(optimisers.Optim, optimisers.AdamW, optimisers.Lion, optimisers.SGD),
        *(optimisers.Constant, optimisers.CosineDecay, optimisers.InverseSqrt),
        *(Decay, Power, Data, Latents, Sampling, MeshShape, Config),
    )
}
"""Every type that a config may hold, by the name that JSON carries."""


def _fields(value: object) -> list[str]:
    """A value's own fields: not `parent` and `name`, which Flax adds to every module."""
    names = [f.name for f in dataclasses.fields(value)]  # pyright: ignore[reportArgumentType]
    return [name for name in names if name not in ("parent", "name")]


Json = dict[str, "Json"] | list["Json"] | str | float | int | bool | None


def to_json(value: object) -> Json:
    """A config as JSON: a dataclass becomes {"type": its name, field: ...}, a tuple a list."""
    if dataclasses.is_dataclass(value):
        return {"type": type(value).__name__} | {f: to_json(getattr(value, f)) for f in _fields(value)}
    if isinstance(value, tuple | list):
        return [to_json(v) for v in value]
    if value is None or isinstance(value, str | float | int | bool):
        return value
    raise TypeError(f"{value!r} cannot be stored in a config")


def from_json(value: Json) -> object:
    """The inverse of `to_json`.

    Raises: ValueError for a type that this version does not know.
    """
    if isinstance(value, dict):
        name = str(value["type"])
        if name not in VOCABULARY:
            raise ValueError(f"the config holds a {name}, which this version of jaxdiff does not know")
        fields = {k: from_json(v) for k, v in value.items() if k != "type"}
        if isinstance(fields.get("remat"), bool):  # how the U-Net said it before there was a choice
            fields["remat"] = "full" if fields["remat"] else "none"
        return VOCABULARY[name](**fields)
    if isinstance(value, list):
        return tuple(from_json(v) for v in value)
    return value
