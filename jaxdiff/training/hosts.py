"""Many processes as one program: how they meet, wait for each other, and end together.

Every process runs the same command, and its devices are a part of one mesh. Process 0 alone writes what is no array.
An error in one process ends all of them within seconds: it leaves its message with JAX's coordination service, where
each process looks once a second. A process that dies without a word is missed by the others in their next collective,
or by the service after `--heartbeat-timeout`. Nobody waits for ever.
"""

import contextlib
import dataclasses
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from jax._src import distributed  # the coordination service has no other door; Orbax takes this one, too
from jax._src.cloud_tpu_init import running_in_cloud_tpu_vm
from jax.sharding import NamedSharding
from jaxtyping import Array, PyTree

from jaxdiff.training import last_words

STOP = "jaxdiff/stop"
"""Where a process that fails says so: JSON [its number, exit code, message]."""
LEFT = "jaxdiff/left"
"""Below it, the numbers of the processes that have ended because of it."""
LOOK = 1.0
"""Seconds between looks at it."""
GRACE = 4.0
"""Seconds that process 0, in which the service lives, gives the others to read the message."""
DOUBT = 2.0
"""Seconds after a broken connection for the other end to say what happened."""

_ending = threading.Lock()  # of two threads that would end this process, one speaks


@dataclasses.dataclass(frozen=True)
class Hosts:
    """The processes that run a command together. Cloud TPU, GKE, Slurm and Open MPI 4 say by themselves."""

    coordinator: str | None = None
    """Of many processes: HOST:PORT of process 0, on any free port."""
    num_processes: int | None = None
    """Of many processes: how many there are."""
    process_id: int | None = None
    """Of many processes: which this one is, from 0."""
    heartbeat_timeout: int = 60
    """Of many processes: seconds without a sign of life after which one counts as dead, which ends all."""
    connect_timeout: int = 300
    """Of many processes: seconds that they wait for each other at the start."""

    def __post_init__(self) -> None:
        given = [self.coordinator, self.num_processes, self.process_id]
        if any(v is None for v in given) and any(v is not None for v in given):
            raise ValueError(
                f"coordinator = {given[0]}, num_processes = {given[1]}, process_id = {given[2]}: all three are needed, "
                "or none (--coordinator, --num-processes, --process-id)"
            )
        for name in ("heartbeat_timeout", "connect_timeout"):
            if not 5 <= getattr(self, name) < 2**31:
                flag = name.replace("_", "-")
                raise ValueError(f"{name} = {getattr(self, name)} is not allowed: at least 5 seconds (--{flag})")
        if self.coordinator is None or self.num_processes is None or self.process_id is None:
            return
        host, colon, port = self.coordinator.rpartition(":")
        if not (host and colon and port.isdecimal() and 0 < int(port) < 2**16):
            raise ValueError(f"coordinator {self.coordinator!r} is not allowed: HOST:PORT (--coordinator)")
        if self.num_processes < 1:
            raise ValueError(f"num_processes = {self.num_processes} is not allowed: at least 1 (--num-processes)")
        if not 0 <= self.process_id < self.num_processes:
            raise ValueError(
                f"process_id = {self.process_id} is not allowed: 0 to {self.num_processes - 1}, one less than "
                "--num-processes (--process-id)"
            )


def cluster() -> bool:
    """Whether this process was started as one of many by something that JAX can ask about the others.

    Asks nobody: a machine of no cluster waits for none. Raises: ValueError where only flags can tell.
    """
    env = os.environ
    slurm = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS")
    if all(name in env for name in slurm) and int(env["SLURM_NTASKS"]) > 1:
        return True
    if int(env.get("OMPI_COMM_WORLD_SIZE", "1")) > 1:
        if "OMPI_MCA_orte_hnp_uri" in env:
            return True
        raise ValueError(
            "this Open MPI does not say where its first process runs: start each with --coordinator HOST:PORT "
            "--num-processes $OMPI_COMM_WORLD_SIZE --process-id $OMPI_COMM_WORLD_RANK"
        )
    if running_in_cloud_tpu_vm:
        names = env.get("TPU_PROCESS_ADDRESSES", env.get("TPU_WORKER_HOSTNAMES"))
        if names is not None:
            return len(names.split(",")) * int(env.get("MEGASCALE_NUM_SLICES") or "1") > 1
        return "TPU_SKIP_MDS_QUERY" not in env
    return False


def connect(hosts: Hosts, preemptible: bool = False) -> None:
    """Meets the other processes, if there are any. Call it before anything asks JAX for devices.

    `preemptible`: SIGTERM does not end a process of many, but is told to all (`Interrupt.reached`).

    Raises: ConnectionError or ValueError, one line that names the flag.
    """
    given = hosts.num_processes is not None
    if not (given or cluster()) or hosts.num_processes == 1:
        return
    if hosts.coordinator is not None and hosts.process_id == 0:
        _check_port(int(hosts.coordinator.rpartition(":")[2]))
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", preemptible)
    if os.environ.get("JAXDIFF_DEBUG") != "1":
        _translate(hosts)
    try:
        jax.distributed.initialize(
            hosts.coordinator,
            hosts.num_processes,
            hosts.process_id,
            cluster_detection_method="deactivate" if given else None,
            initialization_timeout=hosts.connect_timeout,
            heartbeat_timeout_seconds=hosts.heartbeat_timeout,
            shutdown_timeout_seconds=max(hosts.heartbeat_timeout, 60),
        )
    except (RuntimeError, ValueError, OSError) as error:
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        advice = (
            "--coordinator" if given else "--coordinator, --num-processes, --process-id; alone: TPU_SKIP_MDS_QUERY=1"
        )
        raise ConnectionError(f"the processes could not meet ({what}) ({advice})") from error
    if is_many():
        threading.Thread(target=_listen, name="hosts", daemon=True).start()


