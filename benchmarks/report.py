"""From the numbers to one table and one plot."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

Json = dict[str, Any]

COMPARED = {
    "unet_train": ("U-Net, training step", "conv"),
    "unet_sample": ("U-Net, sampling", "conv"),
    "dit_train": ("DiT-S/2, training step", "matmul"),
    "dit_sample": ("DiT-S/2, sampling", "matmul"),
}
"""The title of a comparison, and the peak that limits it."""
AXES = {
    "batch": "step time against batch",
    "resolution": "step time against the image's side",
    "depth": "step time against depth",
    "steps": "sampling time against steps",
    "devices": "sampling time against devices",
}
COLUMNS = ("what", "side", "figure", "ratio", "per FLOP", "of the peak", "to compile")
GPU_COLUMNS = ("what", "side", "figure", "ratio", "of the peak")
TITLES = {"float32": "TF32", "bfloat16": "bfloat16"}
KINDS = {"matmul": "matrix product, peak", "conv": "3x3 convolution, peak"}


class Row(NamedTuple):
    """A line of the table."""

    what: str
    side: str
    figure: str
    ratio: str = ""
    per_flop: str = ""
    peak: str = ""
    compiles: str = ""


def table(record: Json) -> str:
    """The machine in words, and all rows as Markdown."""
    rows = [COLUMNS, ("---",) * len(COLUMNS), *rows_of(record["sections"])]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([describe(record), "", *lines])


def describe(record: Json) -> str:
    """One paragraph about the machine."""
    here = record["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in here["versions"].items())
    quick = "**A quick look on tiny networks: these numbers mean nothing.** " if record["quick"] else ""
    return (
        f"{quick}{here['cpu']}, {here['cores']} cores and as many threads, {', '.join(here['features'])}, "
        f"{here['memory_gib']} GiB; {here['system']}; {versions}."
    )


def rows_of(sections: Json) -> Iterator[Row]:
    """The rows of every section that has been measured."""
    limit = sections.get("peaks", {}).get("limit")
    if limit:
        for side, rates in sections["peaks"]["sides"].items():
            for kind, what in (("matmul", "matrix product, peak"), ("conv", "3x3 convolution, peak")):
                yield Row(what, side, f"{rates[kind] / 1e9:.0f} GFLOP/s", peak=percent(rates[kind] / limit[kind]))
    for name, (title, kind) in COMPARED.items():
        if name in sections:
            yield from compared(sections[name], title, limit and limit[kind], sections.get("floors", {}).get(name))
    step = images_per_second(sections.get("unet_train"))
    for point in sections.get("data", {}).get("points", []):
        yield data_row(point, step)
    if "checkpoints" in sections:
        yield from loop_rows(sections["checkpoints"])
    for axis, points in growth_of(sections).items():
        yield growth_row(axis, points)
    for point in sections.get("tpu", {}).get("points", []):
        yield tpu_row(point)


def compared(result: Json, title: str, peak: float | None, floor: Json | None = None) -> Iterator[Row]:
    """A comparison's rows: the time, how many times as long as jaxdiff's, and the same for equal FLOPs.

    `floor`: what jaxdiff's products and convolutions take alone, for a row of its own.
    """
    spec, ours = result["spec"], result["sides"]["jaxdiff"]
    images = spec["batch"] * (spec["calls"] if spec["task"] == "sample" else 1)
    unit = "image" if spec["task"] == "train" else "image and call"
    what = f"{title}, batch {spec['batch']}"
    for side, found in result["sides"].items():
        if "error" in found:
            yield Row(what, side, f"failed: {found['error'].replace('|', '/')[:80]}")
            continue
        time, flops = found["median"], found["flops"]
        ratio, work = time / ours["median"], flops / ours["flops"]
        yield Row(
            what,
            side,
            f"{1e3 * time / images:.1f} ms per {unit} ({flops / images / 1e9:.1f} GFLOP)",
            "1" if side == "jaxdiff" else f"{ratio:.2f}",
            "1" if side == "jaxdiff" else f"{ratio / work:.2f}",
            percent(flops / time / peak) if peak else "",
            f"{max(0.0, found['first'] - time):.1f} s" if side != "PyTorch eager" else "",
        )
    if floor and "error" not in floor:
        time = floor["dot"] + floor["conv"]
        figure = f"{1e3 * time / images:.1f} ms per {unit}"
        share = percent(ours["flops"] / time / peak) if peak else ""
        yield Row(what, "jaxdiff's products and convolutions alone", figure, f"{time / ours['median']:.2f}", "", share)


def images_per_second(result: Json | None) -> float | None:
    """Of jaxdiff's training step."""
    return result["spec"]["batch"] / result["sides"]["jaxdiff"]["median"] if result else None


