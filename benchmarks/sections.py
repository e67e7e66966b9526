"""What is measured: one function a section, from the settings to JSON."""

import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from benchmarks.sizes import FULL, QUICK, Network, Size, Spec, Task
from benchmarks.worker import Failed, Worker, alternate, summary

Result = dict[str, Any]

COLD = {
    "JAX_ENABLE_COMPILATION_CACHE": "false",
    "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1",
}
"""Nothing that was compiled before is used again."""
SAME_PARAMETERS, SAME_FLOPS = 0.01, 0.01
"""How much jaxdiff's and PyTorch's networks may differ, as a fraction."""
MOST = 4096
"""Images a chip, beyond which no one looks."""


class Settings(NamedTuple):
    """How to measure."""

    quick: bool = False
    """Tiny networks: a look at whether all of it runs."""
    seconds: float = 12.0
    """Of measuring, for each side of a comparison."""
    turns: int = 4
    """Parts into which a side's measuring is cut, with the other sides' in between."""
    peers: str = ""
    """Python of the environment that has the JAX peers."""
    train_batch: int = 32
    sample_batch: int = 16
    log: Callable[[str], None] = print

    @property
    def size(self) -> Size:
        return QUICK if self.quick else FULL


class Side(NamedTuple):
    """Who is measured, and how its process is started."""

    name: str
    module: str
    python: str = sys.executable
    compiled: bool = False


def sides(settings: Settings) -> list[Side]:
    """jaxdiff, PyTorch twice, and the peers where there is an environment that has them."""
    torch = [Side("PyTorch eager", "torch_side"), Side("PyTorch compiled", "torch_side", compiled=True)]
    names = {"flaxdiff": "peer_flaxdiff", "hackable-diffusion": "peer_hackable"} if settings.peers else {}
    peers = [Side(name, module, settings.peers) for name, module in names.items()]
    return [Side("jaxdiff", "jaxdiff_side"), *torch, *peers]


def compare(settings: Settings, network: Network, task: Task) -> Result:
    """All sides at the same work, in turns."""
    batch = settings.train_batch if task == "train" else settings.sample_batch
    spec = Spec(network, task, 4 if settings.quick else batch, size=settings.size)
    workers: dict[str, Worker] = {}
    result: Result = {"spec": spec._asdict(), "sides": {}}
    try:
        for side in sides(settings):
            worker = workers[side.name] = Worker(side.module, side.python, COLD)
            try:
                made = worker.ask(make=spec._replace(compiled=side.compiled)._asdict())
            except Failed as error:
                workers.pop(side.name).close()
                made = {"error": str(error)}
            result["sides"][side.name] = made
            settings.log(f"  {side.name}: {made.get('error', 'ready')}")
        check_same_work(result["sides"])
        turns = {name: turn_of(worker) for name, worker in workers.items()}
        for name, times in alternate(turns, settings.seconds, settings.turns).items():
            result["sides"][name] |= summary(times) | {"times": times}
            settings.log(f"  {name}: median {result['sides'][name]['median']:.3f} s")
    finally:
        for worker in workers.values():
            worker.close()
    return result


def turn_of(worker: Worker) -> Callable[[float], list[float]]:
    """seconds -> times of a worker's runs."""
    return lambda seconds: worker.ask(measure=seconds, least=1)["times"]


def check_same_work(found: Mapping[str, Result]) -> None:
    """Refuses a comparison of jaxdiff with PyTorch in which one does more. Raises: ValueError."""
    if "error" in found["jaxdiff"]:
        raise Failed(found["jaxdiff"]["error"])
    ours = found["jaxdiff"]
    for name, other in found.items():
        if not name.startswith("PyTorch") or "error" in other:
            continue
        parameters = (other["parameters"] - other["repeated"]) / ours["parameters"]
        flops = other["flops"] / ours["flops"]
        if abs(parameters - 1) > SAME_PARAMETERS or abs(flops - 1) > SAME_FLOPS:
            raise ValueError(f"{name} has {parameters:.3f} times jaxdiff's parameters and {flops:.3f} times its FLOPs")


def peaks(settings: Settings) -> Result:
    """Operations per second of matrix products and convolutions, the best of both libraries, in turns."""
    found: dict[str, dict[str, float]] = {}
    workers = {"JAX": Worker("jaxdiff_side"), "PyTorch": Worker("torch_side")}
    try:
        for _ in range(settings.turns):
            for name, worker in workers.items():
                rates = worker.ask(call="peaks", **{"with": {"seconds": 1.0, "quick": settings.quick}})
                best = found.setdefault(name, rates)
                found[name] = {kind: max(best[kind], value) for kind, value in rates.items()}
    finally:
        for worker in workers.values():
            worker.close()
    limit = {kind: max(rates[kind] for rates in found.values()) for kind in ("matmul", "conv")}
    return {"sides": found, "limit": limit}


def call(module: str, name: str, **arguments: object) -> Result:
    """One call of a process of its own; {"error": ...} where it fails."""
    worker = Worker(module, env=COLD)
    try:
        return worker.ask(call=name, **{"with": arguments})
    except Failed as error:
        return {"error": str(error)}
    finally:
        worker.close()


