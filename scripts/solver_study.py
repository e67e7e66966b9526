"""A metric against the number of network calls, solver by solver, on a trained run:

    python scripts/solver_study.py runs/fashion --reference fashion_mnist --split test [--num 256] [--out docs]

Writes solver_study.json, solver_study.md and solver_study.png. Everything is measured by `jaxdiff evaluate`, so
what was made once is not made again. Solvers of order 1 are given times evenly spaced, the others log SNRs
(docs/results.md says how that was chosen). `--far` adds 1,000 calls for the solvers named.
"""

import argparse
import dataclasses
import json
from pathlib import Path

import matplotlib
import numpy as np

from jaxdiff.commands.evaluate import Command, evaluate
from jaxdiff.training.cpu import use_cpu

CALLS = (4, 6, 8, 10, 15, 20, 50)
EVEN_TIMES, EVEN_LOGSNR = "uniform", "logsnr(start=0.995, end=0.02)"
SOLVERS = {
    "DDIM": ("ddim", EVEN_TIMES),
    "DDPM": ("ddpm", EVEN_TIMES),
    "Heun": ("heun", EVEN_LOGSNR),
    "DPM-Solver++ 2M": ("dpmpp-2m", EVEN_LOGSNR),
    "DPM-Solver++ 3M": ("dpmpp-3m", EVEN_LOGSNR),
    "DEIS-3": ("deis", EVEN_LOGSNR),
    "UniPC-3": ("unipc(order=3)", EVEN_LOGSNR),
    "SDE-DPM-Solver++ 2M": ("dpmpp-2m-sde", EVEN_LOGSNR),
    "SA-Solver": ("sa", EVEN_LOGSNR),
}
"""The solvers and their grids."""


def steps_of(solver: str, calls: int) -> int:
    """Steps that need at most this many calls."""
    return (calls + 1) // 2 if solver == "heun" else calls


def point(command: Command, name: str, calls: int, most: int) -> dict:
    """One evaluation."""
    solver, grid = SOLVERS[name]
    settings = dataclasses.replace(command.settings, solver=solver, grid=grid, steps=steps_of(solver, calls))
    record = evaluate(command, settings, most)
    samples = record["samples"]
    assert isinstance(samples, dict)
    return {"solver": name, "calls": calls, "nfe": samples["nfe"], "metrics": record["metrics"]}


def plot(points: list[dict], metrics: list[str], out: Path) -> None:
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(metrics), figsize=(6.2 * len(metrics), 4.4), layout="constrained")
    for axis, metric in zip(np.atleast_1d(axes), metrics, strict=True):
        for i, name in enumerate(SOLVERS):
            line = [p for p in points if p["solver"] == name]
            if not line:
                continue
            values = [p["metrics"][metric]["value"] for p in line]
            axis.plot([p["nfe"] for p in line], values, marker="osv^D<>ph"[i % 9], ms=4, lw=1.2, label=name)
        axis.set_xscale("log")
        axis.set_yscale("log" if metric == "fd" else "linear")
        axis.set_xticks([*CALLS, 1000], [str(c) for c in (*CALLS, 1000)])
        axis.set(xlabel="network calls", title=metric)
        axis.grid(alpha=0.3)
    np.atleast_1d(axes)[0].legend(fontsize=8)
    figure.savefig(out / "solver_study.png", dpi=110)


def table(points: list[dict], metric: str) -> str:
    columns = sorted({p["calls"] for p in points})
    rows = [[metric, *map(str, columns)], ["---"] * (len(columns) + 1)]
    for name in SOLVERS:
        found = {p["calls"]: p["metrics"][metric] for p in points if p["solver"] == name}
        rows.append([name, *(f"{found[c]['value']:.4g}" if c in found else "" for c in columns)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", type=Path)
    parser.add_argument("--reference", required=True)
    parser.add_argument("--split", default="train")
    parser.add_argument("--metrics", default="fd,kid")
    parser.add_argument("--num", type=int, default=256)
    parser.add_argument("--weights", nargs="*", default=[])
    parser.add_argument("--far", nargs="*", default=[], help="solvers that are also measured at 1,000 calls")
    parser.add_argument("--out", type=Path, default=Path("docs"))
    flags = parser.parse_args()
    use_cpu(64)
    command = Command(
        dir=flags.dir,
        metrics=flags.metrics,
        num=flags.num,
        reference=flags.reference,
        split=flags.split,
        weights=tuple(flags.weights),
    )
    points = []
    for name in SOLVERS:
        far = [1000] if name in flags.far else []
        for calls in (*CALLS, *far):
            points.append(point(command, name, calls, max(CALLS)))
            print(json.dumps(points[-1]), flush=True)
    metrics = flags.metrics.split(",")
    (flags.out / "solver_study.json").write_text(json.dumps(points, indent=1) + "\n")
    (flags.out / "solver_study.md").write_text("\n\n".join(table(points, m) for m in metrics) + "\n")
    plot(points, metrics, flags.out)


if __name__ == "__main__":
    main()
