"""Measure a trained run, or a folder of images: jaxdiff evaluate DIR [--metrics fd,kid] [--num 50000] ...

DIR is a run of train.py, whose checkpoint is sampled, or a folder, .zip or .npz of images. The last line of the output
is the record of the evaluation in JSON, which is also written under DIR/evaluations/. An interrupted command goes on
where it stopped when it is started again.
"""

import dataclasses
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from etils import epath

import jaxdiff
from jaxdiff import cli
from jaxdiff.commands import likelihood, perceptual, sweep
from jaxdiff.commands.images import Images, data_of_folder, images_of_data, images_of_run, label, looker
from jaxdiff.commands.reference import has_statistics, of_statistics, reference_data, save_statistics
from jaxdiff.evaluation import moments
from jaxdiff.evaluation.bootstrap import Interval
from jaxdiff.evaluation.metrics import METRICS, Bootstrap, Metric, Reference
from jaxdiff.evaluation.store import digest, gather, write_whole
from jaxdiff.models import is_run, is_trained
from jaxdiff.names import GRIDS, RULES, SOLVERS
from jaxdiff.networks.feature_net import FeatureNet
from jaxdiff.pretrained.clip import open_clip_text
from jaxdiff.pretrained.features import DEFAULT, open_features
from jaxdiff.settings import Settings
from jaxdiff.trained import Trained, open_trained
from jaxdiff.training import hosts
from jaxdiff.training.cpu import use_cpu

GENERAL = "fd,kid,precision,recall"
"""What is measured where nothing is asked for."""


