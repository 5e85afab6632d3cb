#!/usr/bin/env bash
# Small files and configurations that ask for more than any machine has, given to the program with 4 GiB of addresses: it
# must refuse each with the limit in its words, and never run out of memory.
set -euo pipefail
root=$(cd "$(dirname "$0")/../../.." && pwd)
hostile=$(dirname "$PAIRQUET")/hostile
if [ ! -x "$hostile" ]; then
    (cd "$root" && ${CARGO:-cargo} build --release --workspace --locked --features "${FEATURES:-mpi}" --bin hostile >&2)
    hostile=${CARGO_TARGET_DIR:-$root/target}/release/hostile
fi
bombs=$WORK/bombs
"$hostile" bombs "$bombs"
ulimit -v 4194304
failed=0

may_succeed=no # what is left out of an archive, or of a clip, is no error
row() { # what, words that it must say, exit code, what it said
    local verdict=ok measured="exit code $3"
    if [ "$3" -gt 2 ] || { [ "$3" -eq 0 ] && [ $may_succeed = no ]; } || ! grep -qE -- "$2" <<<"$4" || grep -qE 'panicked|memory allocation|out of memory' <<<"$4"; then
        verdict=FAILED failed=1
        printf '%s\n%s\n' "$1" "$4" >&2
    fi
    echo "| $1 | $measured, $(wc -c <<<"$4") bytes of words | refused within 4 GiB, naming \`${2//|/ or }\` | $verdict |"
}

try() { # what, words, program's arguments
    local what=$1 words=$2 said code=0
    shift 2
    said=$("$PAIRQUET" "$@" 2>&1) || code=$?
    row "$what" "$words" "$code" "$said"
}

for picture in "$bombs"/pictures/*; do
    name=$(basename "$picture")
    mkdir -p "$WORK/one/$name"
    cp "$picture" "$WORK/one/$name/"
    for check in full header; do
        try "picture $name, check $check" 'limit' convert imagenet "$WORK/one/$name" "$WORK/set-$name-$check" --check $check
    done
done
for file in "$bombs"/parquet/*; do
    try "Parquet $(basename "$file")" 'rows, expected at most' inspect "$file"
done
for file in "$bombs"/schemas/*; do
    try "Parquet $(basename "$file")" 'a group of .* expected at most|a schema of .* expected at most' inspect "$file"
done
for file in "$bombs"/pth/*; do
    try "weights $(basename "$file")" 'more than 4 times' import "$file" "$WORK/imported"
done
may_succeed=yes
for clip in "$bombs"/videos/*; do
    name=$(basename "$clip")
    mkdir -p "$WORK/one/$name/class"
    cp "$clip" "$WORK/one/$name/class/"
    try "clip $name that claims 10^9 frames" 'needs more than 2 GiB of memory|not a readable video' convert kinetics "$WORK/one/$name" "$WORK/set-$name" --max-bad 100%
done
for archive in "$bombs"/tars/*; do
    name=$(basename "$archive")
    try "tar $name" 'leads out of it' convert imagenet "$archive" "$WORK/set-$name" --max-bad 100%
    try "tar $name" 'links in an archive' convert imagenet "$archive" "$WORK/set-again-$name" --max-bad 100%
done

may_succeed=no

printf '[data]\npath = "nowhere"\n' >"$WORK/train.toml"
while read -r setting words; do
    try "configuration $setting" "$words" train "$WORK/train.toml" --out "$WORK/run" --set "$setting"
done <<'SETTINGS'
data.batch_size=1000000000000 data.batch_size = 1000000000000: expected at most
data.size=1000000 model.img_size is 1000000, expected 1 to 8192
data.threads=1000000000 data.threads = 1000000000: expected at most 1024
data.io_threads=1000000000 data.io_threads = 1000000000: expected at most 1024
data.prefetch_batches=1000000000 data.prefetch_batches = 1000000000: expected at most 1024
model.embed_dim=1000000000 model.embed_dim is 1000000000, expected
model.depth=1000000000 model.depth is 1000000000, expected 1 to 512
model.decoder_depth=1000000000 model.decoder_depth is 1000000000, expected 1 to 512
optim.epochs=1000000000000000 optim.epochs is 1000000000000000, expected at most
SETTINGS
printf 'extends = "/dev/zero"\n' >"$WORK/endless.toml"
try 'configuration that extends /dev/zero' 'more than 1048576 bytes' train "$WORK/endless.toml" --out "$WORK/run"
try 'convert --workers 1000000000' 'workers is 1000000000, expected at most 1024' \
    convert imagenet "$bombs/pictures" "$WORK/set-workers" --workers 1000000000
exit $failed
