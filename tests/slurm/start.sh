#!/usr/bin/env bash
# Bring up a throw-away Slurm on the loopback interface, with fake GPUs, for tests.
#
#   start.sh STATE_DIR [--nodes N] [--gpus N] [--cpus N] [--mem MB] [--port P]
#            [--requeue SECONDS] [--accounting]
#   source STATE_DIR/env.sh        # SLURM_CONF, so that sbatch, squeue, sacct … talk to it
#   stop.sh STATE_DIR
#
# Needs root, and apt where Slurm is missing (tried on Debian 12, Slurm 22.05, alone). Everything it writes lies under STATE_DIR; a second call with
# the same directory restarts only what is not running. Ends with 77 where Slurm cannot be had at
# all (no root, no packages, no network), with 1 where it should have worked.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin # where Slurm's daemons are, and not in everybody's PATH

usage() { sed -n '2,10s/^# \{0,1\}//p' "$0"; exit "${1:-0}"; }
die() { echo "slurm/start: $*" >&2; exit 1; }
impossible() { echo "slurm/start: $*" >&2; exit 77; }

nodes=2 gpus=4 cpus=8 mem=16000 port=16800 requeue=10 accounting=no state=
while (($#)); do
  case $1 in
    --nodes) nodes=$2; shift 2 ;;
    --gpus) gpus=$2; shift 2 ;;
    --cpus) cpus=$2; shift 2 ;;
    --mem) mem=$2; shift 2 ;;
    --port) port=$2; shift 2 ;;
    --requeue) requeue=$2; shift 2 ;;
    --accounting) accounting=yes; shift ;;
    -h|--help) usage ;;
    -*) die "unknown option $1" ;;
    *) [[ -z $state ]] || die "one state directory only"; state=$1; shift ;;
  esac
done
[[ -n $state ]] || usage 2
((EUID == 0)) || impossible "run as root: slurmd starts jobs as other users"
((nodes >= 1 && nodes <= 64)) || die "--nodes must be 1 to 64"

# --- packages -------------------------------------------------------------------------------
missing=()
command -v slurmctld >/dev/null && command -v slurmd >/dev/null && command -v sbatch >/dev/null || missing+=(slurm-wlm)
command -v munged >/dev/null || missing+=(munge)
if [[ $accounting == yes ]]; then
  command -v slurmdbd >/dev/null || missing+=(slurmdbd)
  command -v mariadbd >/dev/null || missing+=(mariadb-server)
