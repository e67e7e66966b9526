#!/usr/bin/env bash
# A TPU VM, or all machines of a slice, from your own machine until the training is done:
#
#   NAME=dit ZONE=us-west4-a TYPE=v5litepod-8 examples/launch/tpu_vm.sh PRESET --workdir gs://BUCKET/dit [flags]
#
# Creates the TPU where there is none, copies the committed state of this repository to every worker, installs it, and
# runs train.py on all of them at once. A spot TPU that was taken away is deleted and made again, and the same command
# goes on, bit for bit. The TPU is kept at the end: `gcloud compute tpus tpu-vm delete NAME --zone ZONE` pays no more.
set -euo pipefail
cd "$(dirname "$0")/../.."
: "${NAME:?a name for the TPU}" "${ZONE:?such as us-west4-a}" "${TYPE:?such as v5litepod-8 or v5litepod-256}"
VERSION=${VERSION:-v2-alpha-tpuv5-lite} # v2-alpha-tpuv5 for v5p, v2-alpha-tpuv6e for v6e, tpu-ubuntu2204-base for v4
SPOT=${SPOT-1}                          # empty: not a spot TPU
WAIT=${WAIT:-60}                        # seconds between tries
tpu=(gcloud compute tpus tpu-vm)

# On each worker: one unit of systemd, which outlives the connection. At the end of a spot TPU systemd sends SIGTERM.
unit=jaxdiff
printf -v flags '%q ' "$@"
start="sudo systemctl reset-failed $unit 2>/dev/null; systemctl show -p ActiveState --value $unit | \
grep -qE '^(active|activating|deactivating)\$' || sudo systemd-run \
--unit=$unit --uid=\$(id -u) --working-directory=\$HOME/jaxdiff -p TimeoutStopSec=300 -p Restart=on-failure \
-p RestartSec=10 -p RestartPreventExitStatus=2 -p StartLimitIntervalSec=600 -p StartLimitBurst=10 \
\$HOME/jaxdiff/.venv/bin/python train.py $flags"
# `activating` is the wait before a restart. A unit that ended well is forgotten, one that failed is not.
watch="while systemctl show -p ActiveState --value $unit | grep -qE '^(active|activating|deactivating)\$'; do sleep 5; done; \
journalctl -u $unit -n 5 -o cat; ! systemctl is-failed --quiet $unit"

ready() {
  [[ $("${tpu[@]}" describe "$NAME" --zone "$ZONE" --format='value(state)' 2>/dev/null) == READY ]]
}

create() {
  "${tpu[@]}" delete "$NAME" --zone "$ZONE" --quiet 2>/dev/null || true
  "${tpu[@]}" create "$NAME" --zone "$ZONE" --accelerator-type "$TYPE" --version "$VERSION" ${SPOT:+--spot}
}

everywhere() {
  "${tpu[@]}" ssh "$NAME" --zone "$ZONE" --worker=all --command "$1"
}

install() {
  git archive --format=tar.gz -o /tmp/jaxdiff.tar.gz HEAD
  "${tpu[@]}" scp /tmp/jaxdiff.tar.gz "$NAME:" --zone "$ZONE" --worker=all
  everywhere "mkdir -p jaxdiff && tar xzf jaxdiff.tar.gz -C jaxdiff && cd jaxdiff && python3 -m venv .venv && \
.venv/bin/pip install -q -c constraints.txt -e '.[tpu]' 'etils[epath-gcs]'"
}

failures=0
while ((failures < 3)); do
  if ! ready; then
    echo "tpu_vm.sh: no TPU $NAME that is ready: creating it" >&2
    if ! create; then
      sleep "$WAIT"
      continue
    fi
  fi
  if everywhere "test -x jaxdiff/.venv/bin/jaxdiff" || install; then
    if everywhere "$start && $watch"; then
      echo "tpu_vm.sh: done. To pay no more: gcloud compute tpus tpu-vm delete $NAME --zone $ZONE"
      exit 0
    fi
  fi
  # The TPU was taken away, the connection broke, or the training failed for good: only the last comes back at once.
  if ready; then
    failures=$((failures + 1))
    sleep "$WAIT"
  else
    failures=0
  fi
done
echo "tpu_vm.sh: failed $failures times on a TPU that is there; the last lines are above" >&2
exit 1
