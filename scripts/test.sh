#!/usr/bin/env bash
# Lint and tests from a fresh clone, in a .venv of its own:
#   bash scripts/test.sh [--with-slurm] [--with-browser] [pytest arguments]
# Without pytest arguments: the quick tests, 11 minutes on two cores, then the long ones, 13 more with
# both flags.
# Nothing is installed outside of .venv but what a flag asks for; as root, on Debian or Ubuntu:
#   --with-slurm     SLURM, where it is missing, and a cluster of this machine while the tests run
#   --with-browser   Chromium, where it is missing
# Tests of what is not there are skipped, and say so at the end.
set -euo pipefail
cd "$(dirname "$0")/.."

with_slurm='' with_browser=''
arguments=()
for word; do
  case $word in
    --with-slurm) with_slurm=yes ;;
    --with-browser) with_browser=yes ;;
    *) arguments+=("$word") ;;
  esac
done

# One thread a worker: more threads than cores spin against each other.
export OMP_NUM_THREADS=1
status=0

# Every part runs, and one that fails makes the whole fail.
part() { "$@" || status=$?; }

install_browser() {
  ! command -v chromium > /dev/null || return 0
  { apt-get update && apt-get install -y --no-install-recommends chromium; } > /dev/null 2>&1 ||
    echo "--with-browser: apt-get can't install chromium; the test that needs it is skipped"
}

# The variable tells the tests why there is no cluster; one that is installed but does not come up
# is a failure.
start_cluster() {
  local code=0
  trap 'bash scripts/slurm_cluster.sh stop' EXIT
  SLURM_CLUSTER_PROBLEM=$(bash scripts/slurm_cluster.sh start --install 2>&1 > /dev/null) || code=$?
  export SLURM_CLUSTER_PROBLEM
  ((code == 0)) || echo "--with-slurm: $SLURM_CLUSTER_PROBLEM"
  ((code == 0 || code == 3)) || return "$code"
}

source scripts/venv.sh requirements-dev.txt
part ruff check .
part ruff format --check .
[[ -z $with_browser ]] || part install_browser
[[ -z $with_slurm ]] || part start_cluster
if ((${#arguments[@]})); then
  part pytest -rs "${arguments[@]}"
else
  part pytest -q -n auto -m "not long"
  # Those of a file, which share a cluster or the demo, in one worker; other files beside them.
  part pytest -q -n auto --dist loadfile -rs -m long
fi
exit "$status"
