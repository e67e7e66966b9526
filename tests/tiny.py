"""The smallest run of the real commands: eight-pixel smileys, a network of a few hundred parameters."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent

TRAIN = [
    *("smileys", "--data.size", "8", "--batch-size", "8", "--steps", "12", "--save-every", "4", "--log-every", "2"),
    *("--network.channels", "8", "--network.channel-mults", "1", "--network.attention-resolutions"),
    *("--network.no-middle-attention", "--network.head-channels", "4", "--preview-every", "0"),
    *("--sampling.steps", "3"),
]


def command(script: str, *args: object) -> list[str]:
    """The command line of train.py or sample.py."""
    return [sys.executable, str(ROOT / script), *map(str, args)]


def run(script: str, *args: object) -> subprocess.CompletedProcess:
    """Runs a command to its end, as a user would: two CPU devices, text captured."""
    return subprocess.run(command(script, *args), capture_output=True, text=True, env=environment(), check=False)


def environment() -> dict[str, str]:
    """Two devices, so that what runs on several is what is tested; no more, for speed."""
    return {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
