#!/usr/bin/env bash
# On the login node, once: makes .venv, fetches and tokenises what the offline jobs read.
#   TOKENIZER=tokenizer.json bash scripts/prepare.sh
# Takes the variables of slurm_job.sh and the flags about data that the jobs will have.
set -euo pipefail
cd "$(dirname "$0")/.."
PROJECT=${PROJECT:-$PWD}
VENV=${VENV:-$PROJECT/.venv}
if [[ -z ${SETUP:-} ]]; then
  source scripts/venv.sh requirements.txt
fi
source scripts/slurm_job.sh

HF_HUB_OFFLINE=0 python finetune_hindi_xnli.py "${arguments[@]}" --prepare_only "$@"
echo "once more, without network, as a job will do it:"
HF_HUB_OFFLINE=1 python finetune_hindi_xnli.py "${arguments[@]}" --prepare_only "$@"
cat << END
The compute nodes must see, under the same paths:
  $PROJECT
  ${SETUP:-$VENV}
  $CACHE
  the checkpoint and the tokenizer
and the jobs must get the same variables, at least CACHE=$CACHE
END