@dataclasses.dataclass(frozen=True)
class Command:
    """Measure a trained run or a model, or a folder of images."""

    dir: Annotated[epath.Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """A run's folder (train.py's --workdir), a model's, or a folder, .zip or .npz of images of one size."""
    metrics: str = GENERAL
    """What to measure, separated by commas."""
    num: int = 50000
    """Images to make; of a folder of images: the most to use."""
    reference: str | None = None
    """What to compare with: whatever train.py takes as --data.source, or a stored statistics file (.npz with mu and
    sigma; for Fréchet distances). By default the run's own training set."""
    split: str = "train"
    """Part of the reference, where it has parts."""
    features: str = DEFAULT
    """The feature network of fd, kid, precision, recall, density and coverage."""
    weights: tuple[str, ...] = ()
    """NETWORK=PATH: weights that no installed package has, such as inception=pt_inception-2015-12-05-6726825d.pth."""
    tokenizer: Path | None = None
    """CLIP's tokenizer.json, for clip-score."""
    caption: str = "a photo of a {}"
    """What clip-score says of an image, {} being the name of its class."""
    bootstrap: int = 40
    """Random halves from which the intervals are made; 0: no intervals."""
    save_statistics: epath.Path | None = None
    """Write the reference's statistics to this .npz, for --reference."""
    sweep: str | None = None
    """Measure again for several values of settings: "ema,cfg_scale", or with values of your own,
    "steps=4:8:16,cfg_scale=1:2". Makes a table and a plot as well."""
    settings: Annotated[Settings, tyro.conf.arg(name="")] = Settings()

    def __post_init__(self) -> None:
        for name, low in {"num": 4, "bootstrap": 0}.items():
            if not low <= getattr(self, name) < 2**31:
                raise ValueError(f"{name} = {getattr(self, name)} is not allowed: at least {low} (--{name})")
        if self.bootstrap and (self.bootstrap < 20 or self.bootstrap % 2):
            raise ValueError(f"bootstrap = {self.bootstrap} is not allowed: 0, or an even number >= 20 (--bootstrap)")


def metrics_in(text: str) -> dict[str, Metric]:
    """The metrics that `--metrics` names. Raises: ValueError."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    known = [*METRICS, *likelihood.BOUNDS]
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise ValueError(f"metric {(unknown or [''])[0]!r} is not allowed: {', '.join(known)} (--metrics)")
    return {name: METRICS[name] for name in names if name in METRICS}


def weights_in(pairs: Sequence[str]) -> dict[str, Path]:
    """The files that `--weights` names. Raises: ValueError or FileNotFoundError."""
    files = {}
    for pair in pairs:
        name, equals, path = pair.partition("=")
        if not (name and equals and path):
            raise ValueError(f"{pair!r} is not allowed: NETWORK=PATH (--weights)")
        if not Path(path).is_file():
            raise FileNotFoundError(f"there is no file {path} (--weights {name}=PATH)")
        files[name] = Path(path)
    return files


def networks_of(command: Command, metrics: Mapping[str, Metric]) -> dict[str, FeatureNet]:
    """The feature network of each metric that needs one, by its name on the command line."""
    files = weights_in(command.weights)
    wanted = {m.network or command.features for m in metrics.values() if perceptual.is_feature(m)}
    return {name: open_features(name, files.get(name)) for name in sorted(wanted)}


def reference_of(
    command: Command, metrics: Mapping[str, Metric], nets: Mapping[str, FeatureNet]
) -> tuple[dict[str, Reference], dict[str, object]]:
    """(what each metric compares with, all that a record must say of it)."""
    compared = {name: m for name, m in metrics.items() if m.reference}
    if not compared:
        return {}, {}
    if command.reference is not None and has_statistics(command.reference):
        stored = moments.load(command.reference)
        said = {k: v for k, v in stored._asdict().items() if isinstance(v, str | int)}
        sha256 = hashlib.sha256(epath.Path(command.reference).read_bytes()).hexdigest()
        parts = {name: of_statistics(stored, m, nets[m.network or command.features]) for name, m in compared.items()}
        return parts, {"statistics": command.reference, "sha256": sha256, **said}
    data = reference_data(command.dir, command.reference, command.split)
    try:
        images = images_of_data(data)
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(str(error).replace("--data.source", "--reference")) from error
    assert images.count is not None
    outputs = observed(command, images, nets, compared, images.count, "reference")
    sha256 = hashlib.sha256(outputs["sha256"].tobytes()).hexdigest()
    if command.save_statistics is not None and hosts.is_first():
        save_statistics(command.save_statistics, outputs, nets[command.features], data.source, sha256)
    parts = {name: Reference(outputs[output_of(m, command.features, nets)]) for name, m in compared.items()}
    return parts, {**images.what, "n": images.count, "sha256": sha256}


def output_of(metric: Metric, features: str, nets: Mapping[str, FeatureNet]) -> str:
    """The kept array that a metric looks at."""
    if not perceptual.is_feature(metric):
        return "images"
    return f"{label(nets[metric.network or features])}/{metric.output}"


def observed(
    command: Command,
    images: Images,
    nets: Mapping[str, FeatureNet],
    metrics: Mapping[str, Metric],
    num: int,
    title: str,
) -> dict[str, np.ndarray]:
    """What the metrics need to know of the first `num` images, kept under DIR/evaluations/."""
    names = {output_of(m, command.features, nets) for m in metrics.values()} | {"sha256"}
    if command.save_statistics is not None and title == "reference":
        names |= {f"{label(nets[command.features])}/features"}
    folder = evaluations(command.dir) / f"{title}-{digest(images.what)}"
    look = looker(nets, images, command.settings.batch_size, "images" in names)
    return gather(folder, sorted(names), num, look, title)


def evaluations(folder: epath.PathLike) -> epath.Path:
    """Where records and features of a run, or of a folder or file of images, are kept."""
    folder = epath.Path(folder)
    return folder / "evaluations" if is_run(folder) else folder.parent / f"{folder.name}.evaluations"


def evaluate(command: Command, settings: Settings, most_steps: int = 0) -> dict[str, object]:
    """Measures one state of the settings; returns the record, which has been written.

    `most_steps`: of all states that are measured one after the other, which then share a compilation.
    """
    started = time.monotonic()
    metrics = metrics_in(command.metrics)
    nets = networks_of(command, metrics)
    trained = open_trained(command.dir, settings, most_steps) if is_trained(command.dir) else None
    images = images_of_run(trained) if trained else images_of_data(data_of_folder(command.dir))
    num = min(command.num, images.count or command.num)
    references, reference = reference_of(command, metrics, nets)
    figures: dict[str, Interval] = {}
    samples: dict[str, object] = {**images.what}
    if metrics:
        outputs = observed(command, images, nets, metrics, num, "samples")
        samples["sha256"] = hashlib.sha256(outputs["sha256"].tobytes()).hexdigest()
        how = Bootstrap(command.bootstrap, settings.seed)
        for name, metric in metrics.items():
            seen = outputs[output_of(metric, command.features, nets)]
            seen = per_image(command, metric, seen, references.get(name), trained)
            figures[name] = metric.measure(seen, references.get(name, Reference(None)), how)
    bounds = [name.strip() for name in command.metrics.split(",") if name.strip() in likelihood.BOUNDS]
    if bounds and trained is None:
        raise ValueError(f"{bounds[0]} needs a run, not images (--metrics)")
    extra = {name: likelihood.measure(name, trained, command.num) for name in bounds if trained is not None}
    record: dict[str, object] = {
        "metrics": {name: described(value) for name, value in figures.items()} | extra,
        "n": num,
        "networks": {
            name: {"name": net.name, "weights_sha256": net.weights_sha256, "resize": net.resize, "size": net.size}
            for name, net in nets.items()
        },
        "samples": samples,
        "reference": reference,
        "bootstrap": command.bootstrap,
        "jaxdiff": jaxdiff.__version__,
    }
    path = evaluations(command.dir) / f"{digest(record)}.json"
    record["seconds"] = round(time.monotonic() - started, 3)
    write_json(path, record)
    return record


def per_image(
    command: Command,
    metric: Metric,
    seen: np.ndarray,
    reference: Reference | None,
    trained: Trained | None,
) -> np.ndarray:
    """What `metric.measure` takes of the samples: as it is, or a figure for each image or pair."""
    weights = weights_in(command.weights)
    in_turn = trained.config.network.num_classes if trained and trained.label is None else 0
    if metric.output == "lpips":
        return perceptual.paired(metric, seen, reference, weights)
    if metric.output == "lpips-diversity":
        return perceptual.diversity(metric, seen, max(in_turn, 1), weights)
    if metric.texts:
        if trained is None or not trained.label_names:
            raise ValueError("clip-score needs a run with classes, whose names are the captions (--metrics)")
        if command.tokenizer is None:
            raise ValueError("clip-score needs CLIP's tokenizer.json (--tokenizer)")
        numbers = [trained.label if trained.label is not None else i % in_turn for i in range(len(seen))]
        captions = [command.caption.format(trained.label_names[i]) for i in numbers]
        network = str(metric.network)
        return perceptual.caption_scores(seen, captions, open_clip_text(network, weights[network], command.tokenizer))
    return seen


def described(value: Interval) -> dict[str, object]:
    """A figure for the record; what was not made is left out."""
    return {k: v for k, v in value._asdict().items() if not np.isnan(v)}


def write_json(path: epath.Path, record: Mapping[str, object]) -> None:
    """Writes a record, whole or not at all; of many processes the first does."""
    if hosts.is_first():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, (json.dumps(record, indent=1) + "\n").encode())


def main(args: Sequence[str]) -> None:
    """The command: measures, prints a table, and the record as the last line."""
    with cli.user_errors():
        description = (
            f"{__doc__}\nMetrics: {', '.join([*METRICS, *likelihood.BOUNDS])}.\n"
            f"Solvers: {', '.join(SOLVERS)}. Grids: {', '.join(GRIDS)}. Guidance: {', '.join(RULES)}."
        )
        command = cli.parse(Command, "jaxdiff evaluate", args, description=description)
        use_cpu(command.settings.batch_size // hosts.count())
        if command.sweep is None:
            record = evaluate(command, command.settings)
            if hosts.is_first():
                print(sweep.table([record], {}))
        else:
            most = sweep.most_steps(command.sweep)
            record = sweep.run(command.sweep, command.settings, lambda settings: evaluate(command, settings, most))
            if hosts.is_first():
                record["files"] = sweep.write(evaluations(command.dir), record)
        if hosts.is_first():
            print(json.dumps(record))
