# Sourced by the other scripts: a virtual environment in .venv with the project and its dependencies.
# Usage: . scripts/setup.sh [EXTRA]
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
  echo "dinojax needs Python 3.11 or newer; name one with PYTHON=/path/to/python3.11" >&2
  exit 1
fi
if [ ! -x .venv/bin/python ]; then
  echo "making a virtual environment in .venv"
  "$python" -m venv .venv
fi
echo "installing dinojax and what it needs into .venv (some minutes the first time)"
.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".${1:+[$1]}"
unset PYTHONPATH PYTHONHOME VIRTUAL_ENV
export PATH="$PWD/.venv/bin:$PATH"
