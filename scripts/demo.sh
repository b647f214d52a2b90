#!/usr/bin/env bash
# The main job on phantoms, from nothing but Python 3.11: about 5 minutes on 2 cores after the installation.
# Usage: scripts/demo.sh [OUT]     OUT: a new folder, by default demo_out
set -euo pipefail
out=$(realpath -m "${1:-demo_out}")
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh" "" # without it, the demo's own argument would be taken for an extra
python -m dinojax demo --out "$out"
