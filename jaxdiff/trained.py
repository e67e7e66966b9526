"""A trained run, ready to sample: the flags of sampling, the parameters they choose, the compiled sampler."""

import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh
from jaxtyping import Int, Shaped, UInt8

from jaxdiff.config import Config, from_json, to_json
from jaxdiff.core.grids import Table, pad
from jaxdiff.core.types import Level, Params
from jaxdiff.names import GRIDS, RULES, SOLVERS, value_of
from jaxdiff.networks.axes import parameter_axes
from jaxdiff.sampler import (
    Guides,
    Sampler,
    Scales,
    Weights,
    check_sampling,
    finish_of,
    is_guided,
    labels_for,
    levels_of,
    sampler,
    scales_of,
)
from jaxdiff.sampling.guidance_rules import Interval
from jaxdiff.training import hosts
from jaxdiff.training.ema import Decay, Power
from jaxdiff.training.restore import fingerprint, read_params, read_posthoc, read_step_config, steps
from jaxdiff.training.sharding import MeshShape, make_mesh, partition, replicated, shard_batch, share, to_host
from jaxdiff.training.workdir import read_config


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
    label: str | None = None
    """Class of all images, by number or by name (by default the classes in turn)."""
    cfg_scale: float | None = None
    """Classifier-free guidance, or autoguidance with --guide; 1 is none (by default the run's own)."""
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
    mesh: MeshShape = MeshShape()
    """How the devices share out images and parameters; changes nothing else."""

    def __post_init__(self) -> None:
        for name, low in {"batch_size": 1, "seed": 0, "steps": 1}.items():
            value = getattr(self, name)
            if value is not None and not low <= value < 2**31:
                flag = name.replace("_", "-")
                raise ValueError(f"{name} = {value} is not allowed: {low} to {2**31 - 1} (--{flag})")


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
    """Parameters and a sampler of one checkpoint under given settings."""

    config: Config
    """The run's config with the settings in it."""
    settings: Settings
    step: int
    """Of the checkpoint."""
    label: int | None
    """Class of all images; None: the classes in turn."""
    label_names: tuple[str, ...]
    guides: Guides
    weights: Weights
    weights_sha256: str
    """Of all parameters, averages taken: whatever is kept of a run's samples belongs to these."""
    levels: Level
    run: Sampler
    finish: Callable[[Shaped[np.ndarray, "*n b h w c"]], UInt8[np.ndarray, "*n b H W C"]]
    """From what `run` returns to images."""

    @property
    def params(self) -> Params:
        """The parameters of the run's own network."""
        return self.weights.main

    @property
    def nfe(self) -> int | None:
        """Network calls an image, None where they differ by image (guidance asks about two rows in one call)."""
        return self.config.solver.nfe(self.levels)

    @property
    def batch_size(self) -> int:
        """Images made at once: the setting, as a multiple of the devices that share them."""
        parts = share(self.mesh)
        return -(-self.settings.batch_size // parts) * parts

    @property
    def mesh(self) -> Mesh:
        """The devices."""
        return make_mesh(self.settings.mesh)

    def images(self, indices: Int[np.ndarray, "b"]) -> UInt8[np.ndarray, "b h w c"]:
        """The images of these numbers; `b` is a multiple of the devices."""
        cond = labels_for(self.config, indices, self.label, self.guides)
        inputs = shard_batch(self.mesh, {"index": indices, **cond})
        index, seed = inputs.pop("index"), jnp.int32(self.settings.seed)
        with jax.set_mesh(self.mesh):
            found = to_host(self.run(self.weights, seed, index, self.levels, inputs, self.scales))
        return self.finish(found)

    @property
    def scales(self) -> Scales:
        """The strengths of guidance."""
        return scales_of(self.config, self.settings.classifier_scale)

    def description(self) -> dict[str, object]:
        """All that the images depend on besides their numbers, for records."""
        ema, config, settings = self.settings.ema, self.config, self.settings
        classifier = settings.classifier
        guides = {
            "guide": None if settings.guide is None else [str(settings.guide), settings.guide_step, settings.guide_ema],
            "classifier": None if classifier is None else [str(classifier), settings.classifier_scale],
        }
        return {
            "checkpoint_step": self.step,
            "weights_sha256": self.weights_sha256,
            "seed": self.settings.seed,
            "label": self.label,
            "ema": ema if ema is not None else (to_json(config.ema[0]) if config.ema else "none"),
            "solver": to_json(config.solver),
            "grid": to_json(config.grid),
            "sampling": to_json(config.sampling),
            "nfe": self.nfe,
            **({"codec": config.codec} if config.codec else {}),
            **{name: value for name, value in guides.items() if value is not None},
        }


class Checkpoint(NamedTuple):
    """What a sampler reads of a checkpoint."""

    config: Config
    label_names: tuple[str, ...]
    step: int
    params: Params


def read_checkpoint(workdir: epath.PathLike, step: int | None, ema: str | None) -> Checkpoint:
    """The checkpoint of a run: its config, and the parameters or an average of them.

    Raises: ValueError or FileNotFoundError, one line that names the flag.
    """
    read_config(workdir)  # refuses a folder that is no run
    stored = steps(workdir)
    if not stored:
        raise ValueError(f"{workdir} has no complete checkpoint yet: let train.py reach --save-every steps")
    step = stored[-1] if step is None else step
    record = read_step_config(workdir, step)
    config = from_json(record["config"])
    assert isinstance(config, Config)
    return Checkpoint(config, tuple(record["label_names"]), step, read_ema(workdir, step, config, ema))


def open_trained(workdir: epath.PathLike, settings: Settings, most_steps: int = 0) -> Trained:
    """The run in `workdir` under these settings.

    Grids are padded to the length of `most_steps` steps, so that one compilation serves a sweep over numbers of steps.

    Raises: ValueError or FileNotFoundError, one line that names the flag.
    """
    own = read_checkpoint(workdir, settings.step, settings.ema)
    config = with_settings(own.config, settings)
    if settings.grid == "optimised":
        config = dataclasses.replace(config, grid=read_fitted_grid(workdir, config.sampling.steps))
    weaker = settings.guide and read_checkpoint(settings.guide, settings.guide_step, settings.guide_ema)
    classifier = settings.classifier and read_checkpoint(settings.classifier, None, None)
    guides = Guides(weaker.config if weaker else None, classifier.config if classifier else None)
    check_sampling(config, guides)
    names = own.label_names or (classifier.label_names if classifier else ())
    label = None if settings.label is None else find_label(settings.label, names)
    path = config.objective.path_of(own.params)
    levels = levels_of(config, path)
    if most_steps > config.sampling.steps and settings.grid != "optimised":
        longest = dataclasses.replace(config, sampling=dataclasses.replace(config.sampling, steps=most_steps))
        levels = pad(levels, levels_of(longest, path).alpha.shape[0] - 1)
    weights = Weights(own.params, weaker.params if weaker else None, classifier.params if classifier else None)
    sha256 = fingerprint(weights)
    mesh = make_mesh(settings.mesh)
    weights = hosts.place(weights, partition(weights, mesh, parameter_axes))
    levels = hosts.place(levels, replicated(mesh))
    run = shared_sampler(config, guides)
    return Trained(config, settings, own.step, label, names, guides, weights, sha256, levels, run, finish_of(config))


def fitted_grid(workdir: epath.PathLike, steps: int) -> epath.Path:
    """Where `jaxdiff grid` writes the levels for this number of steps."""
    return epath.Path(workdir) / "grids" / f"{steps}.json"


def read_fitted_grid(workdir: epath.PathLike, steps: int) -> Table:
    """The levels that were fitted to the run. Raises: ValueError if there are none for this number of steps."""
    path = fitted_grid(workdir, steps)
    if not path.exists():
        raise ValueError(f"{workdir} has no grid for {steps} steps: jaxdiff grid {workdir} --steps {steps} (--grid)")
    table = from_json(json.loads(path.read_text())["grid"])
    assert isinstance(table, Table)
    return table


def with_settings(config: Config, settings: Settings) -> Config:
    """The config, changed where the settings say something. Raises: ValueError."""
    changed = {
        "steps": settings.steps,
        "cfg_scale": settings.cfg_scale,
        "guidance": settings.guidance and value_of(settings.guidance, RULES, "--guidance"),
        "interval": settings.interval and Interval(*settings.interval),
        "pag_scale": settings.pag_scale,
        "threshold": settings.threshold,
    }
    sampling = dataclasses.replace(config.sampling, **{k: v for k, v in changed.items() if v is not None})
    solver = config.solver if settings.solver is None else value_of(settings.solver, SOLVERS, "--solver")
    grid = config.grid if settings.grid in (None, "optimised") else value_of(settings.grid, GRIDS, "--grid")
    codec = config.codec if settings.codec is None else settings.codec
    config = dataclasses.replace(config, sampling=sampling, solver=solver, grid=grid, codec=codec)
    if settings.cfg_scale not in (None, 1) and not (is_guided(config) or settings.guide):
        raise ValueError(
            f"cfg_scale = {settings.cfg_scale} is not allowed: this network has no classes (--cfg-scale, --guide)"
        )
    return config


def shared_sampler(config: Config, guides: Guides) -> Sampler:
    """The sampler of this config; configs that differ only in what is traced (levels, scales) share a compilation."""
    traced = {
        "steps": 1,
        "cfg_scale": 2.0 if is_guided(config) else 1.0,
        "pag_scale": 1.0 if config.sampling.pag_scale else 0.0,
    }
    sampling = dataclasses.replace(config.sampling, **traced)
    alike = dataclasses.replace(config, sampling=sampling, grid=GRIDS["uniform"], codec="")
    return _sampler(*(json.dumps(to_json(c)) for c in (alike, *guides)))


@functools.lru_cache(maxsize=16)
def _sampler(config: str, weaker: str, classifier: str) -> Sampler:
    own, *others = (from_json(json.loads(text)) for text in (config, weaker, classifier))
    assert isinstance(own, Config)
    return sampler(own, Guides(*others))  # pyright: ignore[reportArgumentType]


def find_label(label: str, label_names: Sequence[str]) -> int:
    """The class that a number or a name means. Raises: ValueError, naming what is allowed."""
    if not label_names:
        raise ValueError(f"label {label!r} is not allowed: this network has no classes (--label)")
    named = {name.casefold(): i for i, name in enumerate(label_names)}
    index = int(label) if label.lstrip("-").isdigit() else named.get(label.casefold(), -1)
    if not 0 <= index < len(label_names):
        raise ValueError(
            f"label {label!r} is not allowed: 0 to {len(label_names) - 1}, or one of {', '.join(label_names)} (--label)"
        )
    return index


def read_ema(workdir: epath.PathLike, step: int, config: Config, length: str | None) -> Params:
    """The parameters that `--ema` asks for. Raises: ValueError, naming what is allowed."""
    averages = config.ema
    if length == "none" or (length is None and not averages):
        return read_params(workdir, step)
    if length is None:
        return read_params(workdir, step, 0)
    tracked = [str(a.decay if isinstance(a, Decay) else a.sigma_rel) for a in averages]
    if length in tracked:
        return read_params(workdir, step, tracked.index(length))
    powers = [a for a in averages if isinstance(a, Power)]
    if powers and length.replace(".", "", 1).isdigit() and 0 < float(length) < 12**-0.5:
        return read_posthoc(workdir, step, float(length))[0]
    more = ", or any length in (0, 0.2887)" if powers else ""
    raise ValueError(f"ema {length!r} is not allowed: none, {', '.join(tracked)}{more} (--ema)")
