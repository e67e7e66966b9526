"""Sample images from a checkpoint: python sample.py DIR --out OUT [--num 64] [--steps 50] [--label L] ...

Image number i depends on the seed and on i alone: it is the same at any batch size.
"""

import dataclasses
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
from jaxtyping import UInt8
from tqdm import tqdm

from jaxdiff import cli
from jaxdiff.names import GRIDS, RULES, SOLVERS
from jaxdiff.outputs import prepare_out, write_images
from jaxdiff.sampler import check_alone, sampler
from jaxdiff.settings import Settings
from jaxdiff.trained import Trained, open_trained, with_prompt
from jaxdiff.training import hosts
from jaxdiff.training.contact_sheet import contact_sheet
from jaxdiff.training.cpu import use_cpu
from jaxdiff.training.sharding import to_host


@dataclasses.dataclass(frozen=True)
class Command:
    """Sample images from the checkpoint of a run."""

    dir: Annotated[epath.Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """The run's folder, train.py's --workdir."""
    out: epath.Path
    """Folder for grid.png, the images, and info.json."""
    num: int = 64
    """Images to make."""
    prompts: epath.Path | None = None
    """A text file of prompts, one a line: --num images of each, in OUT/0000, OUT/0001 ...; folders that are complete
    are left as they are, so that the same command goes on where it stopped."""
    trajectory: bool = False
    """Also write trajectory.png: the first 8 images after each of up to 10 steps."""
    format: Literal["png", "npz"] = "png"
    """One PNG an image in images/, or all of them in samples.npz (`images`, uint8 [n, h, w, c])."""
    settings: Annotated[Settings, tyro.conf.arg(name="")] = Settings()

    def __post_init__(self) -> None:
        if not 1 <= self.num < 2**31:
            raise ValueError(f"num = {self.num} is not allowed: 1 to {2**31 - 1} (--num)")
        if self.prompts is not None and self.settings.prompt is not None:
            raise ValueError("--prompt and --prompts exclude each other: put the prompt into the file")


def trajectory_sheet(trained: Trained, count: int):
    """A row an image: the states after up to 10 of the steps."""
    few = np.arange(count, dtype=np.int32)
    follow = sampler(trained.config, trained.guides, steps_too=True)
    cond, negative = trained.conditions(few)
    seed = jnp.int32(trained.settings.seed)
    with jax.set_mesh(trained.mesh):
        told = cond, trained.scales, negative, trained.also(count)
        path = to_host(follow(trained.weights, seed, jnp.asarray(few), trained.levels, *told))
    path = trained.finish(path)
    chosen = np.unique(np.linspace(0, len(path) - 1, 10).round().astype(int))
    return contact_sheet(path[chosen].swapaxes(0, 1).reshape(-1, *path.shape[2:]), columns=len(chosen))


def make(trained: Trained, num: int) -> UInt8[np.ndarray, "n h w c"]:
    """Images 0 to num - 1."""
    images, size = [], trained.batch_size
    # The last batch is filled up with further images, which are left out, so that one compilation serves all.
    for first in tqdm(range(0, num, size), unit="batch", disable=num <= size or not hosts.is_first()):
        images.append(trained.images(np.arange(first, first + size, dtype=np.int32)))
    return np.concatenate(images)[:num]


def sample_to(out: epath.Path, trained: Trained, command: Command) -> None:
    """Samples, and writes everything under `out`."""
    started = time.monotonic()
    images = make(trained, command.num)
    seconds = time.monotonic() - started
    sheet = trajectory_sheet(trained, min(8, command.num)) if command.trajectory else None
    if not hosts.is_first():
        return

    info = {
        "workdir": str(command.dir),
        "num": command.num,
        "batch_size": command.settings.batch_size,
        **trained.description(),
        "seconds": round(seconds, 3),
    }
    write_images(out, images, info, command.format, {} if sheet is None else {"trajectory.png": sheet})
    calls = "" if trained.nfe is None else f", {trained.nfe} network calls each"
    print(f"{command.num} images of step {trained.step} in {out} ({seconds:.1f} s{calls})")


def sample(command: Command) -> None:
    """Samples, and writes everything under `command.out`."""
    size = min(command.settings.batch_size, command.num)
    trained = open_trained(command.dir, dataclasses.replace(command.settings, batch_size=size))
    check_alone(trained.config)
    prompts = None if command.prompts is None else read_prompts(command.prompts)
    out = prepare_out(command.out)
    if prompts is None:
        sample_to(out, trained, command)
        return
    for number, prompt in enumerate(prompts):
        folder, one = out / f"{number:04d}", with_prompt(trained, prompt)
        if not is_done(folder, one, command.num):
            sample_to(folder, one, command)


def read_prompts(file: epath.Path) -> list[str]:
    """The lines of a file that are not empty. Raises: FileNotFoundError or ValueError."""
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file} (--prompts)")
    prompts = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not prompts:
        raise ValueError(f"{file} has no prompts: one a line (--prompts)")
    return prompts


def is_done(folder: epath.Path, trained: Trained, num: int) -> bool:
    """Whether the folder holds these images already. Raises: ValueError where it holds others."""
    if not (folder / "info.json").exists():
        return False
    info = json.loads((folder / "info.json").read_text())
    wanted = json.loads(json.dumps({**trained.description(), "num": num}))
    if wrong := [name for name in wanted if info.get(name) != wanted[name]]:
        raise ValueError(f"{folder} holds images with another {wrong[0]}: use another folder (--out)")
    return True


def main(args: Sequence[str]) -> None:
    with cli.user_errors():
        named = {"Solvers": SOLVERS, "Grids": GRIDS, "Guidance": RULES}
        words = "\n".join(f"{kind}: {', '.join(table)}." for kind, table in named.items())
        command = cli.parse(Command, "sample.py", args, description=f"{__doc__}\n{words}")
        use_cpu(command.settings.batch_size // hosts.count())
        sample(command)


if __name__ == "__main__":
    main(sys.argv[1:])
