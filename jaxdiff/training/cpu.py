"""What makes a CPU fast: a device a core, and memory that is kept from step to step. Call both before all else."""

import ctypes
import os
import sys

import jax

LEAST_IMAGES = 8
"""On a device: below, two devices of one core have too little to do at once."""

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
"""Of glibc's mallopt."""


def use_cpu(batch_size: int) -> None:
    """`use_every_core`, and `keep_memory`."""
    use_every_core(batch_size)
    keep_memory()


def use_every_core(batch_size: int) -> None:
    """Makes each core of a CPU a device of its own, as far as the batch can be shared out.

    XLA runs a convolution of few channels on one thread, so two devices of one core are faster than one of two. Does
    nothing where there is an accelerator, or where XLA_FLAGS or JAX_NUM_CPU_DEVICES already says how many.
    """
    if "host_platform_device_count" in os.environ.get("XLA_FLAGS", "") or "JAX_NUM_CPU_DEVICES" in os.environ:
        return
    most = max(1, min(os.cpu_count() or 1, batch_size // LEAST_IMAGES))
    jax.config.update("jax_num_cpu_devices", next(n for n in range(most, 0, -1) if batch_size % n == 0))


def keep_memory() -> bool:
    """Lets the process keep the memory that a step frees for the next one; whether that could be said.

    glibc gives large buffers back to the system, which hands them out again page by page, each filled with zeros: a
    training step of hundreds of MB spends a tenth of its time on that (docs/performance.md). Done on Linux with
    glibc, unless MALLOC_ARENA_MAX is set.
    """
    if sys.platform != "linux" or "MALLOC_ARENA_MAX" in os.environ:
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # One arena, since only the main one can grow without limit; -1 is the largest threshold.
    values = {M_ARENA_MAX: 1, M_MMAP_THRESHOLD: -1, M_TRIM_THRESHOLD: -1}
    return all([mallopt(name, value) == 1 for name, value in values.items()])
