#!/usr/bin/env bash
# All that BENCHMARKS.md says of a GPU, in one command: the step of `medidino_code` against PyTorch with its profile,
# the run with its real data path, features, multi-crop, and 8 minutes of learning from scratch with the k-NN probe.
# Usage: scripts/bench_gpu.sh BRAIN_MRI [OUT]     BRAIN_MRI: a folder with Training/ and Testing/ of class folders
set -euo pipefail
data=$(realpath "$1")
out=$(realpath -m "${2:-bench_gpu}")
minutes=${MINUTES:-8}
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh" "${EXTRAS:-cuda,bench}"
mkdir -p "$out"
workers=(--workers "$(($(nproc) / 4))" --threads 4)

rate() { # median images per second of a run, without its first steps
  python -c '
import json, statistics, sys
lines = [json.loads(line) for line in open(sys.argv[1])]
found = [line["time"]["images_per_s"] for line in lines if line["step"]]
print(statistics.median(found[len(found) // 4 :]))' "$1/metrics.jsonl"
}

{
  nvidia-smi || true
  python scripts/bench_pretrain.py --batch "${BATCH:-256}" --bfloat16 --drop_path 0 --compile --profile
  python scripts/bench_features.py --batch 32 256 --bfloat16
  python scripts/bench_multicrop.py --data "$data/Training"

  # images_per_s, data_wait and device_memory_gib stand under `time` in metrics.jsonl.
  python -m dinojax pretrain --config medidino_code --data "$data/Training" \
    --batch_size "${BATCH:-256}" --steps "${STEPS:-60}" --head_warmup_steps 0 "${workers[@]}" --out "$out/medidino"
  echo "medidino_code with its data path: $(rate "$out/medidino") images/s"
  tail -n 1 "$out/medidino/metrics.jsonl"

  laptop=(--config laptop --data "$data/Training" "${workers[@]}")
  python -m dinojax pretrain "${laptop[@]}" --steps "${STEPS:-200}" --out "$out/trial"
  epochs=$(python -c "print(int($minutes * 60 * $(rate "$out/trial") / 1000))")
  python -m dinojax pretrain "${laptop[@]}" --epochs "$epochs" --probe.data "$data" --out "$out/learning"
  echo "the probe's curve beside the trivial baselines: $out/learning/figures/curves.png"
} 2>&1 | tee "$out/log.txt"
