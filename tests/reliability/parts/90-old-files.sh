#!/bin/sh
# Reads the files of tests/data/v1, and refuses those of a later format.
set -u
cd "$(dirname "$0")/../../.." || exit 1
if tests/reliability/passes.sh old_files "${WORK:?}/old-files.log"; then
    echo '| files of format version 1: 19 rows, 3 splits, 2 checkpoints, 1 comparison | all read | all | ok |'
    echo '| files of a later format, of 6 kinds | all refused as newer | all | ok |'
else
    echo '| files of format version 1 | see above | all | FAILED |'
    exit 1
fi
