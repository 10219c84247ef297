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

# The report is looked at in a real browser; where there is none, that test is skipped.
if ((EUID == 0)) && command -v apt-get > /dev/null && ! command -v chromium > /dev/null; then
  { apt-get update && apt-get install -y --no-install-recommends chromium; } > /dev/null 2>&1 ||
    echo "chromium can't be installed"
fi

# The job scripts are tested in a real cluster; where there can be none, those tests are skipped.
trap 'bash scripts/slurm_cluster.sh stop' EXIT
SLURM_CLUSTER_PROBLEM=$(bash scripts/slurm_cluster.sh start 2>&1 > /dev/null) ||
  echo "$SLURM_CLUSTER_PROBLEM"
export SLURM_CLUSTER_PROBLEM
pytest -q -rs -m long
