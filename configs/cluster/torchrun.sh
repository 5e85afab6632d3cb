#!/bin/bash
# Trains on this machine with one process a GPU, set up as torchrun sets up its workers.
#
# Command:  configs/cluster/torchrun.sh 8 configs/train/cropmae_vits16_in1k.toml runs/cropmae_in1k
# torchrun itself does the same: torchrun --no-python --nproc-per-node 8 pairquet train CONFIG --out RUN
set -euo pipefail
n=${1:?expected the number of processes}
config=${2:?expected a configuration}
run=${3:?expected the run folder}
export WORLD_SIZE=$n MASTER_ADDR=127.0.0.1 MASTER_PORT=${MASTER_PORT:-29500}
pids=()
stop() { kill -TERM "${pids[@]}" 2>/dev/null || true; }
trap stop INT TERM
for ((rank = 0; rank < n; rank++)); do
    RANK=$rank LOCAL_RANK=$rank ${PAIRQUET:-pairquet} train "$config" --out "$run" &
    pids+=($!)
done
status=0
for _ in "${pids[@]}"; do
    # The first that fails ends the others.
    wait -n || { status=$?; stop; }
done
exit "$status"
