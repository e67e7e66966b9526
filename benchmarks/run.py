"""Measures everything and writes the table, the plot and all numbers: python -m benchmarks.run [--only a,b] [--quick].

    docs/performance.md     the table, between two marks; the text around it is written by hand and left alone
    docs/performance.json   every number, section by section, as soon as it is measured
    docs/performance.png    the plot

An interrupted run goes on where it stopped: sections that are in the JSON file are not measured again, unless
`--only` names them or `--fresh` forgets them all.
"""

import argparse
import json
import os
import platform
import re
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.report import plot, table
from benchmarks.sections import SECTIONS, Settings
from benchmarks.worker import ROOT

KINDS = ("cpu family", "model", "stepping")
BEGIN, END = "<!-- begin: python -m benchmarks.run -->", "<!-- end -->"


def machine() -> dict[str, Any]:
    """The processor, the threads, the versions."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    fields = [line.partition(":") for line in lines]
    found = {name.strip(): value.strip() for name, _, value in fields}
    wide = [f for f in ("avx2", "avx512f", "avx512_bf16", "amx_tile") if f in found.get("flags", "").split()]
    names = ("jax", "jaxlib", "flax", "optax", "torch", "diffusers", "numpy")
    return {
        "cpu": " ".join([found.get("model name", platform.processor()), *(found.get(k, "") for k in KINDS)]),
        "features": wide,
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "versions": {name: version(name) for name in names},
    }


def write(path: Path, text: str) -> None:
    """Whole or not at all."""
    part = path.with_suffix(path.suffix + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def put_between(text: str, lines: str) -> str:
    """`text` with the lines between the two marks in place of what is there now; at its end where it has none."""
    if BEGIN not in text:
        text = f"{text.rstrip()}\n\n{BEGIN}\n{END}\n".lstrip()
    return re.sub(f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: f"{BEGIN}\n{lines}\n{END}", text, flags=re.DOTALL)


def report(record: dict[str, Any], out: Path) -> None:
    """The table and the plot of what has been measured so far."""
    page = out / "performance.md"
    write(page, put_between(page.read_text(encoding="utf-8") if page.exists() else "", table(record)))
    plot(record, out / "performance.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=None, help="folder (docs; build/benchmarks with --quick)")
    parser.add_argument("--only", default="", help=f"sections, of {','.join(SECTIONS)}")
    parser.add_argument("--quick", action="store_true", help="tiny networks, meaningless numbers: does all of it run?")
    parser.add_argument("--fresh", action="store_true", help="measure everything again")
    parser.add_argument("--seconds", type=float, default=None, help="of measuring a side of a comparison (12)")
    parser.add_argument("--turns", type=int, default=None, help="parts of those seconds, A B A B (4)")
    parser.add_argument("--peers", default="", help="the Python that has the JAX peers; none: without them")
    parser.add_argument("--train-batch", type=int, default=32)
    parser.add_argument("--sample-batch", type=int, default=16)
    flags = parser.parse_args()
    only = [name for name in flags.only.split(",") if name]
    if unknown := set(only) - set(SECTIONS):
        parser.error(f"--only {','.join(sorted(unknown))} is unknown: allowed are {', '.join(SECTIONS)}")
    out = flags.out or ROOT / ("build/benchmarks" if flags.quick else "docs")
    out.mkdir(parents=True, exist_ok=True)
    store = out / "performance.json"
    here = {"machine": machine(), "quick": flags.quick, "sections": {}}
    record = json.loads(store.read_text()) if store.exists() and not flags.fresh else here
    if any(record[name] != here[name] for name in ("machine", "quick")):
        parser.error(f"{store} was measured on another machine or with other versions: give --fresh, or another --out")
    settings = Settings(
        quick=flags.quick,
        seconds=flags.seconds or (0.5 if flags.quick else 12.0),
        turns=flags.turns or (2 if flags.quick else 4),
        peers=flags.peers,
        train_batch=flags.train_batch,
        sample_batch=flags.sample_batch,
        log=lambda text: print(text, flush=True),
    )
    for name, measure in SECTIONS.items():
        wanted = name in only if only else name not in record["sections"]
        if not wanted:
            continue
        print(f"{name} ...", flush=True)
        start = time.monotonic()
        record["sections"][name] = measure(settings) | {"seconds": 0.0}
        record["sections"][name]["seconds"] = round(time.monotonic() - start, 1)
        write(store, json.dumps(record, indent=1) + "\n")
        print(f"{name}: {record['sections'][name]['seconds']} s", flush=True)
    report(record, out)
    print(f"{out / 'performance.md'}, .json and .png", file=sys.stderr)


if __name__ == "__main__":
    main()
