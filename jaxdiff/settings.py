"""The flags of sampling, and what they change in a run's config."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Annotated, Literal

import tyro
from etils import epath

from jaxdiff.config import Config
from jaxdiff.names import GRIDS, RULES, SOLVERS, value_of
from jaxdiff.networks.flux import Flux
from jaxdiff.sampler import is_guided
from jaxdiff.sampling.guidance_rules import Interval
from jaxdiff.texts import Reader
from jaxdiff.training.sharding import MeshShape


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a trained network is sampled; None leaves what the run itself says."""

    seed: int = 0
    """Seed; image i is made from the seed and i alone."""
    batch_size: int = 64
    """Images made at once."""
    steps: int | None = None
    """Steps of the solver (by default the run's own, 50 in most presets)."""
    solver: str | None = None
    """The solver (by default the run's own, ddim in most presets), by name or with fields: "heun(churn=40)"."""
    grid: str | None = None
    """The noise levels (by default the run's own), by name or with fields: "karras(rho=5)"; "optimised": those that
    jaxdiff grid has fitted to the run."""
    threshold: Literal["none", "static", "dynamic"] | None = None
    """Keep x0 estimates in [-1, 1] (by default the run's own)."""
    codec: str | None = None
    """Of a run on latents: the codec and its decoder's weights, taef2=taef2_decoder.safetensors (by default the run's
    own)."""
    tile: int = 0
    """Decode latents in tiles of this many latent pixels a side, which share a quarter, to save memory; 0: whole."""
    label: str | None = None
    """Class of all images, by number or by name (by default the classes in turn)."""
    prompt: str | None = None
    """What all images show, in words (by default captions that the run was trained on, in turn)."""
    negative_prompt: str | None = None
    """What guidance leads away from (by default no prompt; with published models the empty one, as theirs do)."""
    also: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(name="and")] = ()
    """What else all images show, TEXT or TEXT:WEIGHT, or classes: 1 is as well as the prompt (AND), -1 instead of it
    (NOT); may be said several times."""
    text_parts: int | None = None
    """Parts of 75 tokens in which CLIP reads a prompt of a published model, one after the other (by default one, and
    what is longer is cut)."""
    cfg_scale: float | None = None
    """Classifier-free guidance, or autoguidance with --guide; 1 is none (by default the run's own)."""
    distilled_scale: float | None = None
    """The strength of guidance that FLUX.1-dev is told (by default 3.5), besides which --cfg-scale guides as ever."""
    guidance: str | None = None
    """How guidance combines two beliefs (by default the run's own, cfg in most presets), by name or with fields:
    "apg(radius=5)"."""
    interval: tuple[float, float] | None = None
    """Guide at low < sigma/alpha <= high only (by default the run's own)."""
    pag_scale: float | None = None
    """Perturbed-attention guidance; 0 is none (by default the run's own)."""
    guide: epath.Path | None = None
    """Autoguidance: the folder of a weaker run (or of this one, with --guide-step or --guide-ema), which --cfg-scale
    leads away from."""
    guide_step: int | None = None
    """Step of the guide's checkpoint (by default the last)."""
    guide_ema: str | None = None
    """The guide's average of the parameters, as in --ema."""
    classifier: epath.Path | None = None
    """Classifier guidance: the folder of a run that trained a classifier of noisy images."""
    classifier_scale: float = 1.0
    """Strength of classifier guidance; 0 is none, 1 is Bayes' rule."""
    ema: str | None = None
    """Which average of the parameters: a decay that was tracked (0.999), a length relative to the run (0.05) where
    power-function averages were tracked, or `none` for the parameters themselves (by default the first average)."""
    step: int | None = None
    """Step of the checkpoint (by default the last)."""
    lora: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A LoRA .safetensors that is merged into the parameters, FILE or FILE:WEIGHT; may be said several times."""
    base: epath.Path | None = None
    """Of a run that trained a LoRA or a new word: the run or model that it started from (by default where that was)."""
    mesh: MeshShape = MeshShape()
    """How the devices share out images and parameters; changes nothing else."""

    def __post_init__(self) -> None:
        for name, low in {"batch_size": 1, "seed": 0, "steps": 1, "tile": 0, "text_parts": 1}.items():
            value = getattr(self, name)
            if value is not None and not low <= value < 2**31:
                flag = name.replace("_", "-")
                raise ValueError(f"{name} = {value} is not allowed: {low} to {2**31 - 1} (--{flag})")


def with_settings(config: Config, settings: Settings) -> Config:
    """The config, changed where the settings say something. Raises: ValueError."""
    changed = {
        "steps": settings.steps,
        "cfg_scale": settings.cfg_scale,
        "guidance": settings.guidance and value_of(settings.guidance, RULES, "--guidance"),
        "interval": settings.interval and Interval(*settings.interval),
        "pag_scale": settings.pag_scale,
        "distilled_scale": settings.distilled_scale,
        "threshold": settings.threshold,
    }
    sampling = dataclasses.replace(config.sampling, **{k: v for k, v in changed.items() if v is not None})
    solver = config.solver if settings.solver is None else value_of(settings.solver, SOLVERS, "--solver")
    grid = config.grid if settings.grid in (None, "optimised") else value_of(settings.grid, GRIDS, "--grid")
    codec = config.codec if settings.codec is None else settings.codec
    parts = config.text_parts if settings.text_parts is None else settings.text_parts
    config = dataclasses.replace(config, sampling=sampling, solver=solver, grid=grid, codec=codec, text_parts=parts)
    if settings.cfg_scale not in (None, 1) and not (is_guided(config) or settings.guide):
        raise ValueError(
            f"cfg_scale = {settings.cfg_scale} is not allowed: this network is told of no classes or texts "
            "(--cfg-scale, --guide)"
        )
    if settings.text_parts is not None and not config.text.startswith("published"):
        raise ValueError(f"text_parts = {parts} is not allowed: no CLIP gives this network tokens (--text-parts)")
    if settings.distilled_scale is not None and not (isinstance(config.network, Flux) and config.network.guidance):
        raise ValueError(
            f"distilled_scale = {settings.distilled_scale} is not allowed: this network is told no strength of "
            "guidance, use --cfg-scale (--distilled-scale)"
        )
    return config


def find_label(label: str, label_names: Sequence[str], flag: str = "--label") -> int:
    """The class that a number or a name means. Raises: ValueError, naming what is allowed."""
    if not label_names:
        raise ValueError(f"label {label!r} is not allowed: this network has no classes ({flag})")
    named = {name.casefold(): i for i, name in enumerate(label_names)}
    index = int(label) if label.lstrip("-").isdigit() else named.get(label.casefold(), -1)
    if not 0 <= index < len(label_names):
        raise ValueError(
            f"label {label!r} is not allowed: 0 to {len(label_names) - 1}, or one of {', '.join(label_names)} ({flag})"
        )
    return index


def parts_of(settings: Settings) -> list[tuple[str, float]]:
    """What --and says: texts with their weights. What follows the last colon is a weight if it is a number."""
    found = []
    for said in settings.also:
        text, colon, end = said.rpartition(":")
        try:
            found.append((text.strip(), float(end)) if colon else (said, 1.0))
        except ValueError:
            found.append((said, 1.0))
    for text, weight in found:
        if not text or not math.isfinite(weight):
            raise ValueError(f"{text!r} with the weight {weight} is not allowed: TEXT or TEXT:WEIGHT (--and)")
    return found


def prompts_of(settings: Settings, captions: tuple[str, ...], reader: Reader | None) -> tuple[str, ...]:
    """The prompts of the images in turn. Raises: ValueError where the network is told of none."""
    for flag, said in (("--prompt", settings.prompt), ("--negative-prompt", settings.negative_prompt)):
        if said is not None and reader is None:
            raise ValueError(f"prompt {said!r} is not allowed: this network knows no texts ({flag})")
    if settings.prompt is not None:
        return (settings.prompt,)
    return captions or ("",)
