#!/usr/bin/env bash
# Several pre-training processes on this machine that train one model together.
#
#   scripts/pretrain_processes.sh 2 --config laptop --data images/ --out runs/ssl
#
# Each process has devices of its own: of N GPUs, process i takes GPU i. Ctrl-C and SIGTERM stop all of them, the state
# saved. On several machines, run the command below once on each: with the first one's HOST:PORT as coordinator, and
# with the machine's number as process.
set -euo pipefail
python=${PYTHON:-$(dirname "${BASH_SOURCE[0]}")/../.venv/bin/python}
count=$1
shift
trap 'kill -TERM $(jobs -pr) 2>/dev/null || true' INT TERM
for ((i = 0; i < count; i++)); do
  CUDA_VISIBLE_DEVICES=$i "$python" -m dinojax pretrain --distributed.coordinator "localhost:${PORT:-12321}" \
    --distributed.processes "$count" --distributed.process "$i" "$@" &
done
status=0
for job in $(jobs -p); do
  code=0
  while wait "$job" || code=$?; kill -0 "$job" 2>/dev/null; do # a signal ends `wait`, but not the job
    code=0
  done
  [ "$code" -eq 0 ] || status=$code
done
exit "$status"
