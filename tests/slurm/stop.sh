#!/usr/bin/env bash
# Take down what start.sh brought up: only the processes named in STATE_DIR/run/*.pid.
#
#   stop.sh STATE_DIR [--purge]     --purge also deletes STATE_DIR
set -euo pipefail
state='' purge=no
for argument in "$@"; do
  case $argument in
    --purge) purge=yes ;;
    -*) echo "slurm/stop: unknown option $argument" >&2; exit 2 ;;
    *) state=$argument ;;
  esac
done
[[ -n $state ]] || { sed -n '2,5s/^# \{0,1\}//p' "$0"; exit 2; }
[[ -d $state ]] || exit 0
state=$(realpath "$state")
[[ -f $state/env.sh && -d $state/run ]] || { echo "slurm/stop: $state was not made by start.sh" >&2; exit 1; }
export SLURM_CONF=$state/etc/slurm.conf

ours() { # PID: alive, and its arguments or its SLURM_CONF name this state directory
  cat "/proc/$1/cmdline" "/proc/$1/environ" 2>/dev/null | tr '\0' '\n' | grep -qF -- "$state/"
}
stop_one() { # NAME SECONDS
  local file=$state/run/$1.pid pid
  [[ -s $file ]] || return 0
  pid=$(<"$file")
  if ours "$pid"; then
    kill -TERM "$pid" 2>/dev/null || true
    for ((i = 0; i < $2 * 10; i++)); do ours "$pid" || break; sleep 0.1; done
    ours "$pid" && kill -KILL "$pid" 2>/dev/null || true
  fi
  rm -f "$file"
}

# Jobs first, while there is still a controller to end them.
if [[ -s $state/run/slurmctld.pid ]] && ours "$(<"$state/run/slurmctld.pid")"; then
  timeout 10 scancel --quiet --user="$(id -un)" 2>/dev/null || true
  for ((i = 0; i < 100; i++)); do
    [[ -n $(timeout 5 squeue -h 2>/dev/null) ]] || break
    sleep 0.1
  done
fi
# A job step outlives its slurmd by design; ours are those that write to a log of ours.
for dir in /proc/[0-9]*; do
  { [[ $(<"$dir/comm") == slurmstepd* ]] && find "$dir/fd" -lname "$state/log/*" | grep -q . &&
    kill -KILL "${dir#/proc/}"; } 2>/dev/null || true
done
for file in "$state"/run/slurmd-*.pid; do
  [[ -e $file ]] || continue
  name=$(basename "$file" .pid)
  [[ $name == *.self ]] || stop_one "$name" 10
done
# Nor does this Slurm, without cgroups, find processes of a job whose parent has died.
for dir in /proc/[0-9]*; do
  { environment=$(tr '\0' '\n' <"$dir/environ") &&
    grep -qxF "SLURM_CONF=$SLURM_CONF" <<<"$environment" &&
    grep -q '^SLURM_JOB_ID=' <<<"$environment" && kill -KILL "${dir#/proc/}"; } 2>/dev/null || true
done
stop_one slurmctld 20
stop_one slurmdbd 20
stop_one mariadbd 30
stop_one munged 5
rm -f "$state"/run/*.self.pid "$state"/run/munge.socket*
[[ $purge == no ]] || rm -rf -- "$state"