def is_many() -> bool:
    """Whether there are other processes. Asks no device."""
    return distributed.global_state.client is not None and distributed.global_state.num_processes > 1


def count() -> int:
    """How many processes there are. Asks no device."""
    return distributed.global_state.num_processes if is_many() else 1


def is_first() -> bool:
    """Whether this is process 0, which writes files and speaks. Asks no device."""
    return distributed.global_state.process_id == 0


def meet(name: str) -> None:
    """Returns when all processes have come here; each place and visit has a name of its own."""
    if is_many():
        _client().wait_at_barrier(f"jaxdiff/{name}", 24 * 3600 * 1000)  # who waits for the dead is ended


def broadcast(name: str, value: str | None) -> str:
    """Process 0's text, on every process; each call has a name of its own."""
    if not is_many():
        assert value is not None
        return value
    key = f"jaxdiff/said/{name}"
    if is_first():
        assert value is not None
        _client().key_value_set(key, value)
        return value
    return _client().blocking_key_value_get(key, 24 * 3600 * 1000)


def place(tree: PyTree, shardings: PyTree[NamedSharding]) -> PyTree[Array]:
    """Arrays that every process has whole, spread over all devices; `shardings` of all of them, or of each."""

    def spread(leaf: Any, sharding: NamedSharding) -> Array:
        whole = np.asarray(leaf)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    if isinstance(shardings, NamedSharding):
        return jax.tree.map(lambda leaf: spread(leaf, shardings), tree)
    return jax.tree.map(spread, tree, shardings)


def end(error: BaseException | str, code: int) -> NoReturn:
    """Ends this process of many with one line on standard error, and all others with it."""
    message = " ".join(f"{error}".split())
    if is_broken(message):
        time.sleep(DOUBT)  # whoever failed says so now, or native code knows who is missing
        message = ""
    if not _ending.acquire(blocking=False):
        threading.Event().wait()  # the other thread is about to end the process
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # another process was faster, or the service is gone
        _client().key_value_set(STOP, json.dumps([distributed.global_state.process_id, code, message]))
    _leave(message, code)


def is_broken(message: str) -> bool:
    """Whether an error is what a process sees when another one is gone."""
    signs = ("Gloo", "oordination service", "oordinationService", "Connection closed by peer", "BarrierError")
    return any(sign in message for sign in signs)


def _client() -> Any:
    return distributed.global_state.client


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise ConnectionError(
                f"port {port} of the coordinator cannot be used: {error.strerror} (--coordinator)"
            ) from error


def _translate(hosts: Hosts) -> None:
    """Has what native code writes to standard error read by `last_words`; Python goes on writing to the old place."""
    meet = f"at {hosts.coordinator or 'the first one'} within {hosts.connect_timeout} s"
    program = [sys.executable, "-I", "-S", str(Path(last_words.__file__)), str(hosts.heartbeat_timeout), meet]
    reader = subprocess.Popen(program, stdin=subprocess.PIPE, start_new_session=True)
    assert reader.stdin is not None
    sys.stderr.flush()
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, errors="backslashreplace")
    os.dup2(reader.stdin.fileno(), 2)
    reader.stdin.close()


def _listen() -> None:
    """Looks whether another process has failed, and ends this one then."""
    while True:
        time.sleep(LOOK)
        if distributed.global_state.client is None:
            return
        with contextlib.suppress(
            jax.errors.JaxRuntimeError, AttributeError
        ):  # nothing there, or the end of the program
            who, code, message = json.loads(_client().key_value_try_get(STOP))
            if _ending.acquire(blocking=False):
                _leave(f"process {who}: {message}" if message else "", code)
            return


def _leave(message: str, code: int) -> NoReturn:
    """Says the message and ends without the service's farewell, for which it would wait for those that are gone.

    Without a message a process was lost, and process 0 finds out which: those that do not leave in time.
    """
    here, others, missing = distributed.global_state.process_id, range(1, count()), []
    if message:
        _say(message)
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        _client().key_value_set(f"{LEFT}/{here}", "")
        deadline = time.monotonic() + GRACE
        while here == 0 and time.monotonic() < deadline:
            left = {int(key.rpartition("/")[2]) for key, _ in _client().key_value_dir_get(LEFT)}
            missing = sorted(set(others) - left)
            if not missing:
                break
            time.sleep(0.1)
    if not message:
        who, have = last_words.called([f"{i}" for i in missing]) if missing else ("another process", "has")
        _say(f"{who} {have} died or cannot be reached: {last_words.AGAIN}")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _say(message: str) -> None:
    bar = "\n" if is_first() else ""  # its progress bar, perhaps, has not ended its line
    print(f"{bar}error: {message}", file=sys.stderr)
