"""Measuring for several values of some settings: the list of them, the table, the plot."""

import dataclasses
import io
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from jaxdiff.evaluation.metrics import METRICS
from jaxdiff.settings import Settings

DEFAULTS: Mapping[str, tuple[str, ...]] = {
    "ema": ("none", "default"),
    "cfg_scale": ("1", "1.25", "1.5", "2", "3", "4"),
    "steps": ("4", "6", "8", "10", "15", "20", "50"),
    "solver": ("ddim", "ddpm", "heun", "dpmpp-2m"),
    "seed": ("0", "1", "2"),
}
"""What is tried for a setting that is named without values; ema's "default" is the run's first average."""


def axes_in(text: str) -> dict[str, tuple[str, ...]]:
    """The settings to vary and their values: "ema,cfg_scale" or "steps=4:8,solver=ddim:heun". Raises: ValueError."""
    known = [f.name for f in dataclasses.fields(Settings)]
    axes: dict[str, tuple[str, ...]] = {}
    # Commas inside the brackets of a value, heun(churn=40,noise=1.003), part nothing.
    for part in split(text, ","):
        name, equals, values = part.partition("=")
        name = name.strip().replace("-", "_")
        if name not in known or (not equals and name not in DEFAULTS):
            raise ValueError(
                f"sweep over {part!r} is not allowed: {', '.join(DEFAULTS)}, or NAME=VALUE:VALUE... with any of "
                f"{', '.join(known)} (--sweep)"
            )
        axes[name] = tuple(split(values, ":")) if equals else DEFAULTS[name]
    if not axes or not all(all(v) and v for v in axes.values()):
        raise ValueError(f"sweep {text!r} names no values: NAME or NAME=VALUE:VALUE, separated by commas (--sweep)")
    return axes


def split(text: str, mark: str) -> list[str]:
    """The parts between marks that stand outside brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter == "(") - (letter == ")")
        if letter == mark and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def with_value(settings: Settings, name: str, text: str) -> Settings:
    """The settings with one of them read from text. Raises: ValueError."""
    kinds = {"seed": int, "batch_size": int, "steps": int, "step": int, "cfg_scale": float}
    try:
        value: Any = None if text == "default" else kinds.get(name, str)(text)
    except ValueError as error:
        raise ValueError(f"{name} = {text!r} is not allowed: a number (--sweep)") from error
    return dataclasses.replace(settings, **{name: value})


def run(text: str, settings: Settings, evaluate: Callable[[Settings], dict[str, object]]) -> dict[str, Any]:
    """{"sweep": the axes, "records": a record for each point with its values in "point"}."""
    axes = axes_in(text)
    points = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    every = []
    for point in points:
        here = settings
        for name, value in point.items():
            here = with_value(here, name, value)
        every.append(here)
    # All points are read before the first is measured, so that a mistake costs nothing.
    return {"sweep": axes, "records": [{"point": p, **evaluate(s)} for p, s in zip(points, every, strict=True)]}


def most_steps(text: str) -> int:
    """The largest number of steps of a sweep; 0 where it does not vary."""
    return max((int(v) for v in axes_in(text).get("steps", ()) if v.isdigit()), default=0)


def table(records: Sequence[Mapping[str, Any]], axes: Mapping[str, Sequence[str]]) -> str:
    """A Markdown table: a row a record, a column an axis or a metric."""
    names = list(records[0]["metrics"])
    rows = [[*axes, *names], ["---"] * (len(axes) + len(names))]
    for record in records:
        rows.append([*(record["point"][a] for a in axes), *(shown(record["metrics"][n]) for n in names)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def shown(figure: Mapping[str, Any]) -> str:
    """A figure with its interval, four digits."""
    interval = f" ({figure['low']:.4g} to {figure['high']:.4g})" if "low" in figure else ""
    return f"{figure['value']:.4g}{interval}"


def write(folder: epath.Path, sweep: Mapping[str, Any]) -> dict[str, str]:
    """Writes table and plot; returns where they lie."""
    folder.mkdir(parents=True, exist_ok=True)
    name = "sweep-" + "-".join(sweep["sweep"])
    files = {"table": folder / f"{name}.md", "plot": folder / f"{name}.png", "records": folder / f"{name}.json"}
    text = table(sweep["records"], sweep["sweep"])
    print(text)
    files["table"].write_text(text + "\n")
    files["records"].write_text(json.dumps(sweep, indent=1) + "\n")
    plot(files["plot"], sweep)
    return {kind: str(path) for kind, path in files.items()}


def plot(path: epath.Path, sweep: Mapping[str, Any]) -> None:
    """A panel a metric: the last axis to the right, a line for each point of the others."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    *others, along = sweep["sweep"]
    metrics = list(sweep["records"][0]["metrics"])
    figure = Figure(figsize=(4.5 * len(metrics), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    places = {value: i for i, value in enumerate(sweep["sweep"][along])}
    for panel, metric in enumerate(metrics, 1):
        axis = figure.add_subplot(1, len(metrics), panel)
        groups: dict[tuple[str, ...], list[tuple[int, Mapping[str, Any]]]] = {}
        for record in sweep["records"]:
            key = tuple(record["point"][o] for o in others)
            groups.setdefault(key, []).append((places[record["point"][along]], record["metrics"][metric]))
        for key, line in groups.items():
            x, y = [p for p, _ in line], np.array([f["value"] for _, f in line])
            low, high = (np.array([f.get(side, f["value"]) for _, f in line]) for side in ("low", "high"))
            axis.plot(x, y, marker="o", label=", ".join(f"{o} {k}" for o, k in zip(others, key, strict=True)))
            axis.fill_between(x, low, high, alpha=0.15, linewidth=0)
        axis.set_xticks(range(len(places)), list(places))
        axis.set_xlabel(along)
        better = f" ({METRICS[metric].better} is better)" if metric in METRICS else ""
        axis.set_title(f"{metric}{better}")
        axis.grid(alpha=0.3)
        if others:
            axis.legend(fontsize="small")
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=120)
    path.write_bytes(drawn.getvalue())
