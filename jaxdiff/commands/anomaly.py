"""Show where images are unlike what a run has learned: jaxdiff anomaly DIR --out OUT [--normal CLASS] ...

DIR is a run or a model that was trained on normal images, in pixels. Each image is noised in part and taken back, some
times over, and compared with what comes back. With --normal, the class of the images' labels that is normal, the
scores of all others against its own are summed up as AUC, beside those of simple methods that know the training set.

OUT is laid out as sample.py's: images/ has the maps, one colour scale for all, grid.png some of them; rows.png shows
image, reconstruction and map from the least to the most unlike; maps.npz has all numbers, info.json the figures.
"""

import dataclasses
import io
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from etils import epath
from jaxtyping import Bool, Float, UInt8
from tqdm import tqdm

import jaxdiff
from jaxdiff import cli
from jaxdiff.commands.anomaly_images import Opened, data_of, flagged, learned
from jaxdiff.commands.anomaly_page import heat, rows_page
from jaxdiff.commands.images import eight_bits
from jaxdiff.config import to_json
from jaxdiff.core.cond import absent
from jaxdiff.core.types import Level
from jaxdiff.data.classes import class_of
from jaxdiff.data.medical.slices import SliceSource
from jaxdiff.evaluation import anomaly
from jaxdiff.evaluation.ranks import auc_interval
from jaxdiff.evaluation.store import write_whole
from jaxdiff.outputs import prepare_out, write_images
from jaxdiff.pretrained.lpips import Distance, find_lpips
from jaxdiff.reconstruction import Reconstructor, levels_from, reconstructor
from jaxdiff.sampling.ddim import DDIM
from jaxdiff.settings import Settings
from jaxdiff.trained import Trained, open_trained
from jaxdiff.training import hosts
from jaxdiff.training.cpu import use_cpu
from jaxdiff.training.sharding import shard_batch, to_host


