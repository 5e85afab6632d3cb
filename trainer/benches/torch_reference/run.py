"""Times a training step of ours and of PyTorch in turn, step by step, in one run.

    python3 -m venv .venv && .venv/bin/pip install -r trainer/benches/torch_reference/requirements.txt
    .venv/bin/python trainer/benches/torch_reference/run.py

Every contender is a process of its own that waits for its turn, so that a machine whose speed drifts is as fast or as slow for
all. Printed are medians, each process's peak memory, and the median over the rounds of (its time / ours).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent


def ours_program():
    """Builds the bench and asks cargo where it is."""
    command = ["cargo", "bench", "--workspace", "--bench", "train_step", "--no-run", "--message-format=json"]
    built = subprocess.run(command, cwd=HERE.parents[2], check=True, stdout=subprocess.PIPE, text=True)
    messages = (json.loads(line) for line in built.stdout.splitlines())
    programs = [m["executable"] for m in messages if m.get("target", {}).get("name") == "train_step" and m.get("executable")]
    return programs[-1]


class Contender:
    def __init__(self, name, command, threads):
        environment = os.environ | {"RAYON_NUM_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
        self.name, self.reports = name, []
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def ask(self):
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended early:\n{self.process.stderr.read()}")
        return json.loads(line)

    def step(self):
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return self.ask()

    def finish(self):
        self.process.stdin.close()
        return self.ask()["peak_mib"]


def contenders(args):
    ours = args.ours or ours_program()
    sizes = ["--batch", str(args.batch), "--threads", str(args.threads), "--dropout", str(args.dropout)]
    torch = [sys.executable, str(HERE / "step.py"), *sizes]
    step = [ours, "--batch", str(args.batch), "--dropout", str(args.dropout)]
    known = {
        "ours": step,
        "ours, checkpointed": [*step, "--checkpoint"],
        "ours, bf16": [*step, "--precision", "bf16"],
        "eager": [*torch, "--attention", "explicit"],
        "sdpa": torch,
        "compile": [*torch, "--compile"],
        "sdpa, bf16": [*torch, "--precision", "bf16"],
        "compile, bf16": [*torch, "--compile", "--precision", "bf16"],
    }
    for name in args.only:
        if name not in known:
            raise SystemExit(f"contender {name!r}, expected one of {', '.join(map(repr, known))}")
    return {name: known[name] for name in args.only}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dropout", type=float, default=0.1, help="of the decoder, in all contenders")
    parser.add_argument("--ours", help="the built bench `train_step`; built by cargo if left out")
    parser.add_argument("--only", nargs="+", default=["ours", "eager", "sdpa", "compile"])
    args = parser.parse_args()
    running = [Contender(name, command, args.threads) for name, command in contenders(args).items()]
    for contender in running:  # the first steps allocate and compile
        contender.step()
        contender.step()
    for _ in range(args.rounds):
        for contender in running:
            contender.reports.append(contender.step())
            time.sleep(0.3)  # until its threads no longer spin
    first = running[0]
    print(f"batch {args.batch}, {args.threads} threads, dropout {args.dropout}, {args.rounds} rounds")
    print(f"| step | ms | lowest | CPU ms | AdamW ms | peak MiB | its time / {first.name} | its memory / {first.name} |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    first_peak = None
    for contender in running:
        peak = contender.finish()
        first_peak = first_peak or peak
        value = lambda key: statistics.median(report[key] for report in contender.reports)
        pairs = zip(contender.reports, first.reports)
        ratio = statistics.median(theirs["ms"] / ours["ms"] for theirs, ours in pairs)
        lowest = min(report["ms"] for report in contender.reports)
        print(
            f"| {contender.name} | {value('ms'):.0f} | {lowest:.0f} | {value('cpu_ms'):.0f} | {value('optimizer_ms'):.1f} "
            f"| {peak:.0f} | {ratio:.2f} | {peak / first_peak:.2f} |"
        )


if __name__ == "__main__":
    main()
