"""Look for copies of training images among samples: jaxdiff audit DIR [--num 1000] [--held-out SET] ...

DIR is a run or a model, which is sampled, or a folder, .zip or .npz of images. Each sample's nearest training images are
compared with those of real images that were not trained on, in pixels and, with --features, in a network's features.
Ends with 0 where nothing is nearer than chance allows, 3 where something is, 2 after a mistake.

audit.json has the figures, audit.npz those of every sample, audit.png the closest pairs: it shows training images, so
keep it where they may be seen, or leave it out with --no-page.
"""

import dataclasses
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, NamedTuple

import numpy as np
import tyro
from etils import epath
from jaxtyping import Float, Int, UInt8

import jaxdiff
from jaxdiff import cli
from jaxdiff.commands.audit_page import pairs_page
from jaxdiff.commands.evaluate import evaluations, weights_in, write_json
from jaxdiff.commands.images import Images, data_of_folder, images_of_data, images_of_run, label, looker
from jaxdiff.commands.reference import is_run, pictures_behind
from jaxdiff.data import Data, open_source, open_validation
from jaxdiff.evaluation import copies
from jaxdiff.evaluation.distances import Neighbours, nearest
from jaxdiff.evaluation.store import digest, gather, write_whole
from jaxdiff.models import find_model
from jaxdiff.pretrained.features import open_features
from jaxdiff.settings import Settings
from jaxdiff.trained import open_trained
from jaxdiff.training import hosts
from jaxdiff.training.state import use_every_core

PIXELS = "pixels"
"""The space that needs no network: root mean square differences in grey levels of 255."""

BLOCK = 1024
"""Training images whose distances are computed at once."""

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


class Sets(NamedTuple):
    """What is compared."""

    samples: Images
    train: Images
    held_out: Images | None
    """None: training images, each without itself."""
    mirrored: bool
    """Whether training saw mirror images too."""


class Space(NamedTuple):
    """Where distances are taken."""

    name: str
    embed: Callable[[UInt8[np.ndarray, "n h w c"]], Float[np.ndarray, "n d"]]


def sets_of(command: Command) -> Sets:
    """Opens samples, training images and held-out ones. Raises: ValueError or FileNotFoundError, one line."""
    trained = None
    if find_model(command.dir) is not None or is_run(command.dir):
        trained = open_trained(command.dir, command.settings)
        config = trained.config
        data = config.data if config.latents is None else pictures_behind(config, command.train, "train")
        samples = images_of_run(trained)
    else:
        data, samples = data_of_folder(command.dir), images_of_data(data_of_folder(command.dir))
        if command.train is None:
            raise ValueError(f"{command.dir} is no run: say what its images were learned from (--train)")
    if command.train is not None and command.train != data.source:
        data = dataclasses.replace(data, source=command.train, split="train", holdout=0.0, classes=())
    train = flagged(lambda: images_of_data(data), "--train")
    return Sets(samples, train, held_out_of(command, data), data.flip)


def held_out_of(command: Command, data: Data) -> Images | None:
    """Real images that are not among the training images `data`; None where there are none."""
    if command.held_out == "none":
        return None
    if command.held_out is None and command.held_out_split is None:
        source = open_validation(data)
        return None if source is None else images_of_data(data, source, "validation")
    split = command.held_out_split or "train"
    if command.held_out in (None, data.source):
        other = dataclasses.replace(data, split=split, holdout=0.0)
    else:
        other = dataclasses.replace(data, source=str(command.held_out), split=split, holdout=0.0, classes=())
    if (other.source, other.split) == (data.source, data.split):
        raise ValueError(
            f"{other.source}, split {other.split}, is what was trained on: name other images "
            "(--held-out, --held-out-split), or none"
        )
    return flagged(lambda: images_of_data(other, open_source(other)), "--held-out")


def flagged(make: Callable[[], Images], flag: str) -> Images:
    """Images whose errors name this command's flags."""
    try:
        return make()
    except (ValueError, FileNotFoundError) as error:
        said = str(error).replace("--data.source", flag).replace("--data.split", f"{flag}-split")
        raise ValueError(said) from error


