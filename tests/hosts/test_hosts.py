"""How processes find each other, what they say of a mistake, and what the last words of a lost one mean."""

import dataclasses
import os

import pytest

from jaxdiff import cli
from jaxdiff.training import hosts, last_words
from jaxdiff.training.hosts import Hosts, cluster

NAMES = ("SLURM_", "OMPI_", "TPU_", "MEGASCALE_")


@pytest.fixture
def plain(monkeypatch):
    """A machine of no cluster."""
    for name in [n for n in os.environ if n.startswith(NAMES)]:
        monkeypatch.delenv(name)
    return monkeypatch


SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
    "SLURM_NTASKS": "2",
}


@pytest.mark.parametrize(
    ("env", "tpu", "many"),
    [
        ({}, False, False),
        (SLURM, False, True),
        (SLURM | {"SLURM_NTASKS": "1"}, False, False),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, False, False),  # sbatch without srun
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_MCA_orte_hnp_uri": "0.0;tcp://1.2.3.4:5"}, False, True),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, False, False),
        ({}, True, True),  # Google's metadata server knows
        ({"TPU_SKIP_MDS_QUERY": "1"}, True, False),
        ({"TPU_WORKER_HOSTNAMES": "a"}, True, False),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True, True),
        ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, True, True),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, False, False),
    ],
)
def test_clusters_are_known_without_asking(plain, env, tpu, many):
    for name, value in env.items():
        plain.setenv(name, value)
    plain.setattr(hosts, "running_in_cloud_tpu_vm", tpu)
    assert cluster() == many


def test_an_open_mpi_that_does_not_say_is_refused(plain):
    plain.setenv("OMPI_COMM_WORLD_SIZE", "4")
    with pytest.raises(ValueError, match="--coordinator HOST:PORT"):
        cluster()


def test_one_process_meets_nobody(plain):
    before = hosts.is_many()
    hosts.connect(Hosts())
    hosts.connect(Hosts("localhost:1", 1, 0))
    hosts.meet("here")
    assert not before and not hosts.is_many() and hosts.is_first() and hosts.count() == 1


@dataclasses.dataclass(frozen=True)
class Nothing:
    """A command without flags of its own."""


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--coordinator", "a:1"], ["--num-processes", "--process-id"]),
        (["--process-id", "0"], ["--coordinator"]),
        (["--coordinator", "a", "--num-processes", "2", "--process-id", "0"], ["'a'", "HOST:PORT"]),
        (["--coordinator", "a:99999", "--num-processes", "2", "--process-id", "0"], ["'a:99999'"]),
        (["--coordinator", "a:1", "--num-processes", "2", "--process-id", "2"], ["process_id = 2", "0 to 1"]),
        (["--coordinator", "a:1", "--num-processes", "0", "--process-id", "0"], ["num_processes = 0"]),
        (["--heartbeat-timeout", "1"], ["heartbeat_timeout = 1", "--heartbeat-timeout"]),
    ],
)
def test_mistakes_are_one_line(capsys, flags, words):
    with pytest.raises(SystemExit) as stop, cli.user_errors():
        cli.parse(Nothing, "x", flags)
    line = capsys.readouterr().err
    assert stop.value.code in (1, 2) and line.count("\n") == 1 and all(word in line for word in words)


HEAD = "1123 21:03:33.750217   23231 "
POLLED = f"E{HEAD}coordination_service_agent.cc:289] Polled an error from coordination service.\n"
LAST = f"F{HEAD}client.h:80] {last_words.LAST}. This most likely indicates that another task died. absl::Status: "
STACK = "\nRPC: /xla.coordination\n*** Check failure stack trace: ***\n    @     0x7fc103640634  absl::Flush()\n"


@pytest.mark.parametrize(
    ("report", "words"),
    [
        (
            "UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats):\n3\nThe tasks",
            "process 3 has died",
        ),
        (
            "UNAVAILABLE: unhealthy (stopped sending heartbeats):\n3\n12\nThe tasks have crashed.",
            "processes 3, 12 have died",
        ),
        ("UNAVAILABLE: Either the leader task was preempted/died/restarted unexpectedly", "process 0 has died"),
        (
            "DEADLINE_EXCEEDED: Deadline Exceeded\n\nRPC: /xla.coordination.CoordinationService/RegisterTask",
            "not all met HERE",
        ),
        ("something new", "another process has died"),
    ],
)
def test_last_words_become_a_line_and_the_rest_is_passed_on(report, words):
    other = f"W{HEAD}cuda_dnn.cc:1] slow\n"
    lines = ["hello\n", POLLED, "1\n", other, "its second line\n", *(LAST + report + STACK).splitlines(keepends=True)]
    *before, last = last_words.passed_on(lines, "60", "HERE")
    assert before == ["hello\n", other, "its second line\n"]
    assert words in last and last.startswith("error: ") and last.count("\n") == 1


def test_a_healthy_end_says_nothing():
    assert list(last_words.passed_on(["a\n", "b\n"], "60", "HERE")) == ["a\n", "b\n"]