@dataclasses.dataclass(frozen=True)
class Command:
    """Show where images are unlike what a run has learned."""

    dir: Annotated[epath.Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """The run's folder (train.py's --workdir), or a model."""
    out: epath.Path
    """Folder for the maps and the figures."""
    images: str | None = None
    """Images to look at: whatever train.py takes as --data.source (by default the set that the run was trained on)."""
    split: str | None = None
    """Part of the set (by default test of the run's own set, train of another)."""
    num: int = 0
    """The most images to look at, evenly over the set; 0: all."""
    normal: str | None = None
    """Class of the images, by name or number, that is normal: makes AUCs, with all other classes as anomalies."""
    noise: float = 1.0
    """sigma/alpha to which images are noised."""
    method: Literal["noise", "encode"] = "noise"
    """How they are: with noise, of several seeds, or along the ODE (DDIM inversion), which has none."""
    seeds: int = 4
    """Reconstructions of an image, whose maps and scores are averaged; encode makes one."""
    lpips: str = ""
    """Score by a perceptual distance as well: lpips-alexnet, lpips-vgg16, or a file of its weights."""
    baselines: bool = True
    """Compare with methods that need the training set, and no network."""
    variance: float = 0.95
    """Share of the training set's variance that the principal components hold."""
    bootstrap: int = 1000
    """Bootstrap samples from which the intervals of AUCs are made."""
    show: int = 12
    """Images on rows.png."""
    scans: Literal["none", "keep", "anonymous"] = "none"
    """Of images of dicom: and nifti: write the maps as scans too, in their units, to OUT/scans; DICOM with the patient
    kept in the header or removed from it."""
    settings: Annotated[Settings, tyro.conf.arg(name="")] = Settings()

    def __post_init__(self) -> None:
        for name, low in {"num": 0, "seeds": 1, "bootstrap": 20, "show": 1}.items():
            if not low <= getattr(self, name) < 2**31:
                raise ValueError(f"{name} = {getattr(self, name)} is not allowed: at least {low} (--{name})")
        if not 0 < self.variance <= 1:
            raise ValueError(f"variance = {self.variance} is not allowed: above 0, at most 1 (--variance)")


class Found(NamedTuple):
    """What the reconstructions say of each image, averaged over seeds."""

    maps: Float[np.ndarray, "n h w"]
    rebuilt: Float[np.ndarray, "n h w c"]
    scores: dict[str, Float[np.ndarray, "n"]]


def reconstructions(
    trained: Trained, run: Reconstructor, levels: Level, images: Float[np.ndarray, "n h w c"], seeds: Sequence[int]
) -> Iterator[tuple[slice, list[Float[np.ndarray, "b h w c"]]]]:
    """Batch by batch: which images, and their reconstruction for each seed."""
    size, mesh = trained.batch_size, trained.mesh
    for first in tqdm(range(0, len(images), size), unit="batch", disable=len(images) <= size or not hosts.is_first()):
        part = slice(first, min(first + size, len(images)))
        # Filled up, so that one compilation serves all.
        numbers = np.resize(np.arange(part.start, part.stop, dtype=np.int32), size)
        cond, negative = trained.conditions(numbers)
        if trained.label is None and trained.settings.prompt is None:
            # Nobody has said what these images show.
            cond = absent({name: jnp.asarray(leaf) for name, leaf in cond.items()})
        told, away = shard_batch(mesh, cond), shard_batch(mesh, negative)
        inputs = shard_batch(mesh, {"index": numbers, "image": images[numbers]})
        made = []
        for seed in seeds:
            rest = (inputs["image"], levels, told, trained.scales, away)
            with jax.set_mesh(mesh):
                made.append(to_host(run(trained.weights, jnp.int32(seed), inputs["index"], *rest)))
        yield part, [rebuilt[: part.stop - part.start] for rebuilt in made]


def look(
    command: Command,
    trained: Trained,
    levels: Level,
    distance: Distance | None,
    images: Float[np.ndarray, "n h w c"],
) -> Found:
    """Maps and scores of the images, taken to the first of the levels; by a perceptual `distance` too."""
    encode = command.method == "encode"
    run = reconstructor(trained.config, trained.guides, encode)
    seeds = [trained.settings.seed + i for i in range(1 if encode else command.seeds)]
    compare = jax.jit(lambda x, y: (anomaly.difference(x, y), anomaly.scores(x, y)))
    maps, rebuilt = np.zeros(images.shape[:3], np.float32), np.zeros_like(images)
    scores: dict[str, np.ndarray] = {}
    for part, made in reconstructions(trained, run, levels, images, seeds):
        x = jnp.asarray(images[part])
        for y in made:
            gap, said = compare(x, y)
            if distance is not None:
                said = {**said, "lpips": distance.apply(x, jnp.clip(jnp.asarray(y), -1, 1))}
            maps[part] += np.asarray(gap) / len(seeds)
            rebuilt[part] += y / len(seeds)
            for name, value in said.items():
                scores.setdefault(name, np.zeros(len(images), np.float32))[part] += np.asarray(value) / len(seeds)
    return Found(maps, rebuilt, scores)


def aucs(
    scores: Mapping[str, Float[np.ndarray, "n"]], abnormal: Bool[np.ndarray, "n"], command: Command
) -> dict[str, dict[str, float]]:
    """The AUC of each score with its 95 % interval."""
    how = {"count": command.bootstrap, "seed": command.settings.seed}
    return {name: auc_interval(value[abnormal], value[~abnormal], **how)._asdict() for name, value in scores.items()}


def abnormal_of(opened: Opened, normal: str | None) -> Bool[np.ndarray, "n"] | None:
    """Which images are not of the normal class; None where none is named. Raises: ValueError where all are, or none."""
    if normal is None:
        return None
    if opened.label is None:
        raise ValueError(f"{opened.data.source} has no classes, so no normal one (--normal, --images)")
    abnormal = opened.label != class_of(normal, opened.label_names, "--normal")
    if abnormal.all() or not abnormal.any():
        kind = "abnormal" if abnormal.all() else "normal"
        raise ValueError(f"all {len(abnormal)} images are {kind}: an AUC needs both kinds (--normal, --images, --num)")
    return abnormal


def detect(command: Command) -> dict[str, object]:
    """Reconstructs, scores, and writes the files; returns the record."""
    started = time.monotonic()
    trained = open_trained(command.dir, command.settings)
    opened = flagged(data_of(trained.config.data, command.images, command.split), command.num, "--images")
    if command.scans != "none" and not isinstance(opened.source, SliceSource):
        raise ValueError(f"{opened.source.name} holds no scans, as dicom: and nifti: do (--scans, --images)")
    abnormal = abnormal_of(opened, command.normal)
    levels = levels_from(trained.levels, trained.config.objective.path_of(trained.params), command.noise)
    distance = find_lpips(command.lpips) if command.lpips else None
    train = learned(trained.config.data) if command.baselines else None
    out = prepare_out(command.out)
    found = look(command, trained, levels, distance, opened.images)
    scores = {f"diffusion/{name}": value for name, value in found.scores.items()}
    components = None
    if train is not None:
        simple, components = anomaly.baselines(opened.images, train, command.variance)
        scores |= simple
    record: dict[str, object] = {
        "workdir": str(command.dir),
        "images": to_json(opened.data),
        "num": len(opened.images),
        "method": command.method,
        "noise": command.noise,
        "seeds": 1 if command.method == "encode" else command.seeds,
        **trained.description(),
        **way(trained, levels, command.method == "encode"),
        "normal": command.normal,
        "principal_components": components,
        "variance": command.variance,
        "mean_scores": {name: float(value.mean(dtype=np.float64)) for name, value in scores.items()},
        "jaxdiff": jaxdiff.__version__,
    }
    if abnormal is not None:
        record |= {"abnormal": int(abnormal.sum()), "auc": aucs(scores, abnormal, command)}
    record["seconds"] = round(time.monotonic() - started, 3)
    if hosts.is_first():
        write(out, command, opened, found, scores, record)
    return record


def way(trained: Trained, levels: Level, encode: bool) -> dict[str, object]:
    """How images go up and down: the solver, and network calls for each reconstruction of an image."""
    down = DDIM() if encode else trained.config.solver
    calls, up = down.nfe(levels), len(levels.alpha) - 2 if encode else 0
    return {"solver": to_json(down), "nfe": None if calls is None else calls + up}


def write(
    out: epath.Path,
    command: Command,
    opened: Opened,
    found: Found,
    scores: Mapping[str, Float[np.ndarray, "n"]],
    record: Mapping[str, object],
) -> None:
    """Writes all files, last info.json."""
    arrays = {name.replace("/", "|"): np.asarray(value, np.float32) for name, value in scores.items()}
    arrays |= {"maps": found.maps, "reconstructions": found.rebuilt, "place": opened.places}
    if opened.label is not None:
        arrays["label"] = opened.label
    whole = io.BytesIO()
    np.savez_compressed(whole, **arrays)  # pyright: ignore[reportArgumentType]
    write_whole(out / "maps.npz", whole.getvalue())
    pictures = heat(found.maps)
    order = np.argsort(found.scores["mae"], kind="stable")
    shown = order[np.unique(np.linspace(0, len(order) - 1, min(command.show, len(order))).round().astype(int))]
    names = [""] * len(shown) if opened.label is None else [opened.label_names[opened.label[i]] for i in shown]
    titles = [f"{name} {found.scores['mae'][i]:.3f}".strip() for name, i in zip(names, shown, strict=True)]
    page = rows_page(screen(opened.images[shown]), screen(found.rebuilt[shown]), pictures[shown], titles)
    write_whole(out / "rows.png", page)
    if command.scans != "none" and isinstance(opened.source, SliceSource):
        from jaxdiff.data.medical.maps import write_maps

        crop, hidden = opened.data.crop, command.scans == "anonymous"
        write_maps(Path(out / "scans"), opened.source, opened.places, found.maps, crop, "jaxdiff anomaly map", hidden)
    write_images(out, pictures, record)


def screen(images: Float[np.ndarray, "n h w c"]) -> UInt8[np.ndarray, "n h w c"]:
    """Images in [-1, 1] as they are shown."""
    return eight_bits(np.asarray(images, np.float32))


def table(record: Mapping) -> str:
    """The AUCs as Markdown, the best first; or the mean scores, where nothing is known of the images."""
    if "auc" not in record:
        rows = [f"| {name} | {value:.4g} |" for name, value in record["mean_scores"].items()]
        return "\n".join(["| score | mean |", "| --- | --- |", *rows])
    best = sorted(record["auc"].items(), key=lambda each: -each[1]["value"])
    rows = [f"| {name} | {a['value']:.3f} ({a['low']:.3f} to {a['high']:.3f}) |" for name, a in best]
    return "\n".join(["| score | AUC |", "| --- | --- |", *rows])


def main(args: Sequence[str]) -> None:
    """The command: prints a table, and the record as the last line."""
    with cli.user_errors():
        command = cli.parse(Command, "jaxdiff anomaly", args, description=__doc__ or "")
        use_cpu(command.settings.batch_size // hosts.count())
        record = detect(command)
        if hosts.is_first():
            print(table(record))
            print(json.dumps(record))
