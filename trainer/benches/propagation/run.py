#!/usr/bin/env python3
"""`pairquet eval davis` beside the same computation in PyTorch, sequence by sequence in turn, on the same cores.

    cargo build --release --workspace
    python -m venv .venv && .venv/bin/pip install -r trainer/benches/propagation/requirements.txt
    .venv/bin/python trainer/benches/propagation/run.py --data ../shared/data/davis --checkpoint encoder.safetensors

Both read the frames, encode, carry and write label maps; neither scores unless --scores is given, which also compares J and F.
Ours scores always, which counts against it. Each is a process of its own, so the memory is what the system saw at its peak,
and the CPU time is that of all threads. Without torch and timm it says so and ends.
"""

import argparse
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[2]


def run(command, threads):
    """Seconds, CPU seconds, peak memory in MiB, and what it printed."""
    counts = {name: str(threads) for name in ("OMP_NUM_THREADS", "RAYON_NUM_THREADS")}
    started = time.monotonic()
    with tempfile.TemporaryFile() as printed:
        process = subprocess.Popen([str(word) for word in command], stdout=printed, env=os.environ | counts)
        _, status, usage = os.wait4(process.pid, 0)
        if status != 0:
            sys.exit(f"{command[0]} failed: status {status}")
        seconds = time.monotonic() - started
        printed.seek(0)
        return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, json.load(printed)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=pathlib.Path, required=True, help="DAVIS in the layout of its 480p release")
    parser.add_argument("--checkpoint", type=pathlib.Path, required=True, help="an encoder as safetensors, timm's names")
    parser.add_argument("--sequences", nargs="*", help="by default those of ImageSets/2017/val.txt")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--scores", action="store_true", help="score both and compare")
    parser.add_argument("--pairquet", type=pathlib.Path, default=ROOT / "target/release/pairquet")
    options = parser.parse_args()
    missing = [name for name in ("numpy", "torch", "timm", "safetensors", "PIL") if importlib.util.find_spec(name) is None]
    if missing:
        print(f"SKIPPED: no {', '.join(missing)} in {sys.executable}", file=sys.stderr)
        return
    listed = (options.data / "ImageSets/2017/val.txt").read_text().split()
    totals = {"torch": [0, 0, 0], "pairquet": [0, 0, 0]}
    for name in options.sequences or listed:
        with tempfile.TemporaryDirectory() as work:
            work = pathlib.Path(work)
            (work / "list").write_text(f"JPEGImages/480p/{name} Annotations/480p/{name}\n")
            torch = [sys.executable, HERE / "reference.py", "--data", options.data, "--checkpoint", options.checkpoint]
            torch += ["--sequences", name, "--heads", options.heads, "--threads", options.threads, "--masks", work / "torch"]
            torch += [] if options.scores else ["--no-scores"]
            ours = [options.pairquet, "--json", "-q", "eval", "davis", "--data", options.data, "--list", work / "list"]
            ours += ["--checkpoint", options.checkpoint, "--num-heads", options.heads, "--device", "cpu"]
            ours += ["--out", work, "--masks", work / "pairquet"]
            results = {"torch": run(torch, options.threads), "pairquet": run(ours, options.threads)}
            for who, (seconds, cpu, memory, result) in results.items():
                total = totals[who]
                totals[who] = [total[0] + seconds, total[1] + cpu, max(total[2], memory)]
                part = {k: round(v, 1) for k, v in result["seconds"].items()} if who == "torch" else ""
                print(f"{name:16} {who:9} {seconds:8.1f} s  {cpu:8.1f} s of CPU  {memory:7.0f} MiB  {part}", flush=True)
            if options.scores:
                theirs = results["torch"][3]["objects"]
                objects = results["pairquet"][3]["scores"]["sequences"][0]["objects"]
                for object, scored in zip(theirs, objects):
                    mine = scored["original"]["j"]["mean"], scored["original"]["f"]["mean"]
                    print(f"  {object['object']}: J, F {object['J']:.6f}, {object['F']:.6f}; pairquet {mine[0]:.6f}, {mine[1]:.6f}")
    (t_seconds, t_cpu, t_memory), (p_seconds, p_cpu, p_memory) = totals["torch"], totals["pairquet"]
    print(f"\ntorch    {t_seconds:8.1f} s  {t_cpu:8.1f} s of CPU  {t_memory:7.0f} MiB")
    print(f"pairquet {p_seconds:8.1f} s  {p_cpu:8.1f} s of CPU  {p_memory:7.0f} MiB")
    print(f"torch / pairquet: {t_seconds / p_seconds:.2f} in time, {t_cpu / p_cpu:.2f} in CPU time")


if __name__ == "__main__":
    main()
