#!/usr/bin/env bash
# One rank of a job, started by srun in slurm_job.sh: names the ranks as torch.distributed takes
# them, runs the given command, and leaves STOPPED_FILE where it was told to stop.
set -euo pipefail

if ((SLURM_NTASKS > 1)); then
  export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=$SLURM_LOCALID
  read -r MASTER_ADDR < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
  # Jobs that share a node must not share a port; above 32768 are those that the system hands out.
  MASTER_PORT=$((10000 + SLURM_JOB_ID % 20000))
  export MASTER_ADDR MASTER_PORT
fi

# SLURM signals every process of a step: this shell too, which has to outlive the program, and
# compilers that the program runs, whose end may then be its own. TERM is a wish to stop only where
# there is one rank: of several srun ends those whose fellow has failed.
asked_to_stop=
trap 'asked_to_stop=yes' USR1
trap : INT TERM
((SLURM_NTASKS > 1)) || trap 'asked_to_stop=yes' TERM

code=0
"$@" || code=$?
if [[ $code == 75 ]]; then
  ((SLURM_PROCID > 0)) || touch "$STOPPED_FILE"
  # With any other code srun would kill ranks that are about to end by themselves.
  code=0
elif [[ $code != [02] && -n $asked_to_stop ]]; then
  touch "$STOPPED_FILE"
  code=138
fi
exit "$code"
