"""Checks every operation on a GPU and times training steps beside PyTorch, within ten minutes.

    cargo bench --workspace --features cuda --bench gpu --no-run      # where there is a toolkit; a GPU is not needed
    python3 trainer/benches/gpu/run.py --ours THE_BUILT_PROGRAM       # where there is a GPU and PyTorch

The program looks for libcuda.so.1, libcublas.so.13, libcublasLt.so.13 and libcurand.so.10. What PyTorch brought as
packages is added to LD_LIBRARY_PATH here. Contenders run one after the other for each size, so that all meet the same GPU;
what there is no time left for is printed as not run. Ends with 1 if an operation is wrong or ours does not run.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ENCODERS = ["vit_b16", "vit_s16"]
BATCHES = [256, 128, 512]


class Clock:
    def __init__(self, seconds):
        self.end = time.monotonic() + seconds

    def left(self):
        return self.end - time.monotonic()


def environment():
    """Where pip put CUDA's libraries, beside those of the system."""
    folders = [os.environ.get("LD_LIBRARY_PATH", "")]
    try:
        import nvidia

        for root in nvidia.__path__:
            folders += [str(folder) for folder in Path(root).glob("**/lib")]
    except ImportError:
        pass
    folders += ["/usr/local/cuda/lib64", "/usr/local/nvidia/lib64"]
    return os.environ | {"LD_LIBRARY_PATH": ":".join(filter(None, folders)), "CUDA_MODULE_LOADING": "LAZY"}


def run(command, clock):
    """Exit status (None out of time) and the JSON objects that were printed."""
    if clock.left() < 10:
        return None, []
    try:
        done = subprocess.run(
            command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=clock.left()
        )
    except subprocess.TimeoutExpired:
        return None, []
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode != 0:
        print(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stderr[-2000:]}", file=sys.stderr)
    return done.returncode, lines


def check(ours, clock):
    status, lines = run([ours, "check"], clock)
    wrong = [line for line in lines if not line["ok"]]
    print(f"## Operations against the CPU: {len(lines)} checked, {len(wrong)} wrong\n")
    for dtype in ["F32", "BF16"]:
        errors = [line["error"] for line in lines if line["dtype"] == dtype]
        if errors:
            print(f"largest relative error in {dtype}: {max(errors):.2e}")
    for line in wrong:
        print(f"WRONG {line['check']} in {line['dtype']}: {line['error']:.2e}, allowed {line['tolerance']:.0e}")
    print()
    return status == 0 and not wrong


def steps(ours, args, clock):
    status, lines = run([ours, "peak"], clock)
    peak = lines[0]["peak_tflops"] if status == 0 and lines else None
    print(f"## Steps in bf16 (peak of a product of 8192 x 8192: {peak and round(peak)} TFLOP/s)\n")
    print("| encoder | batch | program | ms | pairs/s | TFLOP/s | of the peak | GiB | its time / ours |")
    print("| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    fine = peak is not None
    torch = [sys.executable, HERE / "torch_step.py"]
    for batch in args.batch:
        for encoder in args.encoder:
            size = ["--encoder", encoder, "--batch", str(batch), "--steps", str(args.steps)]
            contenders = {
                "ours": [ours, "step", *size],
                "PyTorch eager, SDPA": [*torch, *size],
                "torch.compile": [*torch, *size, "--compile"],
            }
            ours_ms, tflop = None, None
            for name, command in contenders.items():
                status, lines = run(command, clock)
                if status != 0 or not lines:
                    why = "not run: out of time" if status is None else "failed"
                    print(f"| {encoder} | {batch} | {name} | {why} | | | | | |", flush=True)
                    fine = fine and (name != "ours" or status is None)
                    continue
                report = lines[-1]
                rows = {name: report["ms"]}
                if name == "ours":
                    # The same arithmetic for all: operations of the products, by the program that counts them.
                    ours_ms, tflop = report["ms"], report["tflop"]
                    rows["ours, nothing read in a step"] = report["ms_unread"]
                for row, ms in rows.items():
                    rate = tflop and tflop / ms * 1e3
                    cells = [
                        encoder,
                        batch,
                        row,
                        f"{ms:.1f}",
                        f"{batch / ms * 1e3:.0f}",
                        f"{rate:.0f}" if rate else "",
                        f"{100 * rate / peak:.0f} %" if rate and peak else "",
                        f"{report['peak_gib']:.1f}",
                        f"{ms / ours_ms:.2f}" if ours_ms else "",
                    ]
                    print("| " + " | ".join(map(str, cells)) + " |", flush=True)
    print()
    return fine


def profile(ours, clock):
    status, lines = run([ours, "profile", "--encoder", "vit_b16", "--batch", "256"], clock)
    print("## Where a step of ViT-B/16 at batch 256 goes, slowest first\n")
    print("| operation | times a step | forward us | backward us | ms of a step |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for line in lines:
        print(
            f"| {line['profile']} | {line['times']} | {line['forward_us']:.0f} | {line['backward_us']:.0f} "
            f"| {line['ms_of_a_step']:.1f} |"
        )
    print(flush=True)
    return status in (0, None)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--ours", required=True, type=Path, help="the built bench `gpu`")
    parser.add_argument("--seconds", type=float, default=560.0, help="after which nothing more is begun or waited for")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--encoder", nargs="+", default=ENCODERS, choices=ENCODERS)
    args = parser.parse_args()
    if not args.ours.is_file():
        raise SystemExit(f"--ours {args.ours}, expected the built bench `gpu`")
    clock = Clock(args.seconds)
    ours = args.ours.resolve()
    if not check(ours, clock):
        raise SystemExit("operations are wrong or did not run: times would mean nothing")
    fine = profile(ours, clock)
    fine = steps(ours, args, clock) and fine
    raise SystemExit(0 if fine else 1)


if __name__ == "__main__":
    main()
