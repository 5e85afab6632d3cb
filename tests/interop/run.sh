#!/bin/sh
# Opens shards with the tools their readers use. Usage: tests/interop/run.sh PROGRAM [SET ...]
# Without sets it makes the demo's synthetic ones, and converts real data where it is at hand. Skips, aloud, where Python or its packages cannot be had.
set -eu
program=$(realpath "$1")
shift
here=$(cd "$(dirname "$0")" && pwd)
venv=${PAIRQUET_VENV:-"$here/../../.venv"}

skip() {
    echo "SKIPPED: interop with pyarrow, DuckDB and datasets: $1"
    exit 0
}
command -v python3 >/dev/null 2>&1 || skip "no python3 here"
stamp="$venv/requirements.txt"
if ! cmp -s "$here/requirements.txt" "$stamp"; then
    echo "interop: installing the pinned Python packages into $venv"
    python3 -m venv "$venv" || skip "python3 has no venv module"
    "$venv/bin/pip" install -q --disable-pip-version-check -r "$here/requirements.txt" || skip "pip could not install them"
    cp "$here/requirements.txt" "$stamp"
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if [ $# -eq 0 ]; then
    "$program" demo --out "$work/demo" --only shards --quiet >/dev/null
    set -- "$work/demo/shards/images" "$work/demo/shards/clips"
    real=${PAIRQUET_SHARED_DIR:-"$here/../../../shared"}/data
    if [ -d "$real" ]; then
        "$program" --quiet convert imagenet "$real/imagenet/train" "$work/images" >/dev/null
        "$program" --quiet convert kinetics "$real/videos" "$work/clips" --max-bad 20% >/dev/null
        set -- "$@" "$work/images" "$work/clips"
    else
        echo "SKIPPED: interop on real pictures and clips: none at $real"
    fi
fi
export HF_HOME="$work/hf" HF_DATASETS_OFFLINE=1 HF_HUB_OFFLINE=1
"$venv/bin/python" "$here/check.py" "$@"

# The other way round: a set that `datasets` wrote trains as it is.
"$venv/bin/python" "$here/hub_set.py" "$1" "$work/hub"
"$program" --quiet train "$here/../../configs/smoke/cropmae.toml" --out "$work/run" \
    --set data.path="$work/hub" --set data.batch_size=16 --set optim.max_steps=2 >/dev/null
echo "interop: trained on the Parquet file that datasets wrote"
