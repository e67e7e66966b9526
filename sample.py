"""Sample images from a checkpoint: python sample.py DIR --out OUT [--num 64] [--steps 50] [--label L] ...

Image number i depends on the seed and on i alone: it is the same at any batch size.
"""

import dataclasses
import io
import json
import sys
import time
from collections.abc import Sequence
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from etils import epath
from tqdm import tqdm

from jaxdiff import cli
from jaxdiff.names import GRIDS, RULES, SOLVERS
from jaxdiff.sampler import labels_for, sampler
from jaxdiff.trained import Settings, Trained, open_trained
from jaxdiff.training import hosts
from jaxdiff.training.contact_sheet import contact_sheet, save_png
from jaxdiff.training.sharding import to_host
from jaxdiff.training.state import use_every_core

MOST_IN_GRID = 256
"""Images in grid.png."""


@dataclasses.dataclass(frozen=True)
class Command:
    """Sample images from the checkpoint of a run."""

    dir: Annotated[epath.Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """The run's folder, train.py's --workdir."""
    out: epath.Path
    """Folder for grid.png, the images, and info.json."""
    num: int = 64
    """Images to make."""
    trajectory: bool = False
    """Also write trajectory.png: the first 8 images after each of up to 10 steps."""
    format: Literal["png", "npz"] = "png"
    """One PNG an image in images/, or all of them in samples.npz (`images`, uint8 [n, h, w, c])."""
    settings: Annotated[Settings, tyro.conf.arg(name="")] = Settings()

    def __post_init__(self) -> None:
        if not 1 <= self.num < 2**31:
            raise ValueError(f"num = {self.num} is not allowed: 1 to {2**31 - 1} (--num)")


def prepare_out(out: epath.PathLike) -> epath.Path:
    """Makes the folder. Raises: ValueError where that cannot be."""
    out = epath.Path(out)
    try:
        if hosts.is_first():
            out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"out {out} cannot be written: {error.strerror} (--out)") from error
    return out


def trajectory_sheet(trained: Trained, count: int):
    """A row an image: the states after up to 10 of the steps."""
    few = np.arange(count, dtype=np.int32)
    follow = sampler(trained.config, trained.guides, steps_too=True)
    cond = labels_for(trained.config, few, trained.label, trained.guides)
    seed = jnp.int32(trained.settings.seed)
    with jax.set_mesh(trained.mesh):
        path = to_host(follow(trained.weights, seed, jnp.asarray(few), trained.levels, cond, trained.scales))
    path = trained.finish(path)
    chosen = np.unique(np.linspace(0, len(path) - 1, 10).round().astype(int))
    return contact_sheet(path[chosen].swapaxes(0, 1).reshape(-1, *path.shape[2:]), columns=len(chosen))


def sample(command: Command) -> None:
    """Samples, and writes everything under `command.out`."""
    size = min(command.settings.batch_size, command.num)
    trained = open_trained(command.dir, dataclasses.replace(command.settings, batch_size=size))
    out = prepare_out(command.out)

    started, images = time.monotonic(), []
    # The last batch is filled up with further images, which are left out, so that one compilation serves all.
    size = trained.batch_size
    for first in tqdm(range(0, command.num, size), unit="batch", disable=command.num <= size or not hosts.is_first()):
        images.append(trained.images(np.arange(first, first + size, dtype=np.int32)))
    images = np.concatenate(images)[: command.num]
    seconds = time.monotonic() - started
    sheet = trajectory_sheet(trained, min(8, command.num)) if command.trajectory else None
    if not hosts.is_first():
        return

    save_png(out / "grid.png", contact_sheet(images[:MOST_IN_GRID]))
    if command.format == "npz":
        whole = io.BytesIO()
        np.savez_compressed(whole, images=images)
        (out / "samples.npz").write_bytes(whole.getvalue())
    else:
        (out / "images").mkdir(exist_ok=True)
        for i, image in enumerate(images):
            save_png(out / "images" / f"{i:06d}.png", image)
    if sheet is not None:
        save_png(out / "trajectory.png", sheet)
    info = {
        "workdir": str(command.dir),
        "num": command.num,
        "batch_size": command.settings.batch_size,
        **trained.description(),
        "seconds": round(seconds, 3),
    }
    (out / "info.json").write_text(json.dumps(info, indent=1) + "\n")
    calls = "" if trained.nfe is None else f", {trained.nfe} network calls each"
    print(f"{command.num} images of step {trained.step} in {out} ({seconds:.1f} s{calls})")


def main(args: Sequence[str]) -> None:
    with cli.user_errors():
        named = {"Solvers": SOLVERS, "Grids": GRIDS, "Guidance": RULES}
        words = "\n".join(f"{kind}: {', '.join(table)}." for kind, table in named.items())
        command = cli.parse(Command, "sample.py", args, description=f"{__doc__}\n{words}")
        use_every_core(command.settings.batch_size // hosts.count())
        sample(command)


if __name__ == "__main__":
    main(sys.argv[1:])
