#!/usr/bin/env python3
"""Pairs a second of one rank with one thread, of two such ranks over MPI, and of one process with two threads.

    cargo build --release --features mpi
    trainer/benches/ranks.py [--rounds 5] [--steps 4] [--batch 32] [--program target/release/pairquet]

CropMAE ViT-S/16 on made pictures; the three are timed in turn. A run's first step is left out, a figure is the median over its other
steps, a ratio the median of the rounds' ratios. CPU seconds are those of whole runs, all ranks and their start included: on a busy
machine, where two processes are given more of the cores than one, they tell what the rates do not. Every rank makes the whole
optimizer step, so the smaller the batch, the less a second rank gives. Needs mpirun and nothing but Python's own library.
"""

import argparse
import json
import os
import pathlib
import resource
import statistics
import subprocess
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
ONE, TWO, THREADS = "1 rank x 1 thread", "2 ranks x 1 thread", "1 process x 2 threads"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch", type=int, default=32, help="over all ranks")
    parser.add_argument("--program", default=ROOT / "target/release/pairquet")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        subprocess.run([options.program, "demo", "--quiet", "--only", "shards", "--out", folder / "demo"],
                       check=True, stdout=subprocess.DEVNULL)
        rounds = []
        for number in range(options.rounds):
            rates, seconds = {}, {}
            for name, n_ranks, threads in [(ONE, 1, 1), (TWO, 2, 1), (THREADS, 1, 2)]:
                out = folder / f"run-{number}-{n_ranks}-{threads}"
                before = cpu_s()
                rates[name] = rate(options, folder, out, n_ranks, threads)
                seconds[name] = cpu_s() - before
            rounds.append(rates)
            print("  ".join(f"{name}: {rates[name]:.2f} pairs/s, {seconds[name]:.1f} CPU s" for name in rates), flush=True)
    for name in (TWO, THREADS):
        ratios = [rates[name] / rates[ONE] for rates in rounds]
        print(f"{name} / {ONE}: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


def cpu_s():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def rate(options, folder, out, n_ranks, threads):
    """Pairs a second after the first step."""
    values = {
        "data.path": folder / "demo/shards/images", "data.batch_size": options.batch, "data.threads": 1, "device": "cpu",
        "optim.max_steps": options.steps + 1, "run.log_every": 1,
        "run.pictures_every": 0,
    }
    command = [options.program, "train", ROOT / "configs/train/cropmae_vits16_in1k.toml", "--quiet", "--out", out]
    for key, value in values.items():
        command += ["--set", f"{key}={value}"]
    if n_ranks > 1:
        command = ["mpirun", "-n", str(n_ranks)] + command
    environment = os.environ | {
        "RAYON_NUM_THREADS": str(threads), "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    }
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return statistics.median(line["pairs_per_s"] for line in lines[1:])


if __name__ == "__main__":
    main()
