# Sourced by the job scripts and by prepare.sh: what they have in common. Each of the variables can
# come from the environment of sbatch.
PROJECT=${PROJECT:-${SLURM_SUBMIT_DIR:-$PWD}} # this repository: sbatch runs a copy of the script
SETUP=${SETUP:-}                              # commands that give a Python with requirements.txt
VENV=${VENV:-$PROJECT/.venv}                  # used where SETUP is empty; prepare.sh makes it
CONFIG=${CONFIG:-configs/small.yaml}
CHECKPOINT=${CHECKPOINT:-}                    # path or glob of the pretrained checkpoint
TOKENIZER=${TOKENIZER:-}                      # its tokenizer.json
CACHE=${CACHE:-${SCRATCH:-$PROJECT}/hindi_xnli_cache} # data and compiled code: gigabytes
MAX_RESTARTS=${MAX_RESTARTS:-100}             # a job that was started again so often ends

EXIT_STOPPED=75 # finetune_hindi_xnli.py: saved, the same command goes on

cd "$PROJECT"
if [[ -n $SETUP ]]; then
  # What conda and modules bring along reads variables that are not set.
  set +u
  eval "$SETUP"
  set -u
else
  source "$VENV/bin/activate"
fi

export HF_HOME=${HF_HOME:-$CACHE/huggingface}
export TORCHINDUCTOR_CACHE_DIR=$CACHE/inductor TRITON_CACHE_DIR=$CACHE/triton
# Compute nodes are offline; prepare.sh has fetched everything.
export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1} WANDB_MODE=${WANDB_MODE:-offline}
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1} PYTHONUNBUFFERED=1
# srun does not take the number over from sbatch since SLURM 22.05.
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}

arguments=(--config "$CONFIG" --cache_dir "$CACHE/tokenised")
[[ -z $CHECKPOINT ]] || arguments+=(--pretrained_ckpt_path "$CHECKPOINT")
[[ -z $TOKENIZER ]] || arguments+=(--tokenizer_name "$TOKENIZER")

say() { echo "$(date '+%F %T') $*"; }

# Of a task of an array the id of its own: the number of its first task is the array's too.
job_id() {
  if [[ -n ${SLURM_ARRAY_JOB_ID:-} ]]; then
    echo "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
  else
    echo "$SLURM_JOB_ID"
  fi
}

# Runs finetune_hindi_xnli.py with the given arguments on every task of the job, and the job once
# more where the program was told to stop. Does not return.
run_job() {
  local code=0
  STOPPED_FILE=$CACHE/stopped-$(job_id)
  export STOPPED_FILE
  mkdir -p "$CACHE"
  rm -f "$STOPPED_FILE"
  say "job $(job_id) on $SLURM_JOB_NODELIST, restart ${SLURM_RESTART_COUNT:-0}"
  # This shell gets the TERM of a job that ends too, and has to see what its step does.
  trap : TERM
  srun --export=ALL --kill-on-bad-exit=1 --cpu-bind=cores bash scripts/slurm_rank.sh \
    python finetune_hindi_xnli.py "$@" || code=$?
  if [[ -e $STOPPED_FILE ]] && was_stopped "$code"; then
    rm -f "$STOPPED_FILE"
    if ((code == 0)); then
      requeue "stopped and saved"
    else
      requeue "stopped without a new save"
    fi
  fi
  exit "$code"
}

# 138 is that of a rank that the signal ended, in its first seconds or while it compiled, and 143 of
# ranks that srun ended after it. Any other code is that of a rank that failed.
was_stopped() { [[ $1 == 0 || $1 == 138 || $1 == 143 ]]; }

# What happens after a stop, said in the log; ends the script. Only a job that still runs is
# requeued: else scancel would start it anew.
requeue() {
  local stopped=$1 state restart=$((${SLURM_RESTART_COUNT:-0} + 1))
  local again='submit the same command again and it goes on'
  state=$(job_field JobState) || state=RUNNING
  if [[ $state != RUNNING && $(job_field Restarts) == "$restart" ]]; then
    say "$stopped; SLURM has requeued the job (restart $restart)"
  elif [[ $state != RUNNING ]]; then
    say "$stopped; the job was cancelled or its time is over, so not requeued: $again"
  elif ((restart > MAX_RESTARTS)); then
    say "$stopped; not requeued, MAX_RESTARTS is $MAX_RESTARTS: $again"
  elif scontrol requeue "$(job_id)"; then
    say "$stopped; requeued (restart $restart)"
    exit 0
  else
    say "error: $stopped, but scontrol requeue failed: $again"
  fi
  exit "$EXIT_STOPPED"
}

job_field() {
  local shown
  shown=$(scontrol show job --oneliner "$(job_id)") && [[ $shown =~ \ $1=([^ ]+) ]] &&
    echo "${BASH_REMATCH[1]}"
}
