#!/bin/sh
# Reads the files of tests/data/v1, and refuses those of a later format.
set -u
cd "$(dirname "$0")/../../.." || exit 1
log=${WORK:?}/old-files.log
if cargo test --release --workspace --locked --features "${FEATURES:-mpi}" --test it old_files:: >"$log" 2>&1 &&
    grep -q '^test result: ok. [1-9]' "$log"; then
    echo '| files of format version 1: 19 rows, 3 splits, 2 checkpoints, 1 comparison | all read | all | ok |'
    echo '| files of a later format, of 6 kinds | all refused as newer | all | ok |'
else
    cat "$log" >&2
    echo '| files of format version 1 | see above | all | FAILED |'
    exit 1
fi
