#!/bin/bash
# Trains on this machine with one process a GPU, set up as torchrun sets up its workers.
#
# Command:  configs/cluster/torchrun.sh 8 configs/train/cropmae_vits16_in1k.toml runs/cropmae_in1k
# Stop:     SIGTERM or Ctrl-C; the processes write a checkpoint, and the same command goes on from it. Needs bash 5.1.
# torchrun itself does the same: torchrun --no-python --nproc-per-node 8 pairquet train CONFIG --out RUN
set -euo pipefail
set -m # each process in a group of its own: Ctrl-C reaches this script alone
n=${1:?expected the number of processes}
config=${2:?expected a configuration}
run=${3:?expected the run folder}
if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 501)); then
    echo "bash is $BASH_VERSION, expected at least 5.1 (wait -p)" >&2
    exit 2
fi
export WORLD_SIZE=$n MASTER_ADDR=127.0.0.1 MASTER_PORT=${MASTER_PORT:-29500}
pids=()
early='' asked=''
stop() {
    # Once: a second signal ends a process without its checkpoint.
    [[ -z $asked ]] || return 0
    asked=yes
    kill -TERM "${pids[@]}" 2>/dev/null || true
}
trap 'early=yes' INT TERM # until all have started
for ((rank = 0; rank < n; rank++)); do
    RANK=$rank LOCAL_RANK=$rank ${PAIRQUET:-pairquet} train "$config" --out "$run" &
    pids+=($!)
done
trap stop INT TERM
[[ -z $early ]] || stop
status=0 left=$n
while ((left > 0)); do
    code=0 ended=''
    wait -n -p ended || code=$?
    [[ -n ${ended:-} ]] || continue # a signal came, and no process has ended
    left=$((left - 1))
    # The first that fails ends the others.
    if ((code != 0 && status == 0)); then
        status=$code
        stop
    fi
done
exit "$status"
