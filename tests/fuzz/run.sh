#!/usr/bin/env bash
# run.sh SECONDS TARGET..: each target under libFuzzer for so long, one after the other. What it finds lies in
# libfuzzer/artifacts, what it learnt in libfuzzer/corpus; neither is kept in the repository.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
seconds=$1
shift
cd "$root"
# The same versions of everything as the program has.
cp Cargo.lock "$here/libfuzzer/Cargo.lock"
# Seeds are made by the project's own writers.
${CARGO:-cargo} run --release --workspace --locked --features "${FEATURES:-mpi}" --bin hostile -- seeds "$here/libfuzzer/corpus"
for target; do
    mkdir -p "$here/corpus/$target"
    cargo +nightly fuzz run --fuzz-dir "$here/libfuzzer" "$target" "$here/libfuzzer/corpus/$target" "$here/corpus/$target" -- \
        -max_total_time="$seconds" -timeout=20 -rss_limit_mb=4096 -max_len=65536 -print_final_stats=1
done
