"""A trained run, ready to sample: the flags of sampling, the parameters they choose, the compiled sampler."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, UInt8

from jaxdiff import build
from jaxdiff.config import Config, from_json, to_json
from jaxdiff.core.grids import Table
from jaxdiff.core.types import Level, Params
from jaxdiff.names import GRIDS, SOLVERS, value_of
from jaxdiff.training.ema import Decay, Power
from jaxdiff.training.restore import read_params, read_posthoc, read_step_config, steps
from jaxdiff.training.state import data_mesh, replicated, shard_batch
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
    label: str | None = None
    """Class of all images, by number or by name (by default the classes in turn)."""
    cfg_scale: float | None = None
    """Classifier-free guidance; 1 is none (by default the run's own)."""
    ema: str | None = None
    """Which average of the parameters: a decay that was tracked (0.999), a length relative to the run (0.05) where
    power-function averages were tracked, or `none` for the parameters themselves (by default the first average)."""
    step: int | None = None
    """Step of the checkpoint (by default the last)."""

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
    params: Params
    params_sha256: str
    """Of all parameters, the average taken: whatever is kept of a run's samples belongs to these."""
    levels: Level
    run: build.Sampler

    @property
    def nfe(self) -> int | None:
        """Network calls an image, None where they differ by image (guidance asks about two rows in one call)."""
        return self.config.solver.nfe(self.levels)

    @property
    def batch_size(self) -> int:
        """Images made at once: the setting, as a multiple of the devices."""
        devices = jax.device_count()
        return -(-self.settings.batch_size // devices) * devices

    def images(self, indices: Int[np.ndarray, "b"]) -> UInt8[np.ndarray, "b h w c"]:
        """The images of these numbers; `b` is a multiple of the devices."""
        mesh = data_mesh()
        inputs = shard_batch(mesh, {"index": indices, **build.labels_for(self.config, indices, self.label)})
        index, scale = inputs.pop("index"), jnp.float32(self.config.sampling.cfg_scale)
        return np.asarray(self.run(self.params, jnp.int32(self.settings.seed), index, self.levels, inputs, scale))

    def description(self) -> dict[str, object]:
        """All that the images depend on besides their numbers, for records."""
        ema, config = self.settings.ema, self.config
        return {
            "checkpoint_step": self.step,
            "params_sha256": self.params_sha256,
            "seed": self.settings.seed,
            "label": self.label,
            "ema": ema if ema is not None else (to_json(config.ema[0]) if config.ema else "none"),
            "solver": to_json(config.solver),
            "grid": to_json(config.grid),
            "sampling": to_json(config.sampling),
            "nfe": self.nfe,
        }


def open_trained(workdir: Path, settings: Settings) -> Trained:
    """The run in `workdir` under these settings.

    Raises: ValueError or FileNotFoundError, one line that names the flag.
    """
    read_config(workdir)  # refuses a folder that is no run
    stored = steps(workdir)
    if not stored:
        raise ValueError(f"{workdir} has no complete checkpoint yet: let train.py reach --save-every steps")
    step = stored[-1] if settings.step is None else settings.step
    record = read_step_config(workdir, step)
    config = from_json(record["config"])
    assert isinstance(config, Config)
    config = with_settings(config, settings)
    if settings.grid == "optimised":
        config = dataclasses.replace(config, grid=read_fitted_grid(workdir, config.sampling.steps))
    label = None if settings.label is None else find_label(settings.label, record["label_names"])
    params = read_ema(workdir, step, config, settings.ema)
    levels = build.levels_of(config, config.objective.path_of(params))
    params, levels = jax.device_put((params, levels), replicated(data_mesh()))
    names = tuple(record["label_names"])
    return Trained(config, settings, step, label, names, params, fingerprint(params), levels, shared_sampler(config))


def fingerprint(params: Params) -> str:
    """The SHA-256 of all arrays, in the order of their names."""
    whole = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(params):
        array = np.asarray(leaf)
        whole.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        whole.update(array.tobytes())
    return whole.hexdigest()


def fitted_grid(workdir: Path, steps: int) -> Path:
    """Where `jaxdiff grid` writes the levels for this number of steps."""
    return workdir / "grids" / f"{steps}.json"


def read_fitted_grid(workdir: Path, steps: int) -> Table:
    """The levels that were fitted to the run. Raises: ValueError if there are none for this number of steps."""
    path = fitted_grid(workdir, steps)
    if not path.exists():
        raise ValueError(f"{workdir} has no grid for {steps} steps: jaxdiff grid {workdir} --steps {steps} (--grid)")
    table = from_json(json.loads(path.read_text())["grid"])
    assert isinstance(table, Table)
    return table


def with_settings(config: Config, settings: Settings) -> Config:
    """The config, changed where the settings say something. Raises: ValueError."""
    changed = {"steps": settings.steps, "cfg_scale": settings.cfg_scale, "threshold": settings.threshold}
    sampling = dataclasses.replace(config.sampling, **{k: v for k, v in changed.items() if v is not None})
    solver = config.solver if settings.solver is None else value_of(settings.solver, SOLVERS, "--solver")
    grid = config.grid if settings.grid in (None, "optimised") else value_of(settings.grid, GRIDS, "--grid")
    config = dataclasses.replace(config, sampling=sampling, solver=solver, grid=grid)
    if settings.cfg_scale not in (None, 1) and not build.is_guided(config):
        raise ValueError(f"cfg_scale = {settings.cfg_scale} is not allowed: this network has no classes (--cfg-scale)")
    return config


def shared_sampler(config: Config) -> build.Sampler:
    """The sampler of this config; configs that differ only in what is traced (levels, scales) share a compilation."""
    sampling = dataclasses.replace(config.sampling, steps=1, cfg_scale=2.0 if build.is_guided(config) else 1.0)
    return _sampler(json.dumps(to_json(dataclasses.replace(config, sampling=sampling, grid=GRIDS["uniform"]))))


@functools.lru_cache(maxsize=16)
def _sampler(config_json: str) -> build.Sampler:
    config = from_json(json.loads(config_json))
    assert isinstance(config, Config)
    return build.sampler(config)


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


def read_ema(workdir: Path, step: int, config: Config, length: str | None) -> Params:
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
