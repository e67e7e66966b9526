"""Look for copies of training images among samples: jaxdiff audit DIR [--num 1000] [--held-out SET] ...

DIR is a run or a model, which is sampled, or a folder, .zip or .npz of images. Each sample's nearest training images
are compared with those of real images that were not trained on, in pixels and, with --features, in a network's
features. Ends with 0 where nothing is nearer than chance allows, 3 where something is or a sample is a training image
to the bit, 2 after a mistake.

audit.json has the figures, audit.npz those of every sample, audit.png the closest pairs: it shows training images, so
keep it where they may be seen, or leave it out with --no-page.
"""

import dataclasses
import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, NamedTuple, cast

import numpy as np
import tyro
from etils import epath
from jaxtyping import Float, Int, UInt8

import jaxdiff
from jaxdiff import cli
from jaxdiff.commands.audit_page import Pair, pairs_page
from jaxdiff.commands.audit_sets import (
    BLOCK,
    PIXELS,
    Sets,
    Space,
    digest_of,
    read_all,
    sets_of,
    sha256_of,
    spaces_of,
)
from jaxdiff.commands.evaluate import evaluations, write_json
from jaxdiff.commands.images import looker
from jaxdiff.evaluation import copies
from jaxdiff.evaluation.distances import Neighbours, nearest
from jaxdiff.evaluation.store import digest, gather, write_whole
from jaxdiff.models import is_run
from jaxdiff.settings import Settings
from jaxdiff.training import hosts
from jaxdiff.training.cpu import use_cpu

FLOATS = 2**27
"""Numbers of the queries, or of the training images, whose distances are computed at once."""

COPIES_FOUND = 3
"""The command's exit code where a test fails."""


@dataclasses.dataclass(frozen=True)
class Command:
    """Look for copies of training images among samples."""

    dir: Annotated[epath.Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """A run's folder (train.py's --workdir), a model, or a folder, .zip or .npz of images of one size."""
    num: int = 1000
    """Samples to make; of a folder of images: the most to use."""
    train: str | None = None
    """What the samples were learned from: whatever train.py takes as --data.source (by default the run's own set)."""
    held_out: str | None = None
    """Real images that were not trained on: a set as in --train (by default the run's own held-out or validation
    images); "none": each training image is compared with the others instead."""
    held_out_split: str | None = None
    """Part of --held-out, or of the training set where that is not given."""
    features: str = PIXELS
    """Where distances are taken, separated by commas: pixels, and the networks that jaxdiff evaluate knows."""
    weights: tuple[str, ...] = ()
    """NETWORK=PATH: weights that no installed package has."""
    quantile: float = 0.05
    """Flag samples that are nearer to training images than this share of held-out images are."""
    neighbours: int = 50
    """Nearest training images with which the nearest one is compared."""
    level: float = 0.99
    """Of the intervals; fresh draws fail a test at most with the rest of the probability."""
    pairs: int = 8
    """Closest pairs on the page."""
    page: bool = True
    """Write audit.png, which shows training images."""
    out: epath.Path | None = None
    """Folder for audit.json, audit.npz and audit.png (by default audit/ in the run's folder, or beside the images)."""
    settings: Annotated[Settings, tyro.conf.arg(name="")] = Settings()

    def __post_init__(self) -> None:
        for name in ("num", "neighbours", "pairs"):
            if not 1 <= getattr(self, name) < 2**31:
                raise ValueError(f"{name} = {getattr(self, name)} is not allowed: at least 1 (--{name})")
        for name in ("quantile", "level"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)} is not allowed: above 0, below 1 (--{name})")


