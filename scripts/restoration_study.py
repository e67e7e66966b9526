"""Restoration of held-out pictures, measured, on a trained run:

    python scripts/restoration_study.py runs/fashion --out studies/fashion [--data fashion_mnist --split test] ...

Five tasks (inpainting, 4x super-resolution, deblurring, 4x MRI, 20-view CT), several methods, and what is done without
a network: the pseudo-inverse (bicubic enlargement, zero-filled k-space, filtered back-projection) and total variation
(scikit-image, its weight chosen on pictures after those that are measured). Of every cell: PSNR, SSIM and, with
--lpips, LPIPS of the mean of the draws and of single draws, the share of pixels in the 90 % intervals, network calls
and seconds a draw. Each cell is a file in OUT/cells as soon as it is done, so that the same command goes on where it
stopped; OUT/study.md holds the tables and OUT/TASK.png pictures.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.commands.images import images_of_data
from jaxdiff.commands.restore import compared
from jaxdiff.config import to_json
from jaxdiff.data import open_validation
from jaxdiff.data.pictures import Pictures
from jaxdiff.measurements import as_uint8, inside, simulated
from jaxdiff.names import OPERATORS, POSTERIORS, value_of
from jaxdiff.pretrained.lpips import Distance, find_lpips
from jaxdiff.restoration import nominal, open_run, picture_shape, restoration, statistics
from jaxdiff.sampling.inverse.operator import Linear
from jaxdiff.settings import Settings
from jaxdiff.trained import Trained
from jaxdiff.training.contact_sheet import contact_sheet, save_png
from jaxdiff.training.cpu import use_cpu

TASKS = {
    "inpainting": "box(side=0.5)",
    "super-resolution": "downsample(factor=4)",
    "deblurring": "blur(std=1.5)",
    "mri": "mri(acceleration=4.0)",
    "ct": "ct(views=20)",
}
METHODS = ("ddnm", "ddrm", "pigdm", "diffpir", "daps", "dps(scale=5.0)", "red-diff")
BASELINES = ("pseudo-inverse", "total variation")
CREDIBLE = 0.9
SHOWN = 4
"""Pictures of each cell that are kept to be shown."""
TUNED_ON = 4
"""Pictures, after those that are measured, on which the weight of total variation is chosen."""
WEIGHTS = (0.003, 0.01, 0.03, 0.1)
FIGURES = ("psnr", "psnr_of_draws", "ssim", "ssim_of_draws", "lpips", "lpips_of_draws", "coverage")


class Task(NamedTuple):
    """A task's pictures and measurements."""

    name: str
    operator: Linear
    truths: np.ndarray
    """[n, h, w, c], in [0, 1]."""
    y: np.ndarray
    """[n, ...], as methods take them."""
    noise: float
    """Of y."""


def held_out(trained: Trained, data: str, split: str, places: range) -> np.ndarray:
    """The pictures at these places of those that the run was not trained on, in [0, 1].

    Raises: ValueError where the run holds none out and no other set is named, or where there are too few.
    """
    own, count = trained.config.data, len(places)
    if data or split:
        named = dataclasses.replace(own, source=data or own.source, split=split or own.split, holdout=0.0)
        images = images_of_data(named)
        found = images.read(np.arange(min(places[-1] + 1, images.count or places[-1] + 1)))[places.start :: places.step]
    else:
        source = open_validation(own)
        if source is None:
            raise ValueError("this run holds no pictures out: name others (--data, --split)")
        pictures = Pictures(own, source)
        found = np.stack([pictures[i]["image"] for i in places if i < len(pictures)])
    if len(found) < count:
        raise ValueError(f"there are {len(found)} held-out pictures and {count} are needed (--images)")
    return found.astype(np.float64) / 255


def task_of(name: str, pictures: np.ndarray, noise: float) -> Task:
    """The measurements of these pictures, each with noise of its own."""
    spec = value_of(TASKS[name], OPERATORS, "--tasks")
    operator = spec.on(pictures.shape[1:], {})
    assert isinstance(operator, Linear)
    y = [inside(operator, simulated(spec, operator, p, noise, seed)) for seed, p in enumerate(pictures)]
    return Task(name, operator, pictures, np.stack(y), 2 * noise)


def averaged(
    task: Task, count: int, draws_of: Callable[[int], np.ndarray], distance: Distance | None
) -> tuple[dict[str, float], np.ndarray, np.ndarray]:
    """(figures averaged over `count` pictures with their standard errors, means and deviations of the first ones)."""
    rows, means, stds = [], [], []
    for i in range(count):
        draws = draws_of(i)
        found = statistics(draws, CREDIBLE)
        rows.append(compared(task.truths[i], draws, found, distance))
        means.append(found["mean"])
        stds.append(found["std"])
    figures = {}
    for name in (n for n in FIGURES if n in rows[0]):
        values = np.array([row[name] for row in rows])
        figures[name] = float(values.mean())
        figures[f"{name}_error"] = float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else 0.0
    return figures, np.stack(means[:SHOWN]), np.stack(stds[:SHOWN])


