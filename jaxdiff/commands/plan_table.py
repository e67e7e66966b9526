"""A table of plans: a row for every preset on every slice, kept in a folder, so that a run that was stopped goes on."""

import dataclasses
import json
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxdiff import cli
from jaxdiff.commands.plan import check_efficiency, make_plan, write
from jaxdiff.commands.plan_step import open_slice
from jaxdiff.planning.chips import GIB, parse_slice
from jaxdiff.presets import PRESETS, preset

HEAD = (
    *("preset", "slice", "batch", "changed to fit", "HBM GiB/chip", "TFLOP/step", "sent MB/chip", "ms/step at least"),
    *("bound", "days", "sampling: images x steps", "HBM GiB/chip", "s at least"),
)


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of plans."""

    table: tuple[str, ...]
    """Presets, or `all`."""
    rows: Path
    """Folder of the rows, a JSON file each, and of table.md."""
    topologies: tuple[str, ...] = ("v5e-8", "v5e-256", "v5p-128", "v6e-256")
    """Slices."""
    efficiency: float = 0.4
    """As in `jaxdiff plan PRESET`."""
    sampling: tuple[str, ...] = ("v5e-8", "v5p-128")
    """Slices for which the sampler is compiled as well."""

    def __post_init__(self) -> None:
        check_efficiency(self.efficiency)


def run(table: Table) -> None:
    """Makes the rows that are missing, preset by preset, and writes the table after each."""
    names = tuple(PRESETS) if table.table == ("all",) else table.table
    for name in names:
        preset(name)
    slices = [parse_slice(text) for text in table.topologies]
    wanted = [(name, text, slice_) for name in names for text, slice_ in zip(table.topologies, slices, strict=True)]
    for name, text, slice_ in wanted:
        path = table.rows / f"{name}--{text}.json"
        if not path.exists():
            started = time.monotonic()
            record = row(name, slice_, table.efficiency, text in table.sampling)
            write(path, record | {"topology": text, "seconds": round(time.monotonic() - started, 1)})
            print(f"{name} {text}: {record.get('error') or 'made'} in {time.monotonic() - started:.0f} s", flush=True)
        done = [table.rows / f"{n}--{t}.json" for n in names for t in table.topologies]
        lines = markdown([json.loads(p.read_text()) for p in done if p.exists()])
        (table.rows / "table.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def row(name: str, slice_: Any, efficiency: float, samples: bool) -> dict[str, object]:
    """The figures of one row, or the error with which it ended."""
    try:
        config, devices = preset(name), open_slice(slice_)
        parts = len(devices) * config.optim.accumulate
        # A batch that the slice cannot share out grows to one that it can.
        config = dataclasses.replace(config, batch_size=-(-config.batch_size // parts) * parts)
        return make_plan(name, config, slice_, devices, efficiency, samples=samples).to_json()
    except Exception as error:  # a compiler's fault must not end the table
        lines = str(error).splitlines() or [type(error).__name__]
        return {"preset": name, "slice": slice_.name, "error": lines[0], "traceback": traceback.format_exc()[-2000:]}


def markdown(records: Sequence[dict[str, Any]]) -> list[str]:
    """The rows as a Markdown table."""
    lines = [f"| {' | '.join(HEAD)} |", f"| {' | '.join('---' for _ in HEAD)} |"]
    return lines + [f"| {' | '.join(cells(record))} |" for record in records]


def cells(record: dict[str, Any]) -> list[str]:
    """One row's cells."""
    first = [record["preset"], record["topology"]]
    if "error" in record:
        return [*first, *([""] * 10), record["error"].replace("|", "/")]
    step, sampling = record["training"], record["sampling"]
    line = step["roofline_seconds"]
    out = [*first, str(record["batch_size"]), f"`{record['remedy']}`" if record["remedy"] else "nothing"]
    sent = sum(kind["sent"] for kind in step["collectives_per_chip"].values())
    if line is None:
        out += ["does not fit", f"{step['flops']['total'] / 1e12:.4g}", "", "", "", ""]
    else:
        out += [f"{step['hbm_bytes_per_chip']['total'] / GIB:.3g}", f"{step['flops']['total'] / 1e12:.4g}"]
        out += [f"{sent / 1e6:.4g}", f"{1e3 * line['total']:.3g}", line["bound"], f"{record['days']:.3g}"]
    if sampling is None:
        return [*out, "", "", ""]
    out.append(f"{record['sampling_batch']} x {record['sampling_steps']}")
    if sampling["roofline_seconds"] is None:
        return [*out, "does not fit", ""]
    total = sampling["hbm_bytes_per_chip"]["total"]
    return [*out, f"{total / GIB:.3g}", f"{sampling['roofline_seconds']['total']:.3g}"]


def main(args: Sequence[str]) -> None:
    """The command's second form."""
    run(cli.parse(Table, "jaxdiff plan", args, description=__doc__ or ""))