def floors(settings: Settings) -> Result:
    """What the products and convolutions of jaxdiff's four programs take, each of them alone."""
    seconds, found = 0.02 if settings.quick else 0.3, {}
    programs: list[tuple[str, Network, Task]] = [
        ("unet_train", "unet", "train"),
        ("unet_sample", "unet", "sample"),
        ("dit_train", "dit", "train"),
        ("dit_sample", "dit", "sample"),
    ]
    for name, network, task in programs:
        batch = settings.train_batch if task == "train" else settings.sample_batch
        spec = Spec(network, task, 4 if settings.quick else batch, size=settings.size)
        found[name] = call("floor", "floor", spec=spec._asdict(), seconds=seconds)
        settings.log(f"  {name}: {found[name]}")
    return found


def data(settings: Settings) -> Result:
    """Images a second of the input pipeline."""
    seconds = 0.5 if settings.quick else 5.0
    points = []
    for kind, stored, size in (("emoji", 32, 32), ("png", 64, 32), ("jpg", 256, 256)):
        for workers in (0, 2):
            about = {"kind": kind, "stored": stored, "size": size, "workers": workers}
            points.append(about | call("pipeline", "rate", seconds=seconds, **about))
            settings.log(f"  {points[-1]}")
    return {"points": points}


def checkpoints(settings: Settings) -> Result:
    """A training loop with and without checkpoints."""
    seconds, turns = (1.0, 2) if settings.quick else (8.0, 5)
    return call("pipeline", "loop", seconds=seconds, turns=turns, quick=settings.quick)


def tpu(settings: Settings) -> Result:
    """DiT-XL/2 for one v5e and for eight of them, jaxdiff and the plain DiT."""
    # Side, slice, and in images a chip: where the search starts and its steps.
    searches = [
        ("jaxdiff", "v5e:1x1", 64, 16),
        ("jaxdiff, no remat", "v5e:1x1", 8, 2),
        ("plain Flax", "v5e:1x1", 2, 2),
        ("plain Flax, donated", "v5e:1x1", 8, 2),
        ("jaxdiff", "v5e:2x4", 256, 64),
        ("plain Flax, donated", "v5e:2x4", 0, 2),
    ]
    if settings.quick:
        searches = [("jaxdiff", "v5e:1x1", 512, 512), ("plain Flax", "v5e:1x1", 512, 512)]
    best: dict[str, int] = {}
    points = []
    for side, topology, start, unit in searches:
        about: Result = {"side": side, "topology": topology}
        # A slice whose chips each hold the whole state has room for no more images a chip than one chip.
        start, most = (start, MOST) if start else (best.get(side, 0),) * 2
        depth = 1 if settings.quick else 28
        about |= call("tpu", "search", start=start, unit=unit, most=most, depth=depth, **about)
        points.append(about)
        best.setdefault(side, about.get("batch", 0))
        settings.log(f"  {side}, {topology}: {points[-1].get('error') or points[-1]['batch']}")
    return {"points": points}


def growth(settings: Settings) -> Result:
    """Step time against batch, resolution and depth; sampling time against steps and devices."""
    small = QUICK if settings.quick else Size(channels=64, width=384, depth=4, heads=6)
    train = Spec("dit", "train", 8, size=small)
    scan = Spec("dit", "sample", 8, size=small)
    unet = Spec("unet", "sample", 32, calls=2, size=small)
    axes: dict[str, list[tuple[int, Spec]]] = {
        "batch": [(n, train._replace(batch=n)) for n in (2, 8, 32)],
        "resolution": [(n, train._replace(batch=2, side=n)) for n in (16, 32, 64)],
        "depth": [(n, train._replace(size=small._replace(depth=n))) for n in (3, 6, 12)],
        "steps": [(n, scan._replace(calls=n)) for n in (4, 8, 16)],
        "devices": [(n, unet) for n in (1, 2) if n <= (os.cpu_count() or 1)],
    }
    if settings.quick:
        axes = {name: points[:2] for name, points in axes.items()}
    result: Result = {}
    for name, points in axes.items():
        result[name] = []
        for value, spec in points:
            env = {"JAX_NUM_CPU_DEVICES": str(value if name == "devices" else 1)}
            worker = Worker("jaxdiff_side", env={**COLD, **env})
            try:
                made = worker.ask(make=spec._asdict())
                times = worker.ask(measure=settings.seconds / 10, least=3)["times"]
            finally:
                worker.close()
            result[name].append({"value": value, "flops": made["flops"], "first": made["first"]} | summary(times))
        settings.log(f"  {name}: {[round(p['median'], 3) for p in result[name]]}")
    return result


SECTIONS: dict[str, Callable[[Settings], Result]] = {
    "peaks": peaks,
    "unet_train": lambda settings: compare(settings, "unet", "train"),
    "unet_sample": lambda settings: compare(settings, "unet", "sample"),
    "dit_train": lambda settings: compare(settings, "dit", "train"),
    "dit_sample": lambda settings: compare(settings, "dit", "sample"),
    "floors": floors,
    "data": data,
    "checkpoints": checkpoints,
    "growth": growth,
    "tpu": tpu,
}
"""Every section by its name on the command line."""