def by_method(trained: Trained, task: Task, method: str, count: int, num: int, distance: Distance | None):
    """A cell: `num` draws for each of `count` pictures."""
    job = restoration(trained, task.operator, value_of(method, POSTERIORS, "--methods"), task.noise)
    size, rows = job.batch_size, np.arange(count * num) // num
    made, seconds = [], []
    for first in range(0, len(rows), size):
        chosen = np.resize(rows[first : first + size], size)
        for _ in range(2 if first == 0 else 1):  # the first call compiles
            started = time.monotonic()
            images, _ = job.draw(np.arange(first, first + size, dtype=np.int32), task.y[chosen], task.noise)
            seconds.append(time.monotonic() - started)
        made.append(images)
    images = np.concatenate(made)[: len(rows)].reshape(count, num, *task.truths.shape[1:])
    figures, means, stds = averaged(task, count, lambda i: images[i], distance)
    figures["seconds"] = float(np.mean(seconds[1:]) / size)
    return figures | {"nfe": job.nfe, "nominal": nominal(num, CREDIBLE)}, means, stds


def enlarged(task: Task) -> np.ndarray:
    """What the pseudo-inverse makes of the measurements, in [-1, 1]; small pictures are enlarged by bicubic kernels."""
    y = jnp.asarray(task.y, jnp.float32)
    if task.name == "super-resolution":
        shape = task.truths.shape
        return np.asarray(jax.image.resize(y, shape, "cubic"))
    return np.asarray(jax.jit(task.operator.pinv)(y))


def least_variation(task: Task, weight: float, chosen: slice, steps: int = 100) -> np.ndarray:
    """argmin |y - A x|^2 / 2 + weight TV(x) by accelerated proximal gradients, TV's half by scikit-image.

    Source: Beck and Teboulle, "Fast gradient-based algorithms for constrained total variation", 2009.
    """
    from skimage.restoration import denoise_tv_chambolle

    operator = task.operator
    y = jnp.asarray(task.y[chosen], jnp.float32)
    gradient = jax.jit(lambda x: operator.adjoint(operator.forward(x) - y))
    x = np.asarray(operator.pinv(y), np.float64)
    ahead, t, largest = x, 1.0, norm(operator)
    for _ in range(steps):
        moved = ahead - np.asarray(gradient(jnp.asarray(ahead, jnp.float32)), np.float64) / largest
        new = np.stack([denoise_tv_chambolle(m, weight / largest, channel_axis=-1, max_num_iter=50) for m in moved])
        t_new = (1 + np.sqrt(1 + 4 * t * t)) / 2
        ahead, x, t = new + (t - 1) / t_new * (new - x), new, t_new
    return x


def norm(operator: Linear) -> float:
    """The largest eigenvalue of A^T A, by the power method."""
    x, size = jnp.ones((1, *operator.shape), jnp.float32), 1.0
    step = jax.jit(lambda x: operator.adjoint(operator.forward(x)))
    for _ in range(30):
        x = step(x)
        size = float(jnp.linalg.norm(x))
        x = x / size
    return size


def by_baseline(task: Task, name: str, count: int, distance: Distance | None):
    """A cell of what is done without a network."""
    started, extra = time.monotonic(), {}
    if name == "pseudo-inverse":
        found = enlarged(task)[:count]
    else:
        tuning = slice(count, count + TUNED_ON)
        errors = [np.mean((least_variation(task, w, tuning) - (2 * task.truths[tuning] - 1)) ** 2) for w in WEIGHTS]
        extra["weight"], started = WEIGHTS[int(np.argmin(errors))], time.monotonic()
        found = least_variation(task, extra["weight"], slice(count))
    seconds = (time.monotonic() - started) / count
    found = (found.astype(np.float64) + 1) / 2
    figures, means, stds = averaged(task, count, lambda i: found[i : i + 1], distance)
    for figure in ("coverage", "coverage_error"):  # one picture has no interval
        figures.pop(figure)
    return figures | extra | {"seconds": seconds, "nfe": 0}, means, stds


