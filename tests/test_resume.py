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


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The run without interruption."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    result = run("train.py", *TRAIN, "--workdir", workdir)
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


def start_and_stop(workdir: Path, number: signal.Signals, after: int) -> subprocess.CompletedProcess:
    """Starts the run, waits for a checkpoint of step `after`, sends the signal."""
    arguments = command("train.py", *TRAIN, "--workdir", workdir, "--steps", "4000", "--save-every", "4")
    process = subprocess.Popen(arguments, env=environment(), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while not any(s >= after for s in steps(workdir)):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1]
        time.sleep(0.02)
    process.send_signal(number)
    out, err = process.communicate(timeout=300)
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


@pytest.mark.slow
@pytest.mark.parametrize("after", [4, 8])
def test_killed_and_resumed_is_bit_identical(whole, tmp_path, after):
    # The learning rate depends on the number of steps through its cosine, so the killed run has a decay without one.
    workdir = tmp_path / "run"
    flags = [*TRAIN, "--workdir", str(workdir)]
    process = subprocess.Popen(command("train.py", *flags), env=environment(), stderr=subprocess.PIPE, text=True)
    while not any(s >= after for s in steps(workdir)) and process.poll() is None:
        time.sleep(0.005)
    process.kill()
    process.communicate()
    result = run("train.py", *flags)
    assert result.returncode == 0, result.stderr
    assert_same_bits(whole, workdir, 12)


@pytest.mark.slow
def test_terminated_saves_first_and_resumes_bit_identically(tmp_path):
    stopped = start_and_stop(tmp_path / "run", signal.SIGTERM, after=4)
    assert stopped.returncode == 128 + signal.SIGTERM
    assert "stopped by SIGTERM at step" in stopped.stderr and "Traceback" not in stopped.stderr
    saved = steps(tmp_path / "run")[-1]
    assert f"at step {saved}," in stopped.stderr
    end = ["--steps", str(saved + 8), "--optim.decay.final", "0.0"]
    resumed = run("train.py", *TRAIN, "--workdir", tmp_path / "run", *end)
    assert resumed.returncode == 0, resumed.stderr
    assert f"steps {saved} to {saved + 8}" in resumed.stdout
    assert steps(tmp_path / "run")[-1] == saved + 8


@pytest.mark.slow
def test_finished_run_started_again_changes_nothing(whole):
    before = contents(whole, 12)
    again = run("train.py", *TRAIN, "--workdir", whole)
    assert again.returncode == 0, again.stderr
    after = contents(whole, 12)
    assert all(before[k].tobytes() == after[k].tobytes() for k in before)
