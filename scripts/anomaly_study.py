"""How well does a run find abnormal images? AUCs by noise and score, chosen on one split and measured on another.

    python scripts/anomaly_study.py RUN OUT [--normal 0] [--noise 0.5,1,2] [--methods noise,encode] [--steps 20]

For each method and noise `jaxdiff anomaly` looks at the images of both splits; the folders that are complete are not
made again. A score may point the wrong way (an abnormal lung can be easier to reconstruct than a normal one), so each
is also taken as the distance from its median over the normal images of the first split, "atypical", which knows of no
abnormal image. OUT/study.json has every AUC with its interval, OUT/study.md the tables: for the diffusion scores and
for those of the methods without a network, the one that is best on the first split, and what it does on the second.
"""

import argparse
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from etils import epath

from jaxdiff import cli
from jaxdiff.commands.anomaly import Command, detect
from jaxdiff.evaluation.ranks import auc_interval
from jaxdiff.settings import Settings

Scores = Mapping[str, np.ndarray]


def measured(command: Command) -> Scores:
    """The scores of every image, and its label; made unless they are there."""
    if not (command.out / "info.json").exists():
        detect(command)
    with np.load(Path(command.out / "maps.npz")) as kept:
        return {name.replace("|", "/"): kept[name] for name in kept.files if name == "label" or "|" in name}


def with_atypical(scores: Scores, normal: Scores) -> dict[str, np.ndarray]:
    """The scores, and how far each is from the median of `normal`'s."""
    found = {name: value for name, value in scores.items() if name != "label"}
    return found | {f"{name}, atypical": np.abs(value - np.median(normal[name])) for name, value in found.items()}


def figures(scores: Scores, abnormal: np.ndarray) -> dict[str, dict[str, float]]:
    """The AUC of each score with its 95 % interval."""
    return {name: auc_interval(v[abnormal], v[~abnormal])._asdict() for name, v in scores.items()}


def shown(auc: Mapping[str, float]) -> str:
    """An AUC with its interval."""
    return f"{auc['value']:.3f} ({auc['low']:.3f} to {auc['high']:.3f})"


def study(args: argparse.Namespace) -> dict[str, object]:
    """All AUCs: rows of method, noise, score, and the AUC on both splits."""
    rows: list[dict[str, object]] = []
    base = Command(epath.Path(args.run), epath.Path(args.out), normal=args.normal, seeds=args.seeds)
    base = dataclasses.replace(base, settings=Settings(steps=args.steps, batch_size=args.batch_size))
    first_of_all = True
    for method in args.methods.split(","):
        for noise in map(float, args.noise.split(",")):
            seen = []
            for split in (args.choose, args.measure):
                out = epath.Path(args.out) / f"{split}-{method}-{noise:g}"
                # The methods without a network do not depend on the noise.
                there = dataclasses.replace(base, out=out, split=split, method=method, noise=noise)
                seen.append(measured(dataclasses.replace(there, baselines=first_of_all)))
            labels = [s["label"] != int(args.normal) for s in seen]
            healthy = {name: value[~labels[0]] for name, value in seen[0].items()}
            aucs = [figures(with_atypical(s, healthy), ill) for s, ill in zip(seen, labels, strict=True)]
            for name in aucs[0]:
                diffusion = name.startswith("diffusion/")
                row = {"method": method if diffusion else "", "noise": noise if diffusion else None, "score": name}
                rows.append({**row, args.choose: aucs[0][name], args.measure: aucs[1][name]})
            first_of_all = False
            print(f"{method}, noise {noise:g}: done", flush=True)
    return {"arguments": {k: str(v) for k, v in vars(args).items()}, "rows": rows}


def table(record: Mapping, choose: str, measure: str) -> str:
    """Markdown: the best of each kind on the first split, and the whole list."""

    def line(row: Mapping) -> str:
        noise = "" if row["noise"] is None else f"{row['noise']:g}"
        return f"| {row['score']} | {row['method']} | {noise} | {shown(row[choose])} | {shown(row[measure])} |"

    head = [f"| score | method | noise | {choose} | {measure} |", "| --- | --- | --- | --- | --- |"]
    rows = sorted(record["rows"], key=lambda row: -row[choose]["value"])
    kinds = ("diffusion/", "pca/", "mean/", "nearest/")
    best = [next(row for row in rows if row["score"].startswith(kind)) for kind in kinds]
    return "\n".join([f"Best on {choose}:", "", *head, *map(line, best), "", "All:", "", *head, *map(line, rows), ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--normal", default="0", help="number of the normal class")
    parser.add_argument("--noise", default="0.5,1,2", help="sigma/alpha to which images are taken")
    parser.add_argument("--methods", default="noise,encode")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--choose", default="val", help="the split on which the best is chosen")
    parser.add_argument("--measure", default="test", help="the split on which it is measured")
    args = parser.parse_args()
    cli.keep_programs()
    args.out.mkdir(parents=True, exist_ok=True)
    record = study(args)
    (args.out / "study.json").write_text(json.dumps(record, indent=1) + "\n")
    text = table(record, args.choose, args.measure)
    (args.out / "study.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
