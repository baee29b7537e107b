#!/bin/sh
# A SLURM of two nodes on this one machine, for tests: tests/slurm.sh start FOLDER | stop FOLDER. Needs root, and
# Debian's slurm-wlm and munge.
set -eu
folder=$2
export SLURM_CONF=$folder/slurm.conf
case $1 in
start)
    for program in munged slurmctld slurmd sbatch; do
        command -v $program >/dev/null || { echo "$program is not installed: apt install slurm-wlm munge" >&2; exit 3; }
    done
    [ "$(id -u)" = 0 ] || { echo "SLURM's daemons need root" >&2; exit 3; }
    mkdir -p "$folder/state" "$folder/n1" "$folder/n2" /run/munge
    host=$(hostname -s)
    cpus=$(nproc --all) # nproc alone heeds OMP_NUM_THREADS
    cat >"$SLURM_CONF" <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
CryptoType=crypto/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=1
MinJobAge=600
KillWait=5
ReturnToService=2
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd-%n.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd-%n.log
SlurmctldPort=17000
NodeName=n[1-2] NodeHostname=$host NodeAddr=127.0.0.1 Port=[17001-17002] CPUs=$cpus RealMemory=2000 State=UNKNOWN
PartitionName=test Nodes=n[1-2] Default=YES MaxTime=INFINITE State=UP
CONF
    [ -f "$folder/munge.key" ] || { dd if=/dev/urandom of="$folder/munge.key" bs=1024 count=1 2>/dev/null; }
    chmod 600 "$folder/munge.key"
    munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" \
        --log-file="$folder/munged.log" --seed-file="$folder/munged.seed"
    slurmctld -c
    slurmd -c -N n1
    slurmd -c -N n2
    for _ in $(seq 60); do
        [ "$(sinfo -h -t idle -o %D 2>/dev/null)" = 2 ] && exit 0
        sleep 0.5
    done
    echo "the nodes did not come up:" >&2
    tail -n 5 "$folder"/*.log >&2
    exit 1
    ;;
stop)
    scancel --full --state=RUNNING 2>/dev/null || true
    scontrol shutdown 2>/dev/null || true
    for pid in "$folder"/*.pid; do
        [ -f "$pid" ] && kill "$(cat "$pid")" 2>/dev/null || true
    done
    ;;
esac
