"""The launch files: they can be read, what they start exists, and they start again what was interrupted, no more."""

import os
import re
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest

import train
from jaxdiff.training import hosts

ROOT = Path(__file__).parents[1]
LAUNCH = ROOT / "examples" / "launch"
SHELL = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])
yaml = pytest.importorskip("yaml")


def jobset():
    return yaml.safe_load((LAUNCH / "jobset.yaml").read_text())


def commands():
    """The arguments of train.py in every command of the guide, and in the manifest."""
    started = r"(?:train\.py|tpu_vm\.sh|gpus\.sh|slurm\.sbatch) ((?!PRESET)[a-z]\w+ --[^\"`\n]*)"
    for line in re.findall(started, (ROOT / "docs" / "tpu.md").read_text()):
        yield shlex.split(line)
    job = jobset()["spec"]["replicatedJobs"][0]["template"]["spec"]
    yield job["template"]["spec"]["containers"][0]["command"][2:]


@pytest.mark.parametrize("file", SHELL, ids=lambda file: file.name)
def test_shells_can_read_them(file):
    assert os.access(file, os.X_OK) and file.read_text().startswith("#!/usr/bin/env bash\n")
    subprocess.run(["bash", "-n", file], check=True)


def test_there_is_a_command_for_every_place():
    assert len(list(commands())) >= 10 and len(SHELL) == 4


@pytest.mark.parametrize("args", list(commands()), ids=lambda args: " ".join(args)[:60])
def test_their_flags_exist(args, monkeypatch):
    met = []
    monkeypatch.setattr(hosts, "connect", lambda *given: met.append(given))
    run = train.read_command(args)
    assert len(met) == 1 and str(run.workdir).startswith(("gs://BUCKET/", "/shared/", "runs/"))


def test_files_that_the_guide_names_exist():
    text = (ROOT / "docs" / "tpu.md").read_text()
    for name in re.findall(r"examples/launch/([\w.]+)", text):
        assert (LAUNCH / name).exists(), name
    for target in re.findall(r"\]\(([\w./]+)\)", text):
        assert (ROOT / "docs" / target).exists(), target


def test_a_job_is_as_many_pods_as_the_slice_has_machines():
    spec = jobset()["spec"]
    job = spec["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    topology = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    chips = container["resources"]["limits"]["google.com/tpu"]
    assert container["resources"]["requests"] == container["resources"]["limits"]
    assert eval(topology.replace("x", "*")) == chips * job["parallelism"] == chips * job["completions"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


def test_the_jobset_starts_again_unless_the_flags_are_wrong():
    spec = jobset()["spec"]
    job = spec["replicatedJobs"][0]["template"]["spec"]
    assert job["backoffLimit"] == 0 and job["template"]["spec"]["restartPolicy"] == "Never"
    assert spec["failurePolicy"]["maxRestarts"] >= 100
    (rule,) = job["podFailurePolicy"]["rules"]
    codes = rule["onExitCodes"]
    assert rule["action"] == "FailJob" and codes["operator"] == "In" and codes["values"] == [2]
    assert codes["containerName"] == job["template"]["spec"]["containers"][0]["name"]
    assert [r["action"] for r in spec["failurePolicy"]["rules"]] == ["FailJobSet"]


def script(path, body):
    path.write_text(f"#!/usr/bin/env bash\n{body}\n")
    path.chmod(0o755)
    return path


def again(tmp_path, body, **env):
    """again.sh on a command that writes a line to `starts` each time; its process."""
    command = script(tmp_path / "command", f'echo "$@" >> {tmp_path}/starts\nn=$(wc -l < {tmp_path}/starts)\n{body}')
    return subprocess.Popen(
        [LAUNCH / "again.sh", command, "one", "two words"],
        env=os.environ | {"WAIT": "0", **env},
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    "codes, ends_with, starts",
    [((0,), 0, 1), ((2,), 2, 1), ((143, 137, 0), 0, 3), ((1, 2), 2, 2), ((1, 1, 1, 0), 1, 3)],
)
def test_a_command_is_started_again_until_it_is_done(tmp_path, codes, ends_with, starts):
    process = again(tmp_path, f"codes=({' '.join(map(str, codes))})\nexit ${{codes[$((n - 1))]}}")
    process.communicate(timeout=30)
    assert process.returncode == ends_with
    assert (tmp_path / "starts").read_text().splitlines() == ["one two words"] * starts


def test_sigterm_reaches_the_command_and_ends_both(tmp_path):
    saved = tmp_path / "saved"
    body = f"trap 'sleep 0.5; touch {saved}; exit 143' TERM\nfor i in $(seq 200); do sleep 0.1; done"
    process = again(tmp_path, body)
    while not (tmp_path / "starts").exists():
        time.sleep(0.05)
    time.sleep(0.3)  # until the trap is set
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 143 and saved.exists()
    assert (tmp_path / "starts").read_text().count("\n") == 1


def test_a_tpu_that_was_taken_away_is_made_again(tmp_path):
    """A stand-in for gcloud: the TPU is made, taken away in the middle of the training, made again, and finishes."""
    said = tmp_path / "said"
    script(
        tmp_path / "gcloud",
        f"""echo "$*" >> {said}
case "$4" in
  describe) cat {tmp_path}/state 2>/dev/null || exit 1 ;;
  create) echo READY > {tmp_path}/state; rm -f {tmp_path}/installed ;;
  delete) rm -f {tmp_path}/state ;;
  ssh)
    if [[ "$*" == *"test -x"* ]]; then [[ -e {tmp_path}/installed ]]; exit; fi
    if [[ "$*" == *"pip install"* ]]; then touch {tmp_path}/installed; exit 0; fi
    if [[ ! -e {tmp_path}/once ]]; then touch {tmp_path}/once; echo PREEMPTED > {tmp_path}/state; exit 1; fi
    if [[ -e {tmp_path}/broken ]]; then exit 1; fi ;;
esac""",
    )
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "NAME": "t", "ZONE": "z", "TYPE": "v5litepod-8"}
    call = [LAUNCH / "tpu_vm.sh", "smileys", "--workdir", "gs://b/a run"]
    done = subprocess.run(call, env=env | {"WAIT": "0"}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    lines = said.read_text()
    assert lines.count("create t --zone z --accelerator-type v5litepod-8") == 2 and lines.count("--spot") == 2
    started = re.findall(r"train\.py smileys --workdir (gs://b/a\\ run)", lines)
    assert len(started) == 2 and lines.count("pip install") == 2
    (tmp_path / "broken").touch()
    failed = subprocess.run(call, env=env | {"WAIT": "0"}, capture_output=True, text=True, timeout=60)
    assert failed.returncode == 1 and "failed 3 times" in failed.stderr
    assert said.read_text().count("create t") == 2
