#!/usr/bin/env bash
# Clips that crash, hang, exhaust and confuse the process that decodes them: each costs its own clip and no other byte.
# Takes PAIRQUET (the program) and WORK (an empty folder); rows of a Markdown table go to standard output.
set -euo pipefail

failed=0
row() { # what, measured, required, whether it holds
    local ok=FAILED
    if [ "$4" = true ]; then ok=ok; else failed=1; fi
    echo "| $1 | $2 | $3 | $ok |"
}
say() { echo "containment: $*" >&2; }

# Processes that decode for the conversions of this run: they alone have both in what they were started with.
workers() {
    local dir
    for dir in /proc/[0-9]*; do
        # Processes come and go meanwhile.
        if { tr '\0' '\n' <"$dir/environ" | grep -q "^PAIRQUET_WORKER_FAULT=.*:$victim$" &&
            tr '\0' '\n' <"$dir/cmdline" | grep -qx clip-worker; } 2>/dev/null; then
            basename "$dir"
        fi
    done
}

# Shards by name and checksum, and the manifest but for the word that says why one clip was left out, and for its own checksum.
sums() {
    (cd "$1" && sha256sum ./*.parquet &&
        sed -E -e '/^  "sha256": /d' -e 's/"(crash|timeout|out of memory|nonsense|not a video)": 1/"left out": 1/' manifest.json | sha256sum)
}

victim=victim_$$_$RANDOM
say "making clips"
"$PAIRQUET" demo --quiet --only shards --out "$WORK/demo" >/dev/null
mkdir -p "$WORK/src/class"
n=0
while read -r clip; do
    n=$((n + 1))
    name=$(basename "$clip" .mp4)_$n
    if [ $n = 3 ]; then name=$victim; fi
    cp "$clip" "$WORK/src/class/$name.mp4"
done < <(find "$WORK/demo/raw/clips" -name '*.mp4' | sort | head -n 12)
victim_file=$WORK/src/class/$victim.mp4

convert() { "$PAIRQUET" --json --quiet convert kinetics "$WORK/src" "$@"; }

# What must come out: the set without the victim, which has its size all the same, for sizes decide on the layout.
cp "$victim_file" "$WORK/whole.mp4"
head -c "$(stat -c %s "$WORK/whole.mp4")" /dev/zero >"$victim_file"
convert "$WORK/without" --shard-size 256KiB --max-bad 1 --in-process >/dev/null
cp "$WORK/whole.mp4" "$victim_file"
without=$(sums "$WORK/without")

check_fault() { # fault, what the report must say of it, the fault in words, limits
    local fault=$1 reason=$2 report dst=$WORK/$1 holds=false left measured
    say "$fault"
    report=$(PAIRQUET_WORKER_FAULT=$fault:$victim convert "$dst" --shard-size 256KiB --max-bad 1 \
        "${@:4}" 2>"$WORK/stderr" || true)
    left=$(workers | wc -l)
    if grep -q "\"key\": \"class/$victim\"" <<<"$report" && grep -qF "$reason" <<<"$report" &&
        [ "$(grep -c '"reason"' <<<"$report")" = 1 ] && [ "$(sums "$dst")" = "$without" ] && [ "$left" = 0 ]; then
        holds=true
        measured="left out: \"$reason\"; the other $((n - 1)) clips byte-identical"
    else
        cat "$WORK/stderr" >&2
        measured="$(sed -n 's/.*"reason": //p' <<<"$report" | tr '|\n' '/ ' | head -c 200); $left processes left"
    fi
    row "a clip makes its decoder $3" "$measured" "it alone is left out, and named" $holds
}
check_fault crash "the video library crashed (SIGSEGV)" "crash (SIGSEGV)"
check_fault abort "the video library crashed (SIGABRT)" "abort (SIGABRT)"
check_fault panic "ended with exit code 101" panic
check_fault hang "no frame within 3 s" hang --clip-timeout 3
check_fault grow "needs more than 256 MiB of memory" "take all memory" --clip-memory 256MiB
check_fault garbage "sent a message of kind" "send garbage"

say "a worker that its earlier clips have broken"
PAIRQUET_WORKER_FAULT=crash-if-used:$victim convert "$WORK/used" --shard-size 256KiB --workers 1 --sorted \
    >"$WORK/used.json" || true
convert "$WORK/sound" --shard-size 256KiB --in-process --sorted >/dev/null
same=false
if [ "$(sums "$WORK/used" 2>/dev/null)" = "$(sums "$WORK/sound")" ]; then same=true; fi
row "a decoder that earlier clips have broken crashes" "$(grep -c '"reason"' "$WORK/used.json" || true) clips left out" \
    "none is left out" $same

say "a conversion killed while its decoder hangs"
PAIRQUET_WORKER_FAULT=hang:$victim "$PAIRQUET" --quiet convert kinetics "$WORK/src" "$WORK/killed" --workers 1 \
    >/dev/null 2>&1 &
parent=$!
for _ in $(seq 600); do
    if [ -n "$(workers)" ]; then break; fi
    sleep 0.1
done
started=$(workers | wc -l)
sleep 1
kill -KILL $parent
wait $parent 2>/dev/null || true
sleep 2
left=$(workers | wc -l)
row "SIGKILL of a conversion whose decoder hangs" "$started decoders, $left after 2 s" "none after 2 s" \
    "$([ "$started" -gt 0 ] && [ "$left" = 0 ] && echo true || echo false)"

say "what it costs"
# Time on the cores of the conversion and its workers, which other processes touch less than the clock's.
cpu_seconds() {
    local TIMEFORMAT='%U %S'
    { time convert "$@" >/dev/null 2>&1; } 2>&1 | awk '{ print $1 + $2 }'
}
# Made clips are small, so this is the worst case: what a frame costs to send is a tenth of what it costs to decode.
for copy in $(seq 24); do
    mkdir "$WORK/src/copy_$copy"
    for clip in "$WORK"/src/class/*.mp4; do cp "$clip" "$WORK/src/copy_$copy/$(basename "$clip")"; done
done
ratios=$(for round in 1 2 3; do
    here=$(cpu_seconds "$WORK/cost_here_$round" --in-process)
    apart=$(cpu_seconds "$WORK/cost_apart_$round")
    awk -v here="$here" -v apart="$apart" 'BEGIN { printf "%.3f\n", apart / here }'
    [ "$(sums "$WORK/cost_here_$round")" = "$(sums "$WORK/cost_apart_$round")" ] || echo differ
done | sort)
median=$(sed -n 2p <<<"$ratios")
same=false
if ! grep -q differ <<<"$ratios"; then same=true; fi
row "shards of $((n * 25)) clips with and without processes of their own" "$([ $same = true ] && echo equal || echo differ)" \
    "byte-identical" $same
row "CPU time of that with, as a multiple of without (median of 3 pairs)" "$median" "at most 1.3" \
    "$(awk -v m="$median" 'BEGIN { print (m > 0 && m <= 1.3) ? "true" : "false" }')"
exit $failed