def data_row(point: Json, step: float | None) -> Row:
    """The pipeline's rate, and how many times the U-Net's training step it could feed."""
    where = {"emoji": "embedded emoji", "png": "folder of PNG", "jpg": "folder of JPEG"}[point["kind"]]
    what = f"input: {where}, {point['stored']} to {point['size']} pixels, {point['workers']} workers"
    if "error" in point:
        return Row(what, "jaxdiff", "failed")
    return Row(
        what, "jaxdiff", f"{point['rate']:.0f} images/s", f"{point['rate'] / step:.0f} x the step" if step else ""
    )


def loop_rows(found: Json) -> Iterator[Row]:
    """What a checkpoint costs, and how long the loop waits for data."""
    if "error" in found:
        yield Row("checkpoints", "jaxdiff", "failed")
        return
    every = found["save_every"]
    what = f"asynchronous checkpoint, preset smileys, every {every} steps of {1e3 * found['step']:.0f} ms"
    yield Row(what, "jaxdiff", f"{found['cost']:.2f} s each", f"{100 * found['overhead']:.2f} % of the time")
    yield Row("waiting for data, preset smileys", "jaxdiff", f"{100 * found['waiting']:.2f} % of the time")


def growth_of(sections: Json) -> dict[str, list[Json]]:
    """The measured curves."""
    return {axis: points for axis, points in sections.get("growth", {}).items() if axis in AXES}


def growth_row(axis: str, points: list[Json]) -> Row:
    """The exponent of the power of the axis that fits best, of the time and of the FLOPs."""
    values = [p["value"] for p in points]
    if len(values) < 2:
        return Row(f"growth: {AXES[axis]}", "jaxdiff", "one point")
    time, work = (exponent(values, [p[name] for p in points]) for name in ("median", "flops"))
    compiles = exponent(values, [max(p["first"] - p["median"], 1e-3) for p in points])
    figure = f"exponent {time:.2f} from {values[0]} to {values[-1]}; FLOPs {work:.2f}"
    return Row(f"growth: {AXES[axis]}", "jaxdiff", figure, compiles=f"exponent {compiles:.2f}")


def exponent(x: list[float], y: list[float]) -> float:
    """The slope of log y over log x, by least squares."""
    logs = [(math.log(a), math.log(b)) for a, b in zip(x, y, strict=True)]
    mean_a, mean_b = (sum(column) / len(logs) for column in zip(*logs, strict=True))
    return sum((a - mean_a) * (b - mean_b) for a, b in logs) / sum((a - mean_a) ** 2 for a, _ in logs)


def tpu_row(point: Json) -> Row:
    """The largest batch of DiT-XL/2 on a slice, and its memory."""
    what = f"DiT-XL/2 training, {point['topology']}: largest batch"
    if "error" in point:
        return Row(what, point["side"], f"failed: {point['error'].replace('|', '/')[:80]}")
    if not point["batch"]:
        return Row(what, point["side"], "0: not even the smallest fits")
    at = point["at"]
    figure = f"{point['batch']} ({at['hbm']:.1f} GiB a chip, {at['state']:.1f} of it state and batch)"
    return Row(what, point["side"], figure, compiles=f"{at['seconds']:.1f} s")


