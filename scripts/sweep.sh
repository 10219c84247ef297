#!/usr/bin/env bash
# Every recipe with every seed as a job array, then a job that gathers what came out:
#   RECIPES=recipes.txt SEEDS='1 2 3' SWEEP=out/sweep \
#     bash scripts/sweep.sh --account=... --partition=... -- --num_epochs 2
# RECIPES has a line a recipe, a name and its flags: "low --learning_rate 5e-5"; without it there is
# one, named default. Words before -- go to sbatch, those after it to every run. The same command
# again goes on with what is not finished.
set -euo pipefail
RECIPES=${RECIPES:-}
SEEDS=${SEEDS:-1 2 3}
SWEEP=${SWEEP:-out/sweep}
AT_ONCE=${AT_ONCE:-}               # runs at the same time; empty: as many as the cluster lets
GATHER_OPTIONS=${GATHER_OPTIONS:-} # more words for sbatch, of the gathering job alone
cd "${PROJECT:=$(cd "$(dirname "$0")/.." && pwd)}"

options=()
while (($#)) && [[ $1 != -- ]]; do
  options+=("$1")
  shift
done
(($# == 0)) || shift

# RECIPE/seedSEED and the flags, a line a run.
list_runs() {
  local name flags seed
  while read -r name flags || [[ -n $name ]]; do
    [[ -n $name && $name != \#* ]] || continue
    if [[ ! $name =~ ^[A-Za-z0-9][A-Za-z0-9._-]*$ ]]; then
      echo "error: $RECIPES: the recipe's name \"$name\": expected letters, digits, . _ -" >&2
      return 2
    fi
    for seed in $SEEDS; do
      echo "$name/seed$seed $flags --seed $seed"
    done
  done
}

if [[ -n $RECIPES ]]; then
  runs=$(list_runs < "$RECIPES")
else
  runs=$(list_runs <<< default)
fi
twice=$(cut -d ' ' -f 1 <<< "$runs" | sort | uniq -d | xargs)
if [[ -z $runs ]]; then
  echo "error: no runs: RECIPES or SEEDS is empty" >&2
  exit 2
elif [[ -n $twice ]]; then
  echo "error: more than one run would be $twice" >&2
  exit 2
fi

# Named by its content: jobs that wait read it later, whatever is submitted meanwhile.
mkdir -p "$SWEEP"
SWEEP=$(cd "$SWEEP" && pwd)
RUNS=$SWEEP/runs-$(cksum <<< "$runs" | cut -d ' ' -f 1).txt
export PROJECT RUNS
echo "$runs" > "$RUNS"

array=$(sbatch --parsable "${options[@]}" --array="1-$(wc -l < "$RUNS")${AT_ONCE:+%$AT_ONCE}" \
  --output="$SWEEP/slurm-%A_%a.log" scripts/sweep_array.slurm "$@")
array=${array%%;*}
# shellcheck disable=SC2086  # several words
gather=$(sbatch --parsable "${options[@]}" $GATHER_OPTIONS --dependency="afterany:$array" \
  --output="$SWEEP/slurm-gather-%j.log" scripts/gather.slurm)
echo "$(wc -l < "$RUNS") runs as job $array, listed in $RUNS;" \
  "gathered by job ${gather%%;*} in $SWEEP"
