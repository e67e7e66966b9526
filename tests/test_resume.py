"""A run that is killed and started again ends with the same bits as one that was not."""

import json
import signal
import subprocess
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny import TRAIN, command, environment, run

from jaxdiff.training.restore import read_params, steps

LAST = 600
"""The last step: enough of them that a signal comes in between."""
LONG = [*TRAIN, "--steps", str(LAST), "--save-every", "100"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The run without interruption."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    result = run("train.py", *LONG, "--workdir", workdir)
    assert result.returncode == 0, result.stderr
    return workdir


def contents(workdir: Path, step: int) -> dict[str, np.ndarray]:
    """Every array of a checkpoint: parameters, averages, optimiser; and the position in the data."""
    import orbax.checkpoint as ocp

    folder = workdir / "checkpoints" / str(step)
    rest = ocp.StandardCheckpointer().restore(folder / "rest")
    tree = {"params": read_params(workdir, step), "ema": read_params(workdir, step, 0), "rest": rest}
    arrays = {jax.tree_util.keystr(k): np.asarray(v) for k, v in jax.tree_util.tree_leaves_with_path(tree)}
    record = ocp.Checkpointer(ocp.JsonCheckpointHandler()).restore(folder / "record")
    return arrays | {"data": np.array(json.dumps(record["data"]))}


def assert_same_bits(a: Path, b: Path, step: int) -> None:
    first, second = contents(a, step), contents(b, step)
    assert first.keys() == second.keys()
    assert len(first) > 20
    for name, value in first.items():
        assert value.dtype == second[name].dtype and value.tobytes() == second[name].tobytes(), name


def stop(workdir: Path, number: signal.Signals, delay: float) -> tuple[int, str]:
    """Starts the run, waits for its first checkpoint and `delay` seconds, sends the signal: (exit code, stderr)."""
    arguments = command("train.py", *LONG, "--workdir", workdir)
    process = subprocess.Popen(arguments, env=environment(), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while not steps(workdir):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1]
        time.sleep(0.01)
    time.sleep(delay)
    assert process.poll() is None, "the run was over before the signal"
    process.send_signal(number)
    return process.wait(timeout=300), process.communicate()[1]


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.0, 0.4])
def test_killed_and_resumed_is_bit_identical(whole, tmp_path, delay):
    workdir = tmp_path / "run"
    assert stop(workdir, signal.SIGKILL, delay)[0] == -signal.SIGKILL
    assert steps(workdir)[-1] < LAST
    result = run("train.py", *LONG, "--workdir", workdir)
    assert result.returncode == 0, result.stderr
    assert_same_bits(whole, workdir, LAST)


@pytest.mark.slow
def test_terminated_saves_first_and_resumes_bit_identically(whole, tmp_path):
    workdir = tmp_path / "run"
    code, err = stop(workdir, signal.SIGTERM, 0.1)
    assert code == 128 + signal.SIGTERM
    saved = steps(workdir)[-1]
    assert f"stopped by SIGTERM at step {saved}," in err and "Traceback" not in err
    result = run("train.py", *LONG, "--workdir", workdir)
    assert result.returncode == 0 and f"steps {saved} to {LAST}" in result.stdout, result.stderr
    assert_same_bits(whole, workdir, LAST)


@pytest.mark.slow
def test_finished_run_started_again_changes_nothing(whole):
    before = contents(whole, LAST)
    again = run("train.py", *LONG, "--workdir", whole)
    assert again.returncode == 0, again.stderr
    after = contents(whole, LAST)
    assert all(before[k].tobytes() == after[k].tobytes() for k in before)
