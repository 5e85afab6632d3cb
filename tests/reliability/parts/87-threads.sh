#!/bin/sh
# The ordered hand-over of a conversion in every order of its threads, by a model checker; see tests/loom.
set -u
cd "$(dirname "$0")/../../loom" || exit 1
if ! cargo fetch --locked >&2; then
    echo '| threads in every order, by loom | - | no fault | skipped: loom cannot be had |'
    exit 0
fi
if ! RUSTFLAGS='--cfg loom' CARGO_TARGET_DIR=${WORK:?}/loom cargo run --release --locked --offline; then
    echo '| threads in every order, by loom | see above | no fault | FAILED |'
    exit 1
fi
