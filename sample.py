"""Sample images from a checkpoint: python sample.py DIR --out OUT [--num 64] [--steps 50] [--label L] ...

Image number i depends on the seed and on i alone: it is the same at any batch size.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from tqdm import tqdm

from jaxdiff import build, cli
from jaxdiff.config import Config, from_json, to_json
from jaxdiff.core.types import Params
from jaxdiff.sampling.ddim import DDIM
from jaxdiff.sampling.dpm_solver import DPMSolverPP2M
from jaxdiff.sampling.euler_maruyama import EulerMaruyama
from jaxdiff.sampling.heun import Heun
from jaxdiff.training.contact_sheet import contact_sheet, save_png
from jaxdiff.training.ema import Decay, Power
from jaxdiff.training.restore import read_params, read_posthoc, read_step_config, steps
from jaxdiff.training.state import data_mesh, replicated, shard_batch, use_every_core
from jaxdiff.training.workdir import read_config

MOST_IN_GRID = 256
"""Images in grid.png."""


@dataclasses.dataclass(frozen=True)
class Command:
    """Sample images from the checkpoint of a run."""

    dir: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """The run's folder, train.py's --workdir."""
    out: Path
    """Folder for grid.png, the images, and info.json."""
    num: int = 64
    """Images to make."""
    batch_size: int = 64
    """Images made at once."""
    seed: int = 0
    """Seed; image i is made from the seed and i alone."""
    steps: int | None = None
    """Steps of the solver (by default the run's own, 50 in most presets)."""
    solver: Literal["ddim", "ddpm", "heun", "euler-maruyama", "dpmpp-2m"] | None = None
    """The solver (by default the run's own, ddim in most presets). ddpm is DDIM with eta = 1."""
    label: str | None = None
    """Class of all images, by number or by name (by default the classes in turn)."""
    cfg_scale: float | None = None
    """Classifier-free guidance; 1 is none (by default the run's own)."""
    ema: str | None = None
    """Which average of the parameters: a decay that was tracked (0.999), a length relative to the run (0.05) where
    power-function averages were tracked, or `none` for the parameters themselves (by default the first average)."""
    step: int | None = None
    """Step of the checkpoint (by default the last)."""
    trajectory: bool = False
    """Also write trajectory.png: the first 8 images after each of up to 10 steps."""
    format: Literal["png", "npz"] = "png"
    """One PNG an image in images/, or all of them in samples.npz (`images`, uint8 [n, h, w, c])."""

    def __post_init__(self) -> None:
        for name, low in {"num": 1, "batch_size": 1, "seed": 0, "steps": 1}.items():
            value = getattr(self, name)
            if value is not None and not low <= value < 2**31:
                flag = name.replace("_", "-")
                raise ValueError(f"{name} = {value} is not allowed: {low} to {2**31 - 1} (--{flag})")


SOLVERS = {
    "ddim": DDIM(),
    "ddpm": DDIM(eta=1.0),
    "heun": Heun(),
    "euler-maruyama": EulerMaruyama(),
    "dpmpp-2m": DPMSolverPP2M(),
}
"""What `--solver` names."""


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


def prepare_out(out: Path) -> Path:
    """Makes the folder. Raises: ValueError where that cannot be."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"out {out} cannot be written: {error.strerror} (--out)") from error
    return out


def sample(command: Command) -> None:
    """Samples, and writes everything under `command.out`."""
    read_config(command.dir)  # refuses a folder that is no run
    stored = steps(command.dir)
    if not stored:
        raise ValueError(f"{command.dir} has no complete checkpoint yet: let train.py reach --save-every steps")
    step = stored[-1] if command.step is None else command.step
    record = read_step_config(command.dir, step)
    config = from_json(record["config"])
    assert isinstance(config, Config)
    settings = {"steps": command.steps, "cfg_scale": command.cfg_scale}
    sampling = dataclasses.replace(config.sampling, **{k: v for k, v in settings.items() if v is not None})
    solver = config.solver if command.solver is None else SOLVERS[command.solver]
    config = dataclasses.replace(config, sampling=sampling, solver=solver)
    if command.cfg_scale not in (None, 1) and not build.is_guided(config):
        raise ValueError(f"cfg_scale = {command.cfg_scale} is not allowed: this network has no classes (--cfg-scale)")
    label = None if command.label is None else find_label(command.label, record["label_names"])
    params = read_ema(command.dir, step, config, command.ema)
    levels = build.levels_of(config, config.objective.path_of(params))
    run = build.sampler(config)
    out = prepare_out(command.out)

    mesh = data_mesh()
    params, levels = jax.device_put((params, levels), replicated(mesh))
    started, images = time.monotonic(), []
    # The last batch is filled up with further images, which are left out, so that one compilation serves all.
    size = -(-min(command.batch_size, command.num) // mesh.size) * mesh.size
    for first in tqdm(range(0, command.num, size), unit="batch", disable=command.num <= size):
        indices = np.arange(first, first + size, dtype=np.int32)
        inputs = shard_batch(mesh, {"index": indices, **build.labels_for(config, indices, label)})
        index = inputs.pop("index")
        batch = run(params, jnp.int32(command.seed), index, levels, inputs, jnp.float32(sampling.cfg_scale))
        images.append(np.asarray(batch))
    images = np.concatenate(images)[: command.num]
    seconds = time.monotonic() - started

    save_png(out / "grid.png", contact_sheet(images[:MOST_IN_GRID]))
    if command.format == "npz":
        np.savez_compressed(out / "samples.npz", images=images)
    else:
        (out / "images").mkdir(exist_ok=True)
        for i, image in enumerate(images):
            save_png(out / "images" / f"{i:06d}.png", image)
    if command.trajectory:
        few = np.arange(min(8, command.num), dtype=np.int32)
        follow = build.sampler(config, steps_too=True)
        cond, scale = build.labels_for(config, few, label), jnp.float32(sampling.cfg_scale)
        path = np.asarray(follow(params, jnp.int32(command.seed), jnp.asarray(few), levels, cond, scale))
        chosen = np.unique(np.linspace(0, len(path) - 1, 10).round().astype(int))
        rows = path[chosen].swapaxes(0, 1).reshape(-1, *path.shape[2:])
        save_png(out / "trajectory.png", contact_sheet(rows, columns=len(chosen)))
    info = {
        "workdir": str(command.dir),
        "checkpoint_step": step,
        "num": command.num,
        "batch_size": command.batch_size,
        "seed": command.seed,
        "label": label,
        "ema": command.ema if command.ema is not None else (to_json(config.ema[0]) if config.ema else "none"),
        "solver": to_json(solver),
        "grid": to_json(config.grid),
        "sampling": to_json(sampling),
        "nfe": solver.nfe(levels),
        "seconds": round(seconds, 3),
    }
    (out / "info.json").write_text(json.dumps(info, indent=1) + "\n")
    print(f"{command.num} images of step {step} in {out} ({seconds:.1f} s, {info['nfe']} network calls each)")


def main(args: Sequence[str]) -> None:
    with cli.user_errors():
        command = cli.parse(Command, "sample.py", args, description=__doc__ or "")
        use_every_core(command.batch_size)
        sample(command)


if __name__ == "__main__":
    main(sys.argv[1:])