def cell(folder: Path, name: str, recipe: dict, make: Callable) -> dict:
    """The cell, made now or read where it is there. Raises: ValueError where another study lies there."""
    file = folder / f"{name}.json"
    if file.exists():
        record = json.loads(file.read_text())
        if record["recipe"] != recipe:
            raise ValueError(f"{file} is a cell of another study: name another folder (--out)")
        return record
    try:
        figures, means, stds = make()
        np.savez_compressed(folder / f"{name}.npz", mean=as_uint8(means), std=stds.astype(np.float32))
        record = {"recipe": recipe, **figures}
    except ValueError as error:
        record = {"recipe": recipe, "refused": str(error)}
    file.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps({"cell": name, **{k: v for k, v in record.items() if k != "recipe"}}), flush=True)
    return record


def table(cells: dict[tuple[str, str], dict], task: str) -> str:
    """A row a method."""
    names = ("psnr", "ssim", "lpips", "psnr_of_draws", "ssim_of_draws", "lpips_of_draws", "coverage", "nfe", "seconds")
    rows = {method: record for (t, method), record in cells.items() if t == task}
    shown = [n for n in names if any(n in r for r in rows.values())]
    lines = [[task, *(n.replace("_", " ") for n in shown)], ["---"] * (len(shown) + 1)]
    for method, record in rows.items():
        lines.append([method, *(figure(record, n) for n in shown)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def figure(record: dict, name: str) -> str:
    """A number as it stands in a table."""
    if name not in record or record[name] is None:
        return ""
    digits = {"psnr": 2, "psnr_of_draws": 2, "nfe": 0}.get(name, 3)
    error = f" ± {record[f'{name}_error']:.{digits}f}" if f"{name}_error" in record else ""
    return f"{record[name]:.{digits}f}{error}"


def sheet(folder: Path, task: Task, methods: list[str]) -> np.ndarray:
    """A row a picture: the pseudo-inverse, the means of the methods, the deviation of the last one, the truth."""
    looks = as_uint8((enlarged(task)[:SHOWN] + 1) / 2)
    columns = [looks]
    for method in methods:
        file = folder / f"{task.name}--{method}.npz"
        if file.exists():
            held = np.load(file)
            columns.append(held["mean"])
            std = held["std"]
    columns += [as_uint8(np.asarray(std) / max(float(np.max(std)), 1e-12)), as_uint8(task.truths[:SHOWN])]
    return contact_sheet(np.stack(columns, axis=1).reshape(-1, *task.truths.shape[1:]), columns=len(columns))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", default="", help="another set than the run's")
    parser.add_argument("--split", default="", help="another part of it than the run was trained on")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--first", type=int, default=0, help="place of the first of them in the set")
    parser.add_argument(
        "--every", type=int, default=1, help="places from one to the next, as slices resemble each other"
    )
    parser.add_argument("--num", type=int, default=20, help="draws a picture; 19 or more for intervals of 90 %%")
    parser.add_argument("--noise", type=float, default=0.02)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=80)
    parser.add_argument("--tasks", nargs="*", default=list(TASKS))
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--lpips", default="", help="lpips-alexnet, lpips-vgg16, or a file of weights")
    flags = parser.parse_args()
    use_cpu(flags.batch_size)
    cells_in = flags.out / "cells"
    cells_in.mkdir(parents=True, exist_ok=True)
    distance = find_lpips(flags.lpips) if flags.lpips else None
    trained = open_run(flags.dir, Settings(steps=flags.steps, batch_size=flags.batch_size))
    places = range(flags.first, flags.first + flags.every * (flags.images + TUNED_ON), flags.every)
    pictures = held_out(trained, flags.data, flags.split, places)
    if pictures.shape[1:] != picture_shape(trained.config):
        raise ValueError(f"pictures {pictures.shape[1:]} are not those of the run, {picture_shape(trained.config)}")
    cells = {}
    for name in flags.tasks:
        task = task_of(name, pictures, flags.noise)
        recipe = {
            "operator": to_json(value_of(TASKS[name], OPERATORS, "--tasks")),
            **{
                key: getattr(flags, key)
                for key in ("images", "first", "every", "num", "noise", "steps", "data", "split")
            },
            "weights_sha256": trained.weights_sha256,
            "lpips": distance and distance.weights_sha256,
        }
        for baseline in BASELINES:
            cells[name, baseline] = cell(
                cells_in,
                f"{name}--{baseline}",
                recipe,
                lambda task=task, baseline=baseline: by_baseline(task, baseline, flags.images, distance),
            )
        for method in flags.methods:
            cells[name, method] = cell(
                cells_in,
                f"{name}--{method}",
                recipe,
                lambda task=task, method=method: by_method(trained, task, method, flags.images, flags.num, distance),
            )
        save_png(flags.out / f"{name}.png", sheet(cells_in, task, [*BASELINES[1:], *flags.methods]))
        tables = [table(cells, done) for done in dict.fromkeys(t for t, _ in cells)]
        (flags.out / "study.md").write_text("\n\n".join(tables) + "\n")


if __name__ == "__main__":
    main()
