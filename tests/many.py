"""Several real processes on this machine that run one of the commands together."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
from tiny import ROOT

PATIENCE = 420.0
"""Seconds after which a job counts as hanging: far more than it needs, for a machine that others use as well."""

HEARTBEAT = 10
"""Seconds without a sign of life after which a process of these jobs is dead."""


class Job:
    """`count` processes of a command, each with `devices` CPU devices; what they write goes to files in `folder`."""

    def __init__(self, folder: Path, count: int, *command: object, devices: int = 1):
        folder.mkdir(parents=True, exist_ok=True)
        self.outputs = [(folder / f"{i}.out", folder / f"{i}.err") for i in range(count)]
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        env = {**os.environ, "JAX_PLATFORMS": "cpu", "OPENBLAS_NUM_THREADS": "1"}
        env["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
        self.processes = []
        for i, (out, err) in enumerate(self.outputs):
            flags = ["--coordinator", f"localhost:{port}", "--num-processes", count, "--process-id", i]
            flags += ["--heartbeat-timeout", HEARTBEAT]
            words = [sys.executable, *command, *(flags if count > 1 else [])]
            with out.open("w") as o, err.open("w") as e:
                self.processes.append(subprocess.Popen([str(w) for w in words], env=env, stdout=o, stderr=e, cwd=ROOT))

    def wait(self) -> list[int]:
        """The exit codes of all. A job that hangs is killed, and fails."""
        deadline = time.monotonic() + PATIENCE
        try:
            return [p.wait(max(0.0, deadline - time.monotonic())) for p in self.processes]
        finally:
            self.kill()

    def kill(self) -> None:
        for p in self.processes:
            if p.poll() is None:
                p.send_signal(signal.SIGKILL)
                p.wait()

    def out(self, i: int = 0) -> str:
        return self.outputs[i][0].read_text()

    def errors(self, i: int = 0) -> list[str]:
        """What a process says on standard error, without the progress bar."""
        lines = self.outputs[i][1].read_text().replace("\r", "\n").splitlines()
        return [line for line in lines if line.strip() and not re.search(r"\d+/\d+ \[", line)]

    def passed(self) -> "Job":
        codes = self.wait()
        assert set(codes) == {0}, [(c, self.errors(i)) for i, c in enumerate(codes)]
        return self


def until(condition, job: Job) -> None:
    """Waits until something is so, while the job runs."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        alive = all(p.poll() is None for p in job.processes)
        if not alive or time.monotonic() > deadline:
            job.kill()
            raise AssertionError([job.errors(i) for i in range(len(job.processes))])
        time.sleep(0.02)


def contents(workdir: Path, step: int) -> dict[str, np.ndarray]:
    """Every array of a checkpoint by its name."""
    import orbax.checkpoint as ocp

    folder = workdir / "checkpoints" / str(step)
    names = [p.name for p in sorted(folder.iterdir()) if p.is_dir() and p.name != "record"]
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    arrays = {}
    for name in names:
        with ocp.StandardCheckpointer() as reader:
            stored = reader.metadata(folder / name).item_metadata.tree
            abstract = jax.tree.map(lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=here), stored)
            tree = reader.restore(folder / name, abstract)
        arrays |= {name + jax.tree_util.keystr(k): np.asarray(v) for k, v in jax.tree_util.tree_leaves_with_path(tree)}
    return arrays


def differing(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> list[str]:
    """The names of the arrays that are not the same bit for bit."""
    assert a.keys() == b.keys() and len(a) > 20
    return [name for name in a if a[name].dtype != b[name].dtype or a[name].tobytes() != b[name].tobytes()]