def spaces_of(command: Command) -> Iterator[Space]:
    """The spaces that --features names. Raises: ValueError or FileNotFoundError."""
    files = weights_in(command.weights)
    for name in [name.strip() for name in command.features.split(",") if name.strip()]:
        if name == PIXELS:
            yield Space(name, lambda images: images.reshape(len(images), -1).astype(np.float32))
            continue
        net = open_features(name, files.get(name))

        def embed(images: UInt8[np.ndarray, "n h w c"], net=net) -> Float[np.ndarray, "n d"]:
            read = Images({}, len(images), images.__getitem__)
            look = looker({"net": net}, read, command.settings.batch_size, keep=False)
            return look(np.arange(len(images), dtype=np.int32))[f"{label(net)}/features"]

        yield Space(label(net), embed)


def read_all(images: Images, count: int) -> UInt8[np.ndarray, "n h w c"]:
    """The first `count` images."""
    parts = (np.arange(i, min(i + BLOCK, count), dtype=np.int32) for i in range(0, count, BLOCK))
    return np.concatenate([images.read(part) for part in parts])


def neighbours_of(
    queries: Float[np.ndarray, "n d"], space: Space, sets: Sets, k: int, own: Int[np.ndarray, "n"]
) -> Neighbours:
    """The k training images nearest to each query, mirrored ones counting as images of their own number.

    A query is never compared with the training image `own` (-1: with all).
    """
    count = sets.train.count or 0
    numbers: list[np.ndarray] = []

    def blocks() -> Iterator[Float[np.ndarray, "m d"]]:
        for first in range(0, count, BLOCK):
            some = np.arange(first, min(first + BLOCK, count), dtype=np.int32)
            images = sets.train.read(some)
            for each in (images, images[:, :, ::-1]) if sets.mirrored else (images,):
                numbers.append(some)
                yield space.embed(np.ascontiguousarray(each))

    size = count * (2 if sets.mirrored else 1)
    more = (2 if sets.mirrored else 1) if own.max(initial=-1) >= 0 else 0
    k = min(k, size - more)
    found = nearest(queries, blocks(), k + more)
    return copies.without(Neighbours(found.squared, np.concatenate(numbers)[found.index]), own, k)


