"""Every test runs on the CPU, on 8 virtual devices, with shapes and types of jaxdiff checked at run time."""

import os
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
# Thousands of tests in one process must give their memory back: see training/cpu.py.
os.environ.setdefault("MALLOC_ARENA_MAX", "16")
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
# Compiled programs are kept between runs of the tests, and shared with the processes that tests start.
_cache = os.path.join(tempfile.gettempdir(), "jaxdiff-test-compilation-cache")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _cache)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")

from jaxtyping import install_import_hook

# The hook is left in place: modules that a test imports later are checked as well.
install_import_hook("jaxdiff", "beartype.beartype")
