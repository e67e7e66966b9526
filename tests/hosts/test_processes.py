"""Several processes are one program: the same numbers, files written once, and all end together."""

import json
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from etils import epath
from many import HEARTBEAT, Job, contents, differing, until
from tiny import TRAIN

from jaxdiff.training.restore import read_record, steps

pytestmark = pytest.mark.slow

EVERY = 20
ENDLESS = [*TRAIN, "--steps", 100000, "--save-every", EVERY, "--log-every", 1, "--keep", 100000]
"""A run that no machine brings to its end before a signal comes."""

LOOKS = ["--preview-every", 12, "--validate-every", 12, "--data.holdout", 0.1]


def advance(workdir: Path, step: int, folder: Path, count: int, devices: int = 1) -> Job:
    """Goes on with the run until it has a checkpoint of this step, and kills it."""
    job = Job(folder, count, "train.py", *ENDLESS, "--workdir", workdir, devices=devices)
    until(lambda: step in steps(workdir), job)
    job.kill()
    return job


class Alone:
    """The run of one process with two devices, as far as it is asked for."""

    def __init__(self, folder: Path):
        self.folder = folder

    def at(self, step: int) -> dict[str, np.ndarray]:
        if step not in steps(self.folder / "run"):
            advance(self.folder / "run", step, self.folder, 1, devices=2)
        return contents(self.folder / "run", step)


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Alone:
    return Alone(tmp_path_factory.mktemp("alone"))


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Path:
    """The run of two processes with a device each."""
    folder = tmp_path_factory.mktemp("pair")
    advance(folder / "run", 2 * EVERY, folder, 2)
    return folder / "run"


@pytest.fixture(scope="module")
def ended(tmp_path_factory) -> Path:
    """A short run of two processes, brought to its end."""
    folder = tmp_path_factory.mktemp("ended")
    job = Job(folder, 2, "train.py", *TRAIN, *LOOKS, "--workdir", folder / "run").passed()
    assert "2 device(s)" in job.out(0) and "2 device(s)" not in job.out(1)
    assert not job.errors(0) and not job.errors(1)
    return folder / "run"


def test_two_processes_train_as_one_does(alone, pair):
    for step in (2 * EVERY, EVERY):
        assert differing(alone.at(step), contents(pair, step)) == []


def test_files_are_written_once(ended):
    assert steps(ended) == (8, 12)
    names = ["checkpoints", "config.json", "ema", "logs", "samples", "validation.jsonl"]
    assert sorted(p.name for p in ended.iterdir()) == names
    assert len((ended / "validation.jsonl").read_text().splitlines()) == 1
    assert len(list((ended / "logs").iterdir())) == len(list((ended / "samples").iterdir())) == 1


@pytest.mark.parametrize(("count", "devices"), [(1, 2), (4, 1)])
def test_a_checkpoint_is_resumed_by_another_number_of_processes(pair, tmp_path, count, devices):
    workdir = tmp_path / "run"
    shutil.copytree(pair, workdir)
    for step in set(steps(workdir)) - {EVERY}:
        shutil.rmtree(workdir / "checkpoints" / str(step))
    job = advance(workdir, 2 * EVERY, tmp_path / "job", count, devices)
    assert f"steps {EVERY} to" in job.out()
    before, after = contents(pair, 2 * EVERY), contents(workdir, 2 * EVERY)
    if count * devices == 2:
        assert differing(before, after) == []
    for name, value in before.items():  # four devices add up in another order
        np.testing.assert_allclose(after[name], value, rtol=1e-3, atol=1e-4, err_msg=name)
    records = [read_record(epath.Path(w) / "checkpoints" / str(2 * EVERY))["data"] for w in (pair, workdir)]
    assert records[0] == records[1] == {"step": 2 * EVERY}