def neighbours_of(
    queries: UInt8[np.ndarray, "n h w c"], space: Space, sets: Sets, k: int, own: Int[np.ndarray, "n"]
) -> Neighbours:
    """The k training images nearest to each query, mirrored ones counting as images of their own number.

    A query is never compared with the training image `own` (-1: with all).
    """
    count, ways = sets.train.count or 0, 2 if sets.mirrored else 1
    dims = space.embed(queries[:1]).shape[1]
    block = max(1, min(BLOCK, FLOATS // dims))
    more = ways if own.max(initial=-1) >= 0 else 0
    k = min(k, count * ways - more)
    numbers: list[np.ndarray] = []

    def blocks() -> Iterator[Float[np.ndarray, "m d"]]:
        numbers.clear()
        for first in range(0, count, block):
            some = np.arange(first, min(first + block, count), dtype=np.int64)
            images = sets.train.read(some)
            for each in (images, images[:, :, ::-1])[:ways]:
                numbers.append(some)
                yield space.embed(np.ascontiguousarray(each))

    parts, rows = [], max(1, FLOATS // dims)
    for first in range(0, len(queries), rows):
        part = slice(first, first + rows)
        found = nearest(space.embed(queries[part]), blocks(), k + more)
        found = Neighbours(found.squared, np.concatenate(numbers)[found.index])
        parts.append(copies.without(found, own[part], k))
    return Neighbours(*(np.concatenate(each) for each in zip(*parts, strict=True)))


class Measured(NamedTuple):
    """What one space says; of samples first and then of held-out images where it is of both."""

    space: str
    near: Neighbours
    figures: dict[str, Float[np.ndarray, "n"]]
    """distance and relative, of each image."""
    compared: dict[str, copies.Comparison]
    identical: int
    """Samples at no distance from a training image."""


def measure(
    command: Command,
    space: Space,
    sets: Sets,
    samples: UInt8[np.ndarray, "n h w c"],
    real: UInt8[np.ndarray, "m h w c"],
    own: Int[np.ndarray, "m"],
) -> Measured:
    """Compares samples with real images, of which image i is not compared with the training image `own[i]`."""
    num = len(samples)
    # Together, so that training images are read once.
    queries, owns = np.concatenate([samples, real]), np.concatenate([np.full(num, -1), own])
    near = neighbours_of(queries, space, sets, command.neighbours, owns)
    found = copies.distances(near, samples[0].size if space.name == PIXELS else 1)
    figures = {"distance": found[:, 0], "relative": copies.relative(found)}
    how = (command.quantile, command.level, command.settings.seed)
    compared = {name: copies.compare(v[:num], v[num:], *how) for name, v in figures.items()}
    return Measured(space.name, near, figures, compared, int(np.sum(near.squared[:num, 0] == 0)))


def audit(command: Command) -> dict[str, object]:
    """Makes the samples, measures, and writes the files; returns the record."""
    sets = sets_of(command.dir, command.settings, command.train, command.held_out, command.held_out_split)
    spaces = spaces_of(command.features, command.weights, command.settings.batch_size)
    num, count = min(command.num, sets.samples.count or command.num), sets.train.count or 0
    if sets.held_out is None:
        # Evenly over the set: a folder often lies in the order of its classes.
        own = np.unique(np.linspace(0, count - 1, min(count, max(num, 1000))).round().astype(np.int64))
        real = np.concatenate([sets.train.read(np.array([i], np.int32)) for i in own])
        held_out: dict[str, object] = {"training images, each without itself": len(own)}
    else:
        real = read_all(sets.held_out, sets.held_out.count or 0)
        own = np.full(len(real), -1)
        held_out = {**sets.held_out.what, "n": len(real), "sha256": digest_of(real)}
    copies.check_quantile(command.quantile, len(real))
    kept = gather(
        evaluations(command.dir) / f"audit-{digest(sets.samples.what)}",
        ("images", "sha256"),
        num,
        looker({}, sets.samples, command.settings.batch_size, keep=True),
        "samples",
    )
    every = [measure(command, space, sets, kept["images"], real, own) for space in spaces]
    first = every[0]
    closest = np.argsort(first.figures["distance"][:num], kind="stable")[: command.pairs]
    level = 1 - (1 - command.level) / len(every)
    failed = [f"{m.space} {test}" for m in every for test in copies.failed(m.compared, level)]
    # A training image is one, whatever chance says of it.
    failed += [f"{m.space}: {m.identical} identical" for m in every if m.space == PIXELS and m.identical]
    record: dict[str, object] = {
        "copies": bool(failed),
        "failed": failed,
        "figures": {
            m.space: {name: described(value) for name, value in m.compared.items()} | {"identical": m.identical}
            for m in every
        },
        "n": num,
        "samples": {**sets.samples.what, "sha256": hashlib.sha256(kept["sha256"].tobytes()).hexdigest()},
        "train": {**sets.train.what, "n": count, "mirrored": sets.mirrored, "sha256": sha256_of(sets.train, count)},
        "held_out": held_out,
        "quantile": command.quantile,
        "level": command.level,
        "neighbours": command.neighbours,
        "closest": [
            {
                "sample": int(i),
                "training image": int(first.near.index[i, 0]),
                "distance": float(first.figures["distance"][i]),
                "p": float(first.compared["distance"].p_values[i]),
            }
            for i in closest
        ],
        "jaxdiff": jaxdiff.__version__,
    }
    if hosts.is_first():
        write(command, record, every, sets, kept["images"], real)
    return record


def write(
    command: Command,
    record: Mapping[str, object],
    every: Sequence[Measured],
    sets: Sets,
    samples: UInt8[np.ndarray, "n h w c"],
    real: UInt8[np.ndarray, "m h w c"],
) -> None:
    """Writes the files, last the record."""
    out = command.out or out_of(command.dir)
    out.mkdir(parents=True, exist_ok=True)
    arrays = {f"{m.space}|{name}": value.astype(np.float32) for m in every for name, value in m.figures.items()}
    arrays |= {f"{m.space}|{name}|p": value.p_values for m in every for name, value in m.compared.items()}
    arrays |= {f"{m.space}|nearest": m.near.index[:, 0] for m in every}
    whole = io.BytesIO()
    np.savez_compressed(whole, **arrays)  # pyright: ignore[reportArgumentType]
    write_whole(out / "audit.npz", whole.getvalue())
    if command.page:
        first, num = every[0], len(samples)
        distance = first.figures["distance"]

        def closest(images: UInt8[np.ndarray, "n h w c"], start: int) -> list[Pair]:
            order = np.argsort(distance[start : start + len(images)], kind="stable")[: command.pairs]
            return [
                (images[i], sets.train.read(first.near.index[start + i, :1])[0], float(distance[start + i]))
                for i in order
            ]

        write_whole(out / "audit.png", pairs_page(closest(samples, 0), closest(real, num), first.space))
    write_json(out / "audit.json", record)


def described(value: copies.Comparison) -> dict[str, object]:
    """A comparison for the record."""
    return {
        "flagged": int(value.flagged.sum()),
        "share": value.share._asdict(),
        "expected": value.expected,
        "p_share": value.p_share,
        "closer": value.closer._asdict(),
        "z": value.z,
        "p_closer": value.p_closer,
    }


def out_of(folder: epath.PathLike) -> epath.Path:
    """Where the files go: in the folder of a run, or beside a folder or file of images."""
    folder = epath.Path(folder)
    return folder / "audit" if is_run(folder) else folder.parent / f"{folder.name}.audit"


def table(record: Mapping) -> str:
    """The figures as Markdown."""
    rows = [
        "| space | figure | flagged | expected | p | held-out above sample | p | identical |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for space, figures in record["figures"].items():
        for name in ("distance", "relative"):
            f = figures[name]
            part, closer = ({key: f[kind][key] for key in ("value", "low", "high")} for kind in ("share", "closer"))
            cells = [space, name, "{value:.2%} ({low:.2%} to {high:.2%})".format(**part), f"{f['expected']:.2%}"]
            cells += [f"{f['p_share']:.3g}", "{value:.3f} ({low:.3f} to {high:.3f})".format(**closer)]
            cells += [f"{f['p_closer']:.3g}", str(figures["identical"])]
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def main(args: Sequence[str]) -> None:
    """The command: prints a table, and the record as the last line."""
    with cli.user_errors():
        command = cli.parse(Command, "jaxdiff audit", args, description=__doc__ or "")
        use_cpu(command.settings.batch_size // hosts.count())
        record = audit(command)
        if hosts.is_first():
            print(table(record))
            said = "\n".join(f"too near: {test}" for test in cast(list[str], record["failed"]))
            print(said or "nothing is nearer than chance allows")
            print(json.dumps(record))
    if record["copies"]:
        raise SystemExit(COPIES_FOUND)
