"""A side of a comparison is a process of its own, which waits idle while another side measures.

One line of JSON in, one line of JSON out:

    {"make": spec}                      -> {"first": s, "flops": ..., "parameters": ..., ...}: builds it, runs it
    {"measure": seconds, "least": n}    -> {"times": [s, ...]}: runs it again and again
    {"call": name, "with": {...}}       -> whatever the function of that name returns

Only the standard library is needed here, since every side has an environment of its own.
"""

import json
import os
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent
OURS = ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES", "JAX_COMPILATION_CACHE_DIR", "OMP_NUM_THREADS")
"""Variables of the caller's environment that a side does not see: they would change what is measured."""
WARM_UP = 1
"""Runs after the first, which compiles, that are not counted either."""


class Case(NamedTuple):
    """Something to be measured."""

    run: Callable[[], object]
    """Does it once, and returns when it is done."""
    flops: float = 0.0
    """Floating-point operations of one run: matrix products and convolutions, forward and backward."""
    parameters: int = 0
    """Numbers that the network learns."""
    about: Mapping[str, object] = {}
    """What else belongs to it: versions, devices, what differs from the others."""
    ready: Callable[[], object] | None = None
    """Called when it is made in place of the first runs, where memory must not be held until it is measured."""


def timed(run: Callable[[], object]) -> float:
    """Seconds that one run takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def repeat(run: Callable[[], object], seconds: float, least: int = 1) -> list[float]:
    """The times of runs until they add up to `seconds`, and of at least `least` runs."""
    times: list[float] = []
    while len(times) < least or sum(times) < seconds:
        times.append(timed(run))
    return times


def serve(make: Callable[[dict], Case] | None = None, calls: Mapping[str, Callable[..., object]] | None = None) -> None:
    """Answers the driver until it hangs up. Whatever libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    case = None
    for line in sys.stdin:
        message = json.loads(line)
        try:
            if "make" in message and make is not None:
                case = make(message["make"])
                first = timed(case.ready or case.run)
                later = [first] if case.ready else repeat(case.run, 0.0, WARM_UP)
                answer: object = {
                    "first": first,
                    "later": min(later),
                    "flops": case.flops,
                    "parameters": case.parameters,
                    **case.about,
                }
            elif "measure" in message and case is not None:
                answer = {"times": repeat(case.run, message["measure"], message["least"])}
            else:
                answer = (calls or {})[message["call"]](**message["with"])
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
        print(json.dumps(answer), file=answers, flush=True)


class Failed(Exception):
    """A side that could not do what was asked of it."""


class Worker:
    """A side, seen from the driver."""

    def __init__(self, module: str, python: str = sys.executable, env: Mapping[str, str] | None = None):
        inherited = {name: value for name, value in os.environ.items() if name not in OURS}
        settings = {**inherited, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), **(env or {})}
        command = [python, "-m", f"benchmarks.{module}"]
        pipe = subprocess.PIPE
        self.name, self.process = (
            module,
            subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=settings, cwd=ROOT),
        )

    def ask(self, **message: object) -> dict[str, Any]:
        """Its answer. Raises: Failed where it has none."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            print(json.dumps(message), file=self.process.stdin, flush=True)
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise Failed(f"{self.name} ended with code {self.process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise Failed(f"{self.name}: {answer['error']}")
        return answer

    def close(self) -> None:
        """Ends it."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()


def alternate(
    measure: Mapping[str, Callable[[float], Sequence[float]]], seconds: float, turns: int
) -> dict[str, list[float]]:
    """A B A B ...: the times of every side, each of which measures `seconds` in all, in `turns` parts."""
    times: dict[str, list[float]] = {name: [] for name in measure}
    for _ in range(turns):
        for name, run in measure.items():
            times[name] += run(seconds / turns)
            time.sleep(0.2)  # threads that still spin for more work go to sleep
    return times


def summary(times: Sequence[float]) -> dict[str, float | int]:
    """Median, quartiles and number."""
    quartiles = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else [times[0]] * 3
    return {"median": statistics.median(times), "low": quartiles[0], "high": quartiles[2], "count": len(times)}
