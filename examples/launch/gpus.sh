#!/usr/bin/env bash
# A machine with GPUs, all of them in one process: examples/launch/gpus.sh PRESET --workdir DIR [flags of train.py]
#
# On a spot machine start this line at boot; it goes on where the last machine stopped, if DIR outlives the machine.
set -euo pipefail
cd "$(dirname "$0")/../.."
export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}
exec examples/launch/again.sh "${PYTHON:-python}" train.py "$@"
