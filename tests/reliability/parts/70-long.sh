#!/usr/bin/env bash
# Long runs: memory, threads and open files of a loader that makes 1,000,000 batches, and of a training run of some minutes, both
# as small as they can be. $LONG_BATCHES and $LONG_SECONDS change how long.
set -euo pipefail
: "${PAIRQUET:?expected the built program}" "${WORK:?expected an empty folder}"
batches=${LONG_BATCHES:-1000000}
seconds=${LONG_SECONDS:-240}
config=$(cd "$(dirname "$0")/../../.." && pwd)/configs/smoke/cropmae.toml
cd "$WORK"

"$PAIRQUET" --quiet demo --only raw --out demo >&2
"$PAIRQUET" --quiet convert imagenet demo/raw/images set --short-side 32 >&2
tiny=(--set data.path=set --set data.size=16 --set model.mask_ratio=0.75)

# Runs a command to its end, and writes KiB of memory, threads and open files, 4 times a second, to a file. Memory is what the
# program allocated: of the pages of its own file, the kernel keeps and drops what it likes.
sampled() {
    local samples=$1 code=0 pid memory threads files
    shift
    "$@" >"$samples.out" 2>"$samples.err" &
    pid=$!
    while kill -0 "$pid" 2>"$samples.gone"; do
        # It may end while it is looked at.
        memory=$(awk '/^RssAnon/ { print $2 }' "/proc/$pid/status" 2>"$samples.gone") || true
        threads=$(awk '/^Threads/ { print $2 }' "/proc/$pid/status" 2>"$samples.gone") || true
        files=$(ls "/proc/$pid/fd" 2>"$samples.gone" | wc -l) || true
        [ -z "$memory" ] || [ "$files" -eq 0 ] || echo "$memory $threads $files"
        sleep 0.25
    done >"$samples"
    wait "$pid" || code=$?
    cat "$samples.err" >&2
    return "$code"
}

# The second tenth of the samples (in the first, memory is touched for the first time) beside the last tenth. A file that is open for
# a moment, such as a checkpoint, is no growth: what counts is the number that is met most often.
rows() {
    awk -v what="$1" '
        { memory[NR] = $1; threads[NR] = $2; files[NR] = $3 }
        function mean(from, to,    i, sum) { for (i = from + 1; i <= to; i++) sum += memory[i]; return sum / (to - from) }
        function most(values, from, to,    i, n, best) {
            for (i = from + 1; i <= to; i++) if (++n[values[i]] > n[best]) best = values[i]
            return best
        }
        function row(kind, first, last, required, ok) {
            printf "| %s: %s | %s after a tenth, %s at the end | %s | %s |\n", what, kind, first, last, required, ok ? "ok" : "FAILED"
        }
        END {
            tenth = int(NR / 10)
            if (tenth < 4) { printf "| %s | %d samples | at least 40 | FAILED |\n", what, NR; exit }
            first = mean(tenth, 2 * tenth); last = mean(NR - tenth, NR)
            row("memory", sprintf("%.1f MiB", first / 1024), sprintf("%.1f MiB (%+.2f %%)", last / 1024, 100 * (last / first - 1)),
                "2 % more at most", last <= 1.02 * first)
            a = most(threads, tenth, 2 * tenth); b = most(threads, NR - tenth, NR)
            row("threads", a, b, "as many", a == b)
            a = most(files, tenth, 2 * tenth); b = most(files, NR - tenth, NR)
            row("open files", a, b, "as many", a == b)
        }' "$2"
}

echo "$batches batches of a loader" >&2
sampled loader.txt "$PAIRQUET" --json bench loader "$config" "${tiny[@]}" \
    --set data.prefetch_batches=64 --batch-size 1 --threads 1 --rounds 1 --loader-only --batches "$batches"
rows "$batches batches of the loader" loader.txt

echo "$seconds s of training" >&2
code=0
sampled train.txt "$PAIRQUET" --json train "$config" "${tiny[@]}" --out run \
    --max-hours "$(awk -v s="$seconds" 'BEGIN { print s / 3600 }')" \
    --set data.batch_size=2 --set data.threads=1 --set data.prefetch_batches=64 --set optim.max_steps=1000000000 \
    --set model.embed_dim=16 --set model.num_heads=2 --set model.depth=1 \
    --set model.decoder_embed_dim=16 --set model.decoder_depth=1 --set model.decoder_num_heads=2 \
    --set run.log_every=100 --set run.checkpoint_every=2000 --set run.pictures_every=2000 || code=$?
steps=$(sed -n 's/^  "steps": \([0-9]*\).*/\1/p' train.txt.out)
rows "${steps:-no} training steps in $seconds s" train.txt
checkpoint=$(cat run/checkpoints/latest)
ok=FAILED
[ "$code" -eq 1 ] && [ "$checkpoint" = "$(printf 'step-%08d' "$steps")" ] && ok=ok
echo "| end of the training by \`--max-hours\` | exit code $code, newest checkpoint $checkpoint | 1, the last step's | $ok |"
