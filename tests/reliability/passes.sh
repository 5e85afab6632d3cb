#!/bin/sh
# passes.sh MODULE LOG: whether the program's own tests in that module pass, and there are any. What they said is in LOG, and on
# standard error if they do not.
set -u
cd "$(dirname "$0")/../.." || exit 1
if cargo test --release --workspace --locked --features "${FEATURES:-mpi}" --test it "$1::" -- --nocapture >"$2" 2>&1 &&
    grep -q '^test result: ok. [1-9]' "$2"; then
    exit 0
fi
cat "$2" >&2
exit 1
