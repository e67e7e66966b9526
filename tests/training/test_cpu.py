"""Memory that a process keeps, and devices that it makes of cores."""

import os
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import numpy as np
from jaxdiff.training.cpu import keep_memory

if sys.argv[1] == "keep":
    assert keep_memory()
def work():
    for _ in range(10):
        np.ones(2**22)  # 32 MB, 8,192 pages
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(word: str) -> int:
    """Pages that the system hands out for ten arrays of 32 MB, after ten others."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    # Without huge pages, which NumPy asks for and which would come by the hundred.
    run = [sys.executable, "-c", FAULTS, word]
    env |= {"NUMPY_MADVISE_HUGEPAGE": "0"}
    return int(subprocess.run(run, env=env, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(sys.platform != "linux" or not os.confstr("CS_GNU_LIBC_VERSION"), reason="glibc's malloc")
def test_freed_memory_is_used_again():
    assert faults("keep") < 100
    assert faults("leave") > 10_000


DEVICES = """
import sys
import jax
from jaxdiff.training.cpu import use_cpu

use_cpu(int(sys.argv[1]))
print(jax.device_count())
"""


@pytest.mark.parametrize("batch, devices", [(1, 1), (15, 1), (16, 2), (17, 1), (64, 2)])
def test_a_core_is_a_device_where_each_has_enough_to_do(batch, devices):
    if (os.cpu_count() or 1) != 2:
        pytest.skip("counted for a machine of two cores")
    env = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")}
    run = [sys.executable, "-c", DEVICES, str(batch)]
    out = subprocess.run(run, env=env | {"JAX_PLATFORMS": "cpu"}, check=True, capture_output=True, text=True).stdout
    assert int(out) == devices
