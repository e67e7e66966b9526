"""jaxdiff beside PyTorch on one GPU: python -m benchmarks.gpu --out FILE.json [--quick] [--device cuda|cpu].

    python -m benchmarks.gpu --table FILE.json     the numbers as a Markdown table

The networks, the work and the turns are those of `benchmarks.run`, in bfloat16 and with TF32 allowed. All sides are
made at once, several at a time, and wait idle; then one measures at a time. The JSON is written again after each turn,
and a side that fails is an error in it.
"""

import argparse
import json
import os
import subprocess
import threading
import time
from collections import deque
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.report import gpu_table
from benchmarks.run import write
from benchmarks.sections import check_same_work
from benchmarks.sizes import FULL, QUICK, Device, Network, Precision, Spec, Task
from benchmarks.worker import ROOT, Failed, Worker, summary

Json = dict[str, Any]

SIDES = {
    "jaxdiff": ("jaxdiff_side", False),
    "PyTorch compiled": ("torch_side", True),
    "PyTorch eager": ("torch_side", False),
}
"""Module, and whether torch.compile; in the order in which they are made, the slow ones first."""
COMPARISONS: tuple[tuple[Network, Task, Precision], ...] = (
    ("unet", "train", "bfloat16"),
    ("dit", "train", "bfloat16"),
    ("unet", "sample", "bfloat16"),
    ("dit", "sample", "bfloat16"),
    ("unet", "train", "float32"),
    ("dit", "train", "float32"),
)
BATCH = {("unet", "train"): 128, ("dit", "train"): 128, ("unet", "sample"): 128, ("dit", "sample"): 256}
"""A DiT training step on 256 images holds 20 GB where products of attention are kept in float32."""


class Job(NamedTuple):
    """A side of a section, and the first thing that it is asked."""

    section: str
    side: str
    module: str
    message: Json


def jobs(device: Device, quick: bool, only: str) -> list[Job]:
    """All that is to be made: with `only`, of the sections whose name begins so."""
    found: list[Job] = []
    for side, (module, compiled) in SIDES.items():
        for network, task, precision in COMPARISONS:
            batch = 4 if quick else BATCH[network, task]
            size = QUICK if quick else FULL
            spec = Spec(network, task, batch, 8, size, compiled, precision=precision, device=device)
            found.append(Job(f"{network}_{task} {precision}", side, module, {"make": spec._asdict()}))
    warm = {"call": "gpu_peaks", "with": {"seconds": 0.0, "device": device, "quick": True}}
    found += [Job("peaks", "JAX", "jaxdiff_side", warm), Job("peaks", "PyTorch", "torch_side", warm)]
    return [job for job in found if job.section.startswith(only)]


