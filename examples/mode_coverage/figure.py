"""One record and one picture of both tasks: WORKDIR/{gaussians,stacked_mnist}.json -> OUT.json, OUT.png.

    python -m examples.mode_coverage.figure --workdir runs/modes --out docs/mode_coverage

Left to right: real examples, the first samples of the first seed of each method, and the modes covered (of those that a
perfect generator covers with as many samples) against the operations spent, one line per seed. The records of `tune`,
WORKDIR/tuning/*.json, join the record of their task.
"""

import json
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import tyro

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLOURS = {"diffusion": "tab:blue", "gan": "tab:orange"}
TITLES = {"diffusion": "diffusion", "gan": "GAN"}


def points(ax: Any, x: np.ndarray) -> None:
    """A scatter of [n, 1, 1, 2]."""
    ax.scatter(*x.reshape(-1, 2).astype(float).T, s=1, alpha=0.4, linewidths=0)
    ax.set(xlim=(-1.3, 1.3), ylim=(-1.3, 1.3), xticks=[], yticks=[], aspect="equal")


def pictures(ax: Any, x: np.ndarray, side: int = 8) -> None:
    """The first side**2 images [n, h, w, 3] in [-1, 1], as a sheet."""
    h, w, c = x.shape[1:]
    sheet = np.zeros((side * side, h, w, c), np.float32)
    sheet[: len(x)] = x[: side * side]
    sheet = sheet.reshape(side, side, h, w, c).swapaxes(1, 2).reshape(side * h, side * w, c)
    ax.imshow(np.clip(127.5 * (sheet + 1), 0, 255).astype(np.uint8))
    ax.set(xticks=[], yticks=[])


def curves(ax: Any, record: dict[str, Any], name: str, label: str) -> None:
    """A measure against the operations spent, a line per run."""
    for run in record["runs"]:
        spent = [look["flops"] / 1e9 for look in run["curve"]]
        first = run["seed"] == record["plan"]["seeds"][0]
        title = TITLES[run["method"]] if first else None
        ax.plot(spent, [look[name] for look in run["curve"]], "o-", ms=3, color=COLOURS[run["method"]], label=title)
    ax.set(xlabel="training, GFLOP", ylabel=label)
    ax.grid(alpha=0.3)


def main(workdir: Path, out: Path) -> None:
    """Writes the record and the picture."""
    tasks = {
        "gaussians": (points, [("modes", "modes covered of 25"), ("high_quality", "share of high quality")]),
        "stacked_mnist": (pictures, [("modes", "modes covered"), ("sure", "share of sure samples")]),
    }
    records = {
        task: json.loads((workdir / f"{task}.json").read_text())
        for task in tasks
        if (workdir / f"{task}.json").exists()
    }
    tried = [
        {"name": file.stem, **json.loads(file.read_text())} for file in sorted((workdir / "tuning").glob("*.json"))
    ]
    if tried and "stacked_mnist" in records:
        records["stacked_mnist"]["tuning"] = tried
    if not records:
        raise SystemExit(f"error: {workdir} holds no gaussians.json and no stacked_mnist.json (--workdir)")
    figure, axes = plt.subplots(len(records), 5, figsize=(16, 3.4 * len(records)), squeeze=False, layout="constrained")
    for row, (task, record) in zip(axes, records.items(), strict=True):
        draw, measures = tasks[task]
        seed = record["plan"]["seeds"][0]
        for ax, name, title in zip(
            row, ("real", f"diffusion_{seed}", f"gan_{seed}"), ("real", *TITLES.values()), strict=False
        ):
            draw(ax, np.load(workdir / f"{task}_{name}.npy"))
            ax.set_title(title)
        for ax, (name, label) in zip(row[3:], measures, strict=True):
            curves(ax, record, name, label)
        row[3].axhline(record["perfect_small"]["modes"], color="0.4", ls=":", label="perfect")
        row[3].legend()
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out.with_suffix(".png"), dpi=80)
    out.with_suffix(".json").write_text(json.dumps(records, indent=1) + "\n")


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