def audit(command: Command) -> dict[str, object]:
    """Makes the samples, measures, and writes the files; returns the record."""
    sets = sets_of(command)
    num = min(command.num, sets.samples.count or command.num)
    count = sets.train.count or 0
    kept = gather(
        evaluations(command.dir) / f"audit-{digest(sets.samples.what)}",
        ("images", "sha256"),
        num,
        looker({}, sets.samples, command.settings.batch_size, keep=True),
        "samples",
    )
    samples = kept["images"]
    train_sha256 = sha256_of(sets.train, count)
    if sets.held_out is None:
        # Evenly over the set: a folder often lies in the order of its classes.
        own = np.unique(np.linspace(0, count - 1, min(count, max(num, 1000))).round().astype(np.int64))
        real = np.concatenate([sets.train.read(np.array([i], np.int32)) for i in own])
        held_out: dict[str, object] = {"training images, each without itself": len(own)}
    else:
        real = read_all(sets.held_out, sets.held_out.count or 0)
        own = np.full(len(real), -1)
        held_out = {**sets.held_out.what, "n": len(real), "sha256": digest_of(real)}
    figures, arrays, first = {}, {}, None
    for space in spaces_of(command):
        # Samples and held-out images together, so that training images are read once.
        queries = np.concatenate([space.embed(samples), space.embed(real)])
        near = neighbours_of(queries, space, sets, command.neighbours, np.concatenate([np.full(num, -1), own]))
        found = {"distance": copies.distances(near, queries.shape[1] if space.name == PIXELS else 1)}
        ones = {"distance": found["distance"][:, 0], "relative": copies.relative(found["distance"])}
        compared = {
            name: copies.compare(value[:num], value[num:], command.quantile, command.level, command.settings.seed)
            for name, value in ones.items()
        }
        figures[space.name] = {name: described(value) for name, value in compared.items()}
        figures[space.name]["identical"] = int(np.sum(near.squared[:num, 0] == 0))
        figures[space.name]["copies"] = copies.are_copies(list(compared.values()), command.level)
        arrays |= {f"{space.name}/{name}": value.astype(np.float32) for name, value in ones.items()}
        arrays |= {f"{space.name}/nearest": near.index[:, 0]}
        arrays |= {f"{space.name}/{name}/p": value.p_values for name, value in compared.items()}
        first = first or (space.name, near, ones["distance"], compared["distance"].p_values)
    if first is None:
        raise ValueError("no space is named: pixels, or a network that jaxdiff evaluate knows (--features)")
    record: dict[str, object] = {
        "copies": any(figure["copies"] for figure in figures.values()),
        "figures": figures,
        "n": num,
        "samples": {**sets.samples.what, "sha256": hashlib.sha256(kept["sha256"].tobytes()).hexdigest()},
        "train": {**sets.train.what, "n": count, "mirrored": sets.mirrored, "sha256": train_sha256},
        "held_out": held_out,
        "quantile": command.quantile,
        "level": command.level,
        "neighbours": command.neighbours,
        "jaxdiff": jaxdiff.__version__,
    }
    name, near, distance, p_values = first
    closest = np.argsort(distance[:num], kind="stable")[: command.pairs]
    record["closest"] = [
        {"sample": int(i), "training image": int(near.index[i, 0]), "distance": float(distance[i]), "p": float(p)}
        for i, p in zip(closest, p_values[closest], strict=True)
    ]
    if hosts.is_first():
        out = command.out or out_of(command.dir)
        out.mkdir(parents=True, exist_ok=True)
        whole = io.BytesIO()
        np.savez_compressed(whole, **{key.replace("/", "|"): value for key, value in arrays.items()})
        write_whole(out / "audit.npz", whole.getvalue())
        if command.page:
            rest = num + np.argsort(distance[num:], kind="stable")[: command.pairs]
            sides = [(samples, closest, 0), (real, rest, num)]
            rows = [
                [(images[i - start], sets.train.read(near.index[i, :1].astype(np.int32))[0], distance[i]) for i in some]
                for images, some, start in sides
            ]
            write_whole(out / "audit.png", pairs_page(rows[0], rows[1], name))
        write_json(out / "audit.json", record)
    return record


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


def sha256_of(images: Images, count: int) -> str:
    """Of the images' own digests, as `jaxdiff evaluate` has it of a reference."""
    whole = hashlib.sha256()
    for first in range(0, count, BLOCK):
        for image in images.read(np.arange(first, min(first + BLOCK, count), dtype=np.int32)):
            whole.update(hashlib.sha256(image.tobytes()).digest())
    return whole.hexdigest()


def digest_of(images: UInt8[np.ndarray, "n h w c"]) -> str:
    """The same of images in memory."""
    return sha256_of(Images({}, len(images), images.__getitem__), len(images))


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
            part, closer = f["share"], f["closer"]
            rows.append(
                f"| {space} | {name} | {100 * part['value']:.2f} % ({100 * part['low']:.2f} to {100 * part['high']:.2f})"
                f" | {100 * f['expected']:.2f} % | {f['p_share']:.3g} | {closer['value']:.3f} ({closer['low']:.3f} to"
                f" {closer['high']:.3f}) | {f['p_closer']:.3g} | {figures['identical']} |"
            )
    return "\n".join(rows)


def main(args: Sequence[str]) -> None:
    """The command: prints a table, and the record as the last line."""
    with cli.user_errors():
        command = cli.parse(Command, "jaxdiff audit", args, description=__doc__ or "")
        use_every_core(command.settings.batch_size // hosts.count())
        record = audit(command)
        if hosts.is_first():
            print(table(record))
            print(json.dumps(record))
    if record["copies"]:
        raise SystemExit(COPIES_FOUND)
