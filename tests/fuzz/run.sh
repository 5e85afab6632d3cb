#!/usr/bin/env bash
# run.sh SECONDS TARGET..: each target under libFuzzer for so long, one after the other, and a table at the end. What it
# finds lies in libfuzzer/artifacts, what it learnt in libfuzzer/corpus; neither is kept in the repository. After a finding
# it goes on with the next target, and ends with 1.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
seconds=${1:?expected SECONDS TARGET..}
shift
: "${1:?expected SECONDS TARGET..}"
if ! cargo +nightly fuzz --version >/dev/null; then
    echo 'fuzz: expected a nightly toolchain (rustup toolchain install nightly) and cargo-fuzz (cargo install cargo-fuzz)' >&2
    exit 1
fi
cd "$root"
# The same versions of everything as the program has.
cp Cargo.lock "$here/libfuzzer/Cargo.lock"
# Seeds are made by the project's own writers.
${CARGO:-cargo} run --release --workspace --locked --features "${FEATURES:-mpi}" --bin hostile -- seeds "$here/libfuzzer/corpus"
cargo +nightly fuzz build --fuzz-dir "$here/libfuzzer"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
rows=()
code=0
for target; do
    mkdir -p "$here/corpus/$target"
    found=nothing
    cargo +nightly fuzz run --fuzz-dir "$here/libfuzzer" "$target" "$here/libfuzzer/corpus/$target" "$here/corpus/$target" -- \
        -max_total_time="$seconds" -timeout=20 -rss_limit_mb=4096 -max_len=65536 -print_final_stats=1 2>&1 | tee "$log" >&2 ||
        { found='see above' && code=1; }
    rows+=("$(awk -v target="$target" -v found="$found" '
        /^stat::number_of_executed_units/ { inputs = $2 }
        match($0, /cov: [0-9]+/) { edges = substr($0, RSTART + 5, RLENGTH - 5) }
        END { print "| " target " | " inputs " | " edges " | " found " |" }' "$log")")
done
printf '%s\n' '| target | inputs | edges covered | found |' '| --- | --- | --- | --- |' "${rows[@]}"
exit "$code"
