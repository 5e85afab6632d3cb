#!/usr/bin/env bash
# Everything that `docs/reliability.md` has figures of, measured again. Usage: tests/reliability/run.sh [PART ...]
# A part is a program of tests/reliability/parts by its name, with or without its number and its ending: 10-kills.sh is `kills` too.
# Every part gets the built program as $PAIRQUET and an empty folder as $WORK, writes rows `| what | measured | required | ok |`
# to standard output, whose last cell is `ok`, `FAILED` or `skipped: why`, and its progress to standard error.
# The rows make one table: here, and in target/reliability.md. Exit code 1 if a row or a part failed.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
parts=$root/tests/reliability/parts
target=${CARGO_TARGET_DIR:-$root/target}
cd "$root"

chosen=()
for part in "$parts"/*.sh; do
    name=$(basename "$part" .sh)
    [ $# -gt 0 ] || chosen+=("$name")
    for wanted; do
        case $(basename "$wanted" .sh) in "$name" | "${name#*-}" | "${name%%-*}") chosen+=("$name") ;; esac
    done
done
if [ ${#chosen[@]} -eq 0 ]; then
    echo "run.sh: no part is called $*, expected some of: $(cd "$parts" && ls | tr '\n' ' ')" >&2
    exit 2
fi

if [ -z "${PAIRQUET:-}" ]; then
    echo "building the release program" >&2
    ${CARGO:-cargo} build --release --workspace --locked --features "${FEATURES:-mpi}"
    PAIRQUET=$target/release/pairquet
fi
PAIRQUET=$(realpath "$PAIRQUET")
export PAIRQUET

work=$(mktemp -d "${TMPDIR:-/tmp}/pairquet-reliability.XXXXXX")
trap 'rm -rf "$work"' EXIT
logs=$target/reliability-logs
rm -rf "$logs"
mkdir -p "$logs"
rows=$work/rows
: >"$rows"
failed=()
started=$SECONDS
for name in "${chosen[@]}"; do
    echo "== $name" >&2
    begun=$SECONDS
    export WORK=$work/$name
    mkdir "$WORK"
    code=0
    "$parts/$name.sh" 2> >(tee "$logs/$name.log" >&2) >"$work/$name.rows" || code=$?
    grep '^|' "$work/$name.rows" >>"$rows" || [ "$code" -ne 0 ] || echo "| $name | no rows | at least one | FAILED |" >>"$rows"
    if [ "$code" -ne 0 ]; then
        grep -q '| FAILED |$' "$work/$name.rows" || echo "| $name | exit code $code | 0 | FAILED |" >>"$rows"
    fi
    if [ "$code" -ne 0 ] || grep -q '| FAILED |$' "$work/$name.rows"; then
        failed+=("$name")
        cat "$work/$name.rows" >>"$logs/$name.log"
    else
        rm -f "$logs/$name.log"
    fi
    rm -rf "$WORK"
    echo "== $name: exit code $code after $((SECONDS - begun)) s" >&2
done

{
    echo "| what | measured | required | ok |"
    echo "| --- | --- | --- | --- |"
    cat "$rows"
} | tee "$target/reliability.md"
echo "== ${#chosen[@]} parts in $((SECONDS - started)) s" >&2
if [ ${#failed[@]} -gt 0 ] || grep -q '| FAILED |$' "$rows"; then
    echo "== FAILED: ${failed[*]}; what they said is in $logs" >&2
    exit 1
fi
