"""Kills processes of a run at random, again and again: python scripts/kill_test.py [--kills 50] [--seed 0].

Two processes train together. Which one is killed, and when, is drawn from the seed: while they start, while they train,
while they write. After each kill the other process must end by itself, and the same command is started again. A run
that comes to its end must have the bits of one that nobody disturbed; then the next run begins, until all kills are
done. The last line of the output is a summary in JSON.
"""

import dataclasses
import json
import random
import re
import signal
import sys
import tempfile
import time
from pathlib import Path

import tyro

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from many import HEARTBEAT, Job, contents, differing  # noqa: E402
from tiny import TRAIN  # noqa: E402

from jaxdiff.training.restore import steps  # noqa: E402


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is killed."""

    kills: int = 50
    """Processes to kill."""
    seed: int = 0
    """Of the draws."""
    processes: int = 2
    """Of each run, with a CPU device each."""
    last: int = 60
    """Steps of a run."""
    every: int = 5
    """Steps between its checkpoints."""
    early: float = 0.3
    """Share of the kills that come while the processes start."""
    folder: Path | None = None
    """Where runs are kept; by default nowhere."""


def start(plan: Plan, folder: Path, name: str) -> Job:
    """The run in `folder`, from the start or resumed."""
    flags = ["--steps", plan.last, "--save-every", plan.every, "--log-every", 1, "--keep", 3]
    flags += ["--connect-timeout", 20]  # how long a process waits for one that was killed before they met
    return Job(folder / "said" / name, plan.processes, "train.py", *TRAIN, *flags, "--workdir", folder / "run")


def reached(job: Job) -> int:
    """The last step that process 0 has shown."""
    return max((int(n) for n in re.findall(r"(\d+)/\d+ \[", job.outputs[0][1].read_text())), default=0)


def is_training(job: Job) -> bool:
    return "step/s" in job.outputs[0][1].read_text() or "?step" in job.outputs[0][1].read_text()


def is_over(job: Job) -> bool:
    return any(p.poll() is not None for p in job.processes)


def kill(plan: Plan, job: Job, draw: random.Random, startup: float) -> int | None:
    """Kills one process at a random moment; returns which, or None where the run was over before."""
    victim, early, when = draw.randrange(plan.processes), draw.random() < plan.early, draw.random()
    deadline = time.monotonic() + when * startup
    while early and time.monotonic() < deadline and not is_over(job):
        time.sleep(0.01)
    while not early and not is_training(job) and not is_over(job):
        time.sleep(0.01)
    # Some checkpoints further on, and somewhere between two of them.
    target = reached(job) + round(3 * plan.every * when)
    while not early and reached(job) < target and not is_over(job):
        time.sleep(0.01)
    if is_over(job):
        return None
    job.processes[victim].send_signal(signal.SIGKILL)
    return victim


def main(plan: Plan, root: Path) -> dict[str, object]:
    began, draw = time.monotonic(), random.Random(plan.seed)
    job = start(plan, root / "whole", "0")
    while not is_training(job) and not is_over(job):
        time.sleep(0.05)
    startup = time.monotonic() - began
    job.passed()
    whole = contents(root / "whole" / "run", plan.last)
    killed, restarts, runs, by, lost, ends, said, wrong = 0, 0, 0, {}, [], [], set(), []
    while killed < plan.kills or (root / f"{runs}" / "run").exists():
        folder = root / f"{runs}"
        job = start(plan, folder, f"{restarts}")
        victim = kill(plan, job, draw, startup) if killed < plan.kills else None
        since = time.monotonic()
        codes = job.wait()
        restarts += 1
        if victim is not None:
            killed += 1
            by[f"process {victim}"] = by.get(f"process {victim}", 0) + 1
            ends.append(time.monotonic() - since)
            others = [c for i, c in enumerate(codes) if i != victim]
            assert all(others), (codes, "a process that has lost another one ends as if all were well")
            said |= {re.sub(r"\d+", "N", line) for i in range(plan.processes) if i != victim for line in job.errors(i)}
            at, saved = reached(job), max(steps(folder / "run"), default=0)
            lost.append(max(0, at - saved))
            print(f"kill {killed}: process {victim} at step {at}, saved {saved}, {ends[-1]:.1f} s until all had ended")
            continue
        assert set(codes) == {0}, [job.errors(i) for i in range(plan.processes)]
        wrong += differing(whole, contents(folder / "run", plan.last))
        runs += 1
    return {
        "kills": killed,
        "victims": by,
        "starts": restarts,
        "runs_brought_to_their_end": runs,
        "steps": plan.last,
        "save_every": plan.every,
        "most_steps_lost": max(lost, default=0),
        "bound_on_steps_lost": 2 * plan.every,  # the checkpoint that is being written, and the steps after it
        "heartbeat_timeout": HEARTBEAT,
        "longest_end_in_seconds": round(max(ends, default=0.0), 1),
        "said": sorted(said),
        "bit_identical": not wrong,
        "seconds": round(time.monotonic() - began, 1),
    }


if __name__ == "__main__":
    plan = tyro.cli(Plan, description=__doc__)
    with tempfile.TemporaryDirectory() as nowhere:
        summary = main(plan, plan.folder or Path(nowhere))
    print(json.dumps(summary))
    fine = summary["bit_identical"] and summary["most_steps_lost"] <= summary["bound_on_steps_lost"]  # pyright: ignore
    raise SystemExit(0 if fine else 1)
