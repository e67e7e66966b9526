#!/usr/bin/env bash
# Starts a command again until it is done: examples/launch/again.sh python train.py PRESET --workdir DIR ...
#
# 0 is done and 2 is a mistake in the flags: both end here. After everything else, such as 143 (stopped by SIGTERM, and
# saved), 137 (killed) or 1 (another process was lost), the same command goes on where the last checkpoint is, up to MOST
# times in a row that end within a minute. SIGTERM to this script, as at the end of a spot machine, is passed on once and
# ends both: the next machine starts the same line.
set -uo pipefail
MOST=${MOST:-3} # quick failures in a row
WAIT=${WAIT:-10} # seconds between two starts

asked=""
child=""
trap 'asked=1; [[ -n $child ]] && kill -TERM "$child" 2>/dev/null' TERM INT

quick=0
while true; do
  begun=$SECONDS
  "$@" &
  child=$!
  wait "$child"
  code=$?
  # A trapped signal ends `wait` before the command has saved and ended.
  while kill -0 "$child" 2>/dev/null; do
    wait "$child"
    code=$?
  done
  if [[ $code == 0 || $code == 2 || -n $asked ]]; then
    exit "$code"
  fi
  if ((SECONDS - begun < 60)); then
    quick=$((quick + 1))
  else
    quick=0
  fi
  if ((quick >= MOST)); then
    echo "again.sh: $quick starts in a row ended within a minute, the last with $code" >&2
    exit "$code"
  fi
  echo "again.sh: ended with $code, starting again in $WAIT s" >&2
  sleep "$WAIT" &
  wait $!
  [[ -n $asked ]] && exit 143
done
