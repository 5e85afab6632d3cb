#!/usr/bin/env bash
# Every parser over its seeds, its stored inputs and random changes of both: FUZZ_SECONDS (45) a target. No input may panic,
# take more than a second for each KiB, or more memory than 256 MiB and 64 bytes a byte.
set -euo pipefail
root=$(cd "$(dirname "$0")/../../.." && pwd)
hostile=$(dirname "$PAIRQUET")/hostile
if [ ! -x "$hostile" ]; then
    echo "building the program that changes inputs" >&2
    (cd "$root" && ${CARGO:-cargo} build --release --workspace --locked --features "${FEATURES:-mpi}" --bin hostile >&2)
    hostile=${CARGO_TARGET_DIR:-$root/target}/release/hostile
fi
# What an input could still ask for must not take the machine with it.
ulimit -v 16000000
"$hostile" "${FUZZ_SECONDS:-45}" "$WORK/kept"
