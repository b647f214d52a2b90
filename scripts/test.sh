#!/usr/bin/env bash
# Installs the project with its test tools, checks style and types, and runs the tests.
# Usage: scripts/test.sh [PYTEST ARGUMENTS]
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh" test
ruff check
ruff format --check
pyright
python -m pytest --numprocesses 2 --dist worksteal "$@"
echo "all checks and tests passed; the tests' own figures are in tests/goldens/README.md"