def environment(device: Device) -> dict[str, str]:
    """What the sides see besides: the GPU without memory set apart, and the caller's packages and compiled programs."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    kept = {name: os.environ[name] for name in ("JAX_COMPILATION_CACHE_DIR",) if name in os.environ}
    return {
        "JAX_PLATFORMS": "cuda,cpu" if device == "cuda" else device,
        "PYTHONPATH": os.pathsep.join(paths),
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "TORCHINDUCTOR_COMPILE_THREADS": "4",
        **kept,
    }


class Bench:
    """The sides and what they have answered so far."""

    def __init__(self, flags: argparse.Namespace):
        self.flags, self.lock = flags, threading.Lock()
        self.deadline = time.monotonic() + flags.make_seconds
        self.waiting = deque(jobs(flags.device, flags.quick, flags.only))
        self.workers: dict[tuple[str, str], Worker] = {}
        self.record: Json = {"quick": flags.quick, "machine": machine(), "sections": {}}
        for job in self.waiting:
            section = self.record["sections"].setdefault(job.section, {"spec": job.message.get("make"), "sides": {}})
            section["sides"][job.side] = {"error": "not ready in time"}

    def save(self) -> None:
        """Writes what there is."""
        with self.lock:
            write(self.flags.out, json.dumps(self.record, indent=1) + "\n")

    def ask(self, worker: Worker, seconds: float, **message: object) -> Json:
        """Its answer; a side that takes longer than `seconds` is ended. Raises: Failed."""
        timer = threading.Timer(max(seconds, 0.1), worker.process.kill)
        timer.start()
        try:
            return worker.ask(**message)
        except (ValueError, OSError) as error:
            raise Failed(f"{worker.name}: {error}") from error
        finally:
            timer.cancel()

    def make(self) -> None:
        """Makes sides until none is left; one that found no memory is tried once more."""
        while True:
            try:
                job = self.waiting.popleft()
            except IndexError:
                return
            answer: Json = {}
            for attempt in range(2):
                if time.monotonic() > self.deadline - 1:
                    break
                worker = Worker(job.module, env=environment(self.flags.device))
                try:
                    answer = self.ask(worker, self.deadline - time.monotonic(), **job.message)
                    self.workers[job.section, job.side] = worker
                    break
                except Failed as error:
                    worker.process.kill()
                    answer = {"error": str(error)} if time.monotonic() < self.deadline - 1 else {}
                    if "out of memory" not in str(error).lower():
                        break
                    time.sleep(0.0 if attempt else 15.0)
            with self.lock:
                answer = answer or {"error": "not ready in time"}
                self.record["sections"][job.section]["sides"][job.side] = answer
            print(f"  {job.section}, {job.side}: {answer.get('error', 'ready')}", flush=True)

    def make_all(self) -> None:
        """Makes all sides, some at a time, until the deadline."""
        threads = [threading.Thread(target=self.make, daemon=True) for _ in range(self.flags.at_once)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(0.0, self.deadline + 10 - time.monotonic()))
        if ("peaks", "JAX") in self.workers:
            with self.lock:
                self.record["machine"]["device"] = self.try_ask("peaks", "JAX", 30, call="kind", **{"with": {}})
        self.save()

    def try_ask(self, section: str, side: str, seconds: float, **message: object) -> Any:
        """Its answer, or None, and then the side has an error and is not asked again."""
        try:
            return self.ask(self.workers[section, side], seconds, **message)
        except Failed as error:
            self.workers.pop((section, side))
            self.record["sections"][section]["sides"][side]["error"] = str(error)
            return None

    def measure(self, section: str) -> None:
        """A section's sides in turns; then their processes may end."""
        found = self.record["sections"][section]
        sides = [side for side in found["sides"] if (section, side) in self.workers]
        seconds = 0.1 if self.flags.quick else self.flags.seconds
        if found["spec"]:
            for side in sides:  # memory that it gave back when it was made
                self.try_ask(section, side, 60, measure=0.0, least=2)
            try:
                check_same_work(found["sides"])
            except (Failed, ValueError, KeyError) as error:
                found["work"] = str(error)
        for _ in range(self.flags.turns):
            for side in sides:
                if (section, side) in self.workers:
                    self.turn(section, side, seconds)
                    time.sleep(0.2)
            self.save()
        for side in sides:
            if (section, side) in self.workers:
                self.workers[section, side].process.stdin.close()  # pyright: ignore[reportOptionalMemberAccess]
        time.sleep(1.0)  # their memory is free then

    def turn(self, section: str, side: str, seconds: float) -> None:
        """One side's turn."""
        here = self.record["sections"][section]["sides"][side]
        if section == "peaks":
            settings = {"seconds": seconds / 4, "device": self.flags.device, "quick": self.flags.quick}
            rates = self.try_ask(section, side, 60, call="gpu_peaks", **{"with": settings})
            for precision, kinds in (rates or {}).items():
                best = here.setdefault("best", {}).setdefault(precision, {})
                best.update({kind: max(rate, best.get(kind, 0.0)) for kind, rate in kinds.items()})
            return
        answer = self.try_ask(section, side, 60, measure=seconds, least=2)
        if answer:
            here["times"] = here.get("times", []) + answer["times"]
            here |= summary(here["times"])
            print(f"  {section}, {side}: median {here['median']:.4f} s", flush=True)


def machine() -> Json:
    """The driver and the versions; the device's name comes from jaxdiff's side."""
    versions = {}
    for name in ("jax", "jaxlib", "flax", "optax", "torch", "triton", "diffusers", "numpy"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        driver = ""
    return {"driver": driver, "cores": os.cpu_count(), "versions": versions}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=None, help="the JSON to write")
    parser.add_argument("--table", type=Path, default=None, help="a JSON to print as a table, and nothing else")
    parser.add_argument("--quick", action="store_true", help="tiny networks, meaningless numbers: does all of it run?")
    parser.add_argument("--only", default="", help="sections whose name begins so, as dit_train")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--make-seconds", type=float, default=240.0, help="a side not made by then is left out")
    parser.add_argument("--at-once", type=int, default=8, help="sides that are made at the same time")
    parser.add_argument("--seconds", type=float, default=1.2, help="of measuring, for a side in a turn")
    parser.add_argument("--turns", type=int, default=2)
    flags = parser.parse_args()
    if flags.table:
        print(gpu_table(json.loads(flags.table.read_text())))
        return
    if flags.out is None:
        parser.error("--out or --table must be given")
    flags.out.parent.mkdir(parents=True, exist_ok=True)
    bench = Bench(flags)
    try:
        bench.make_all()
        for section in sorted(bench.record["sections"], key=lambda name: name != "peaks"):
            bench.measure(section)
    finally:
        bench.save()
        for worker in bench.workers.values():
            worker.process.kill()
    print(gpu_table(bench.record))


if __name__ == "__main__":
    main()