def gpu_table(record: Json) -> str:
    """The machine of `benchmarks.gpu` in words, and all rows as Markdown."""
    here, sections = record["machine"], record["sections"]
    versions = ", ".join(f"{name} {number}" for name, number in here["versions"].items())
    quick = "**A quick look on tiny networks: these numbers mean nothing.** " if record["quick"] else ""
    about = f"{quick}{here.get('device') or 'unknown device'} ({here['driver'] or 'no driver'}); {versions}."
    rows: list[tuple[str, ...]] = [GPU_COLUMNS, ("---",) * len(GPU_COLUMNS)]
    rates = {side: found.get("best", {}) for side, found in sections.get("peaks", {"sides": {}})["sides"].items()}
    limits: dict[tuple[str, str], float] = {}
    for precision, title in TITLES.items():
        for kind, what in KINDS.items():
            found = {side: best[precision][kind] for side, best in rates.items() if precision in best}
            limit = limits[precision, kind] = max(found.values(), default=0.0)
            for side, rate in found.items():
                rows.append((f"{what}, {title}", side, f"{rate / 1e12:.1f} TFLOP/s", "", percent(rate / limit)))
    for name, section in sections.items():
        if name != "peaks":
            title, kind = COMPARED[name.split()[0]]
            precision = section["spec"]["precision"]
            title = f"{title}, batch {section['spec']['batch']}, {TITLES[precision]}"
            rows += [gpu_row(section, side, title, limits[precision, kind]) for side in section["sides"]]
    return "\n".join([about, "", *(f"| {' | '.join(row)} |" for row in rows)])


def gpu_row(section: Json, side: str, title: str, limit: float) -> tuple[str, ...]:
    """A side's row: images a second and the time of a step or call, over jaxdiff's time, operations over the peak."""
    spec, found, ours = section["spec"], section["sides"][side], section["sides"].get("jaxdiff", {})
    if "median" not in found:
        return title, side, f"failed: {found.get('error', 'not measured').replace('|', '/')[:80]}", "", ""
    time, training = found["median"], spec["task"] == "train"
    calls, unit, each = (1, "images/s", "step") if training else (spec["calls"], "images and calls/s", "call")
    return (
        title,
        side,
        f"{spec['batch'] * calls / time:.0f} {unit} ({1e3 * time / calls:.2f} ms a {each})",
        f"{time / ours['median']:.2f}" if "median" in ours else "",
        percent(found["flops"] / time / limit) if limit else "",
    )


def percent(fraction: float) -> str:
    """The fraction in per cent."""
    return f"{100 * fraction:.0f} %"


def plot(record: Json, path: Path) -> None:
    """Speeds side by side, and growth; relative to jaxdiff, and to each curve's first point."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    sections = record["sections"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.6), layout="constrained")
    found = {title: sections[name]["sides"] for name, (title, _) in COMPARED.items() if name in sections}
    names = list(dict.fromkeys(side for sides in found.values() for side in sides))
    for i, side in enumerate(names):
        rates = [
            s["jaxdiff"]["median"] / s[side]["median"] if "median" in s.get(side, {}) else 0.0 for s in found.values()
        ]
        places = [j + 0.8 * (i - (len(names) - 1) / 2) / len(names) for j in range(len(found))]
        left.bar(places, rates, 0.8 / len(names), label=side)
    left.set_xticks(range(len(found)), [title.replace(", ", "\n") for title in found])
    left.set(ylabel="speed, jaxdiff = 1", title="the same work, side by side")
    left.axhline(1.0, color="black", lw=0.6)
    if names:
        left.set_ylim(0, 1.25 * left.get_ylim()[1])
        left.legend(fontsize=8, ncols=3, loc="upper center")
    for axis, points in growth_of(sections).items():
        first = points[0]
        x, y = [p["value"] / first["value"] for p in points], [p["median"] / first["median"] for p in points]
        right.loglog(x, y, marker="o", ms=4, label=AXES[axis])
    right.set(xlabel="times the first value", ylabel="times the first time", title="growth")
    right.grid(alpha=0.3, which="both")
    if growth_of(sections):
        right.legend(fontsize=8)
    figure.savefig(path, dpi=100)
    plt.close(figure)