fi
if ((${#missing[@]})); then
  command -v apt-get >/dev/null || impossible "please install: ${missing[*]}"
  # Keep the packages' own services from starting: this script starts its own copies.
  policy=/usr/sbin/policy-rc.d made_policy=no
  if [[ ! -e $policy ]]; then printf '#!/bin/sh\nexit 101\n' >"$policy"; chmod +x "$policy"; made_policy=yes; fi
  restore_policy() { [[ $made_policy == no ]] || rm -f "$policy"; }
  trap restore_policy EXIT
  export DEBIAN_FRONTEND=noninteractive
  # Another apt-get may be at work; of its lists it knows no waiting. tests/browser.py takes the same lock.
  apt=(flock "${TMPDIR:-/tmp}/timewalk-apt.$(id -u).lock" apt-get -o DPkg::Lock::Timeout=120)
  install=("${apt[@]}" install -y --no-install-recommends "${missing[@]}")
  "${install[@]}" >/dev/null || { "${apt[@]}" update >/dev/null && "${install[@]}" >/dev/null; } ||
    impossible "could not install ${missing[*]} with apt-get: no network, or not in the sources"
  restore_policy; trap - EXIT
fi

# --- directories ----------------------------------------------------------------------------
mkdir -p "$state"
state=$(realpath "$state")
[[ ${#state} -le 70 ]] || die "STATE_DIR is too long for a Unix socket path (70 characters at most): $state"
mkdir -p "$state"/{etc,run,log,dev,ctld,munge}
chmod 755 "$state" "$state"/{etc,run,log,dev}
chmod 700 "$state/munge"
host=$(hostname -s)
export SLURM_CONF=$state/etc/slurm.conf

alive() { # NAME: is the process of run/NAME.pid still one of ours (its arguments or SLURM_CONF name STATE_DIR)?
  local pid
  [[ -s $state/run/$1.pid ]] || return 1
  pid=$(<"$state/run/$1.pid")
  cat "/proc/$pid/cmdline" "/proc/$pid/environ" 2>/dev/null | tr '\0' '\n' | grep -qF -- "$state/"
}
wait_for() { # SECONDS WHAT COMMAND…
  local seconds=$1 what=$2 deadline=$((SECONDS + $1)); shift 2
  until "$@" >/dev/null 2>&1; do
    ((SECONDS < deadline)) || die "$what not ready after ${seconds}s; see $state/log"
    sleep 0.2
  done
}
launch() { # NAME COMMAND…   in the foreground mode of each daemon, detached from this shell
  local name=$1; shift
  alive "$name" && return 0
  setsid "$@" >>"$state/log/$name.out" 2>&1 </dev/null &
  echo $! >"$state/run/$name.pid"
}

# --- configuration (written once; delete STATE_DIR for another shape) -------------------------
if [[ ! -s $SLURM_CONF ]]; then
  gres_type='' gres_node=''
  if ((gpus > 0)); then
    gres_type='GresTypes=gpu' gres_node=" Gres=gpu:$gpus"
    for ((i = 0; i < gpus; i++)); do ln -sfn /dev/null "$state/dev/fakegpu$i"; done  # slurmd wants device files
    last=$((gpus - 1)); span="[0-$last]"; ((last == 0)) && span=0
    echo "Name=gpu File=$state/dev/fakegpu$span" >"$state/etc/gres.conf"
  fi
  storage='AccountingStorageType=accounting_storage/none'
  if [[ $accounting == yes ]]; then
    storage="AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$((port + 2))
AccountingStoragePass=$state/run/munge.socket
AccountingStoreFlags=job_comment"
    ((gpus > 0)) && storage+=$'\nAccountingStorageTRES=gres/gpu'
  fi
  {
    cat <<CONF
ClusterName=loopback
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$state/run/munge.socket,cred_expire=$requeue
CryptoType=crypto/munge
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=5
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=$((mem / cpus))
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,sched_min_interval=0,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=3
OverTimeLimit=0
MinJobAge=1800
MaxArraySize=1001
SlurmctldTimeout=30
SlurmdTimeout=300
InactiveLimit=0
StateSaveLocation=$state/ctld
SlurmctldPidFile=$state/run/slurmctld.self.pid
SlurmdPidFile=$state/run/slurmd-%n.self.pid
SlurmctldLogFile=$state/log/slurmctld.log
SlurmdLogFile=$state/log/slurmd-%n.log
SlurmdSpoolDir=$state/spool-%n
$storage
$gres_type
CONF
    for ((n = 1; n <= nodes; n++)); do
      mkdir -p "$state/spool-node$n"
      echo "NodeName=node$n NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + 10 + n)) CPUs=$cpus RealMemory=$mem$gres_node State=UNKNOWN"
    done
    echo "PartitionName=gpu Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=60 PriorityTier=10 State=UP"
    echo "PartitionName=preempt Nodes=ALL MaxTime=INFINITE DefaultTime=60 PriorityTier=1 PreemptMode=REQUEUE GraceTime=5 State=UP"
  } >"$SLURM_CONF"
  if [[ $accounting == yes ]]; then
    cat >"$state/etc/slurmdbd.conf" <<CONF
AuthType=auth/munge
AuthInfo=socket=$state/run/munge.socket
DbdHost=$host
DbdAddr=127.0.0.1
DbdPort=$((port + 2))
CommunicationParameters=NoInAddrAny
SlurmUser=root
PidFile=$state/run/slurmdbd.self.pid
LogFile=$state/log/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$((port + 3))
StorageUser=slurm
StoragePass=loopback
StorageLoc=slurm_acct
CONF
    chmod 600 "$state/etc/slurmdbd.conf"
  fi
  # Snakemake's job step clears SLURM_* (SLURM_CONF with it): these put it back.
  mkdir -p "$state/bin"
  for program in srun scontrol; do
    printf '#!/bin/sh\nSLURM_CONF=%s exec %s "$@"\n' "$SLURM_CONF" "$(command -v $program)" >"$state/bin/$program"
    chmod +x "$state/bin/$program"
  done
  cat >"$state/env.sh" <<CONF
export SLURM_CONF=$SLURM_CONF
case :\$PATH: in *:$state/bin:*) ;; *) export PATH=$state/bin:\$PATH ;; esac
CONF
fi
grep -q accounting_storage/slurmdbd "$SLURM_CONF" && accounting=yes || accounting=no
port=$(sed -n 's/^SlurmctldPort=//p' "$SLURM_CONF")
mapfile -t node_names < <(sed -n 's/^NodeName=\([^ ]*\).*/\1/p' "$SLURM_CONF")

# --- munge ----------------------------------------------------------------------------------
if [[ ! -s $state/munge/key ]]; then
  (umask 077; dd if=/dev/urandom of="$state/munge/key" bs=1024 count=1 status=none)
fi
munge_args=(--foreground --force --num-threads=2
  --socket="$state/run/munge.socket" --key-file="$state/munge/key" --seed-file="$state/munge/seed"
  --log-file="$state/log/munged.log" --pid-file="$state/run/munged.self.pid")
alive munged || rm -f "$state/run/munge.socket"*
launch munged munged "${munge_args[@]}"
wait_for 300 munged bash -c "munge -S '$state/run/munge.socket' -n | unmunge -S '$state/run/munge.socket'"

# --- accounting -----------------------------------------------------------------------------
if [[ $accounting == yes ]]; then
  db=$state/db
  sql=(mariadb --no-defaults --socket="$state/run/db.sock" -uroot)
  if [[ ! -d $db/mysql ]]; then
    mkdir -p "$db"
    mariadb-install-db --no-defaults --user=root --datadir="$db" --auth-root-authentication-method=normal \
      --skip-test-db >"$state/log/db-install.out" 2>&1 || die "mariadb-install-db failed; see $state/log/db-install.out"
  fi
  launch mariadbd mariadbd --no-defaults --user=root --datadir="$db" --socket="$state/run/db.sock" \
    --bind-address=127.0.0.1 --port=$((port + 3)) --pid-file="$state/run/mariadbd.self.pid" \
    --innodb-buffer-pool-size=64M --innodb-log-file-size=32M --innodb-lock-wait-timeout=900 --skip-log-bin
  wait_for 300 MariaDB "${sql[@]}" -e 'select 1'
  "${sql[@]}" -e "create database if not exists slurm_acct;
    create user if not exists 'slurm'@'127.0.0.1' identified by 'loopback';
    create user if not exists 'slurm'@'localhost' identified by 'loopback';
    grant all on slurm_acct.* to 'slurm'@'127.0.0.1'; grant all on slurm_acct.* to 'slurm'@'localhost';"
  launch slurmdbd slurmdbd -D
  wait_for 300 slurmdbd sacctmgr -n show cluster
  sacctmgr -n -P show cluster format=Cluster | grep -qx loopback ||
    sacctmgr -i add cluster loopback >/dev/null
  sacctmgr -n -P show account format=Account | grep -qx tests ||
    { sacctmgr -i add account tests Cluster=loopback >/dev/null && sacctmgr -i add user root Account=tests >/dev/null; }
fi

# --- Slurm ----------------------------------------------------------------------------------
launch slurmctld slurmctld -D -f "$SLURM_CONF"
wait_for 300 slurmctld scontrol ping
for node in "${node_names[@]}"; do
  launch "slurmd-$node" slurmd -D -N "$node" -f "$SLURM_CONF"
done
all_idle() { # no node unknown, down or not responding
  local states; states=$(sinfo -h -N -o '%T' | sort -u)
  [[ -n $states ]] && ! grep -qE 'unk|down|\*|drain' <<<"$states"
}
wait_for 300 "nodes" all_idle
sinfo -o '%P %D %t %c %m %G'
echo "ready: source $state/env.sh"