def test_images_and_figures_do_not_depend_on_the_processes(ended, tmp_path):
    images, records = [], []
    for count, devices in ((1, 2), (2, 1)):
        workdir, out = tmp_path / f"run{count}", tmp_path / f"out{count}"
        shutil.copytree(ended, workdir)
        Job(
            *(tmp_path / f"sample{count}", count, "sample.py", workdir, "--out", out),
            *("--num", 6, "--batch-size", 4, "--trajectory"),
            devices=devices,
        ).passed()
        images.append({p.name: p.read_bytes() for p in sorted(out.rglob("*.png"))})
        assert sorted(p.name for p in out.iterdir()) == ["grid.png", "images", "info.json", "trajectory.png"]
        job = Job(
            *(tmp_path / f"evaluate{count}", count, "-m", "jaxdiff", "evaluate", workdir, "--metrics", "psnr,vlb"),
            *("--num", 6, "--batch-size", 4, "--seed", 1, "--bootstrap", 0, "--reference", out / "images"),
            devices=devices,
        ).passed()
        records.append(json.loads(job.out().splitlines()[-1]))
        assert len(list((workdir / "evaluations").glob("*.json"))) == 1
    assert len(images[0]) == 8 and images[0] == images[1]
    assert records[0]["samples"]["sha256"] == records[1]["samples"]["sha256"]
    for metric, figure in records[0]["metrics"].items():
        assert records[1]["metrics"][metric]["value"] == pytest.approx(figure["value"], rel=1e-6), metric


def test_a_signal_to_one_stops_all_at_one_step(alone, tmp_path):
    workdir = tmp_path / "run"
    job = Job(tmp_path / "job", 2, "train.py", *ENDLESS, "--workdir", workdir)
    until(lambda: steps(workdir), job)
    job.processes[1].send_signal(signal.SIGTERM)
    assert job.wait() == [143, 143]
    saved = steps(workdir)[-1]
    for i in range(2):
        assert job.errors(i) == [f"error: stopped by SIGTERM at step {saved}, saved: the same command goes on"]
    further = (saved // EVERY + 1) * EVERY
    assert f"steps {saved} to" in advance(workdir, further, tmp_path / "again", 2).out()
    assert differing(alone.at(further), contents(workdir, further)) == []


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_dies_ends_the_other_and_nothing_is_lost(alone, tmp_path, victim):
    workdir = tmp_path / "run"
    job = Job(tmp_path / "job", 2, "train.py", *ENDLESS, "--workdir", workdir)
    until(lambda: steps(workdir), job)
    job.processes[victim].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    codes = job.wait()
    assert time.monotonic() - killed < HEARTBEAT + 50  # HEARTBEAT + 15 on a machine of one's own
    assert codes[victim] == -signal.SIGKILL and codes[1 - victim] not in (0, -signal.SIGKILL)
    until_said = time.monotonic() + 20
    while not job.errors(1 - victim) and time.monotonic() < until_said:
        time.sleep(0.1)
    (line,) = job.errors(1 - victim)
    assert line.startswith(f"error: process {victim} has died or cannot be reached") and "same command" in line
    if victim == 1:  # the restart is one and the same for both
        further = steps(workdir)[-1] + EVERY
        advance(workdir, further, tmp_path / "again", 2)
        assert differing(alone.at(further), contents(workdir, further)) == []


def test_an_error_of_one_process_ends_both_with_a_line(pair, tmp_path):
    """Process 0 alone looks at the folder's config."""
    job = Job(tmp_path / "job", 2, "train.py", *ENDLESS, "--optim.learning-rate", "0.5", "--workdir", pair)
    assert job.wait() == [2, 2]
    (first,), (second,) = job.errors(0), job.errors(1)
    assert "--optim.learning-rate" in first and first.startswith("error: workdir")
    assert second == first.replace("error: ", "error: process 0: ")


def test_diverging_ends_both_with_a_diagnosis(tmp_path):
    workdir = tmp_path / "run"
    flags = ["--optim.learning-rate", "1e30", "--optim.warmup", 0, "--workdir", workdir]
    job = Job(tmp_path / "job", 2, "train.py", *TRAIN, *flags)
    assert job.wait() == [2, 2]
    for i in range(2):
        (line,) = job.errors(i)
        assert "diagnosis.json" in line and "--optim.learning-rate" in line
    assert json.loads((workdir / "diagnosis.json").read_text())["step"] <= 12
