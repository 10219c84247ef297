#!/usr/bin/env bash
# A real SLURM cluster of two nodes on this one machine, for the tests:
#   bash scripts/slurm_cluster.sh start [--install]|stop
# Start prints the SLURM_CONF that sbatch and its kin need. With --install it installs SLURM from
# Debian where it is missing. It needs neither systemd nor cgroups, and keeps everything in one folder.
# Exit codes: 0 done; 3 can't be had on this machine; 1 did not come up (the logs are printed).
set -euo pipefail

STATE=${SLURM_CLUSTER:-${TMPDIR:-/tmp}/hindi_xnli_slurm}
NODES=(xnli-node1 xnli-node2)
PROGRAMS=(munged slurmctld slurmd sbatch)
PACKAGES=(munge slurmctld slurmd slurm-client)
HOSTS_MARK='# scripts/slurm_cluster.sh'
export SLURM_CONF=$STATE/slurm.conf

impossible() {
  echo "no SLURM cluster: $1" >&2
  exit 3
}

missing_program() {
  local program
  for program in "${PROGRAMS[@]}"; do
    PATH=$PATH:/usr/sbin:/sbin command -v "$program" > /dev/null || return 0
  done
  return 1
}

install_programs() {
  local told
  command -v apt-get > /dev/null ||
    impossible "${PACKAGES[*]} are not installed, and apt-get is not here"
  # RUNLEVEL: the packages must not start daemons, ours are started below.
  told=$(apt-get update -qq 2>&1 && RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -qq --no-install-recommends "${PACKAGES[@]}" 2>&1) ||
    impossible "apt-get could not install ${PACKAGES[*]}: $(tail -n 1 <<< "$told")"
}

# What is missing is installed only where that is asked for.
require_programs() {
  missing_program || return 0
  [[ $1 == --install ]] ||
    impossible "${PACKAGES[*]} are not installed; start --install installs them"
  install_programs
}

# cred_expire is how long a requeued job waits before it starts again (120 seconds by default).
# The partition urgent preempts the others: jobs of graceful get a minute's notice first.
write_configuration() {
  local host cpus memory
  host=$(uname -n)
  host=${host%%.*}
  cpus=$(nproc)
  memory=$(awk '/MemTotal/ {print int($2 / 1024)}' /proc/meminfo)
  cat > "$SLURM_CONF" << END
ClusterName=hindi-xnli-test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=26817
AuthType=auth/munge
AuthInfo=socket=$STATE/munge.socket,cred_expire=5
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$STATE/controller
SlurmdSpoolDir=$STATE/%n
SlurmctldPidFile=$STATE/slurmctld.pid
SlurmdPidFile=$STATE/%n.pid
SlurmctldLogFile=$STATE/slurmctld.log
SlurmdLogFile=$STATE/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
KillWait=20
MinJobAge=3600
SlurmdTimeout=60
NodeName=${NODES[0]} NodeHostname=$host NodeAddr=127.0.0.1 Port=26821 CPUs=$cpus RealMemory=$memory
NodeName=${NODES[1]} NodeHostname=$host NodeAddr=127.0.0.1 Port=26822 CPUs=$cpus RealMemory=$memory
PartitionName=normal Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=graceful Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=2
END
}

# The lines of ours in /etc/hosts, where ranks find the job's first node, become those given; in a
# container the file can be written, not replaced.
name_nodes() {
  local others
  others=$(grep -vF "$HOSTS_MARK" /etc/hosts || true)
  printf '%s\n' "$others" "$@" > /etc/hosts
}

start_daemons() {
  mkdir -p "$STATE/controller"
  head -c 128 /dev/urandom > "$STATE/munge.key"
  chmod 400 "$STATE/munge.key"
  munged --key-file="$STATE/munge.key" --seed-file="$STATE/munge.seed" \
    --socket="$STATE/munge.socket" --pid-file="$STATE/munged.pid" --log-file="$STATE/munged.log"
  slurmctld -c
  local node
  for node in "${NODES[@]}"; do
    mkdir -p "$STATE/$node"
    slurmd -N "$node"
  done
}

nodes_are_up() {
  local up
  # Without it sinfo waits a minute.
  [[ -e $SLURM_CONF ]] || return 1
  up=$(timeout 15 sinfo --noheader --partition=normal --states=idle,alloc,mix --Node --format=%N \
    2> /dev/null) && [[ $(wc -w <<< "$up") == "${#NODES[@]}" ]]
}

start() { # [--install]
  if nodes_are_up; then
    return
  fi
  ((EUID == 0)) || impossible 'starting one needs root'
  require_programs "${1:-}"
  stop
  rm -rf "$STATE"
  mkdir -p "$STATE"
  export PATH=$PATH:/usr/sbin:/sbin
  write_configuration
  name_nodes "127.0.0.1 ${NODES[*]} $HOSTS_MARK"
  start_daemons
  local _
  for _ in {1..240}; do
    if nodes_are_up; then
      return
    fi
    sleep 0.5
  done
  echo "the SLURM cluster did not come up; its logs:" >&2
  tail -n 30 "$STATE"/*.log >&2
  exit 1
}

stop() {
  # Not ours, or not there.
  [[ -O $STATE ]] || return 0
  if nodes_are_up; then
    scancel --quiet --full --signal=KILL --user="$(id -un)" || true
    scancel --quiet --user="$(id -un)" || true
  fi
  local name
  for name in "${NODES[@]}" slurmctld munged; do
    stop_daemon "$STATE/$name.pid"
  done
  if grep -qF "$HOSTS_MARK" /etc/hosts; then
    name_nodes
  fi
  rm -f "$SLURM_CONF"
}

stop_daemon() {
  local id
  [[ -e $1 ]] || return 0
  id=$(< "$1")
  # The number of a daemon that is long gone may be another program's now.
  if [[ $(cat "/proc/$id/comm" 2> /dev/null) == @(munged|slurmctld|slurmd) ]]; then
    kill "$id"
    timeout 10 tail --pid="$id" -f /dev/null || kill -KILL "$id"
  fi
  rm -f "$1"
}

case "$*" in
  start | 'start --install')
    start "${2:-}"
    echo "$SLURM_CONF"
    ;;
  stop) stop ;;
  *)
    echo "usage: bash scripts/slurm_cluster.sh start [--install]|stop" >&2
    exit 2
    ;;
esac
