#!/usr/bin/env bash
# The whole test suite from a fresh clone: makes .venv, installs, lints, tests.
#   bash scripts/test.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/venv.sh requirements-dev.txt

# One thread a worker: more threads than cores spin against each other.
export OMP_NUM_THREADS=1
ruff check .
ruff format --check .
if (($#)); then
  exec pytest "$@"
fi
pytest -q -n auto -m "not long"
pytest -q -m long
