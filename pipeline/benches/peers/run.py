#!/usr/bin/env python3
"""Pairquet beside its peers: interleaved rounds on the same cores and the same files.

    cargo build --release --workspace
    pipeline/benches/peers/setup.sh .venv
    .venv/bin/python pipeline/benches/peers/run.py images [FOLDER]
    .venv/bin/python pipeline/benches/peers/run.py clips [FOLDER]

Every peer is a process of its own that stays, idle with its queues full while the others are timed (peer.py). Ours is
`pairquet bench loader`, on shards of the original bytes. Its batches are 8-bit, to be normalised on the device; with
"float32" they are normalised on the CPU, as the peers' are. "short side 256" is what reduced shards would give. A peer that
is not installed or does not start is skipped, aloud. Figures are medians over the rounds; the CPU time is that of all
processes of a peer.
"""

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
TICKS = os.sysconf("SC_CLK_TCK")
sys.path.insert(0, str(HERE))
from peer import PEERS  # noqa: E402


def say(*words):
    print(*words, file=sys.stderr, flush=True)


def cpu_seconds(session):
    """Time on a core of all processes of a session."""
    total = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue  # it has ended
        if int(fields[3]) == session:
            total += sum(int(ticks) for ticks in fields[11:15])  # its own and its ended children's
    return total / TICKS


class Peer:
    """A process that answers `go`."""

    def __init__(self, name, work, args):
        self.name, self.rates, self.cpu_ms = name, [], []
        self.log = open(work / f"{name}.log", "w")
        command = [sys.executable, HERE / "peer.py", name, work, "--workers", args.workers, "--batch-size", args.batch_size]
        self.process = subprocess.Popen([str(word) for word in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=self.log, text=True, start_new_session=True, cwd=work)
        answer = self.answer()
        self.version, self.note = answer["ready"], f"mean {answer['mean']:+.3f}, deviation {answer['std']:.3f}"

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            self.close()
            last = (Path(self.log.name).read_text().strip().splitlines() or ["no message"])[-1]
            raise RuntimeError(last)
        return json.loads(line)

    def round(self, seconds):
        before = cpu_seconds(self.process.pid)
        self.process.stdin.write(f"go {seconds}\n")
        self.process.stdin.flush()
        answer = self.answer()
        self.rates.append(answer["pairs"] / answer["seconds"])
        # What is thrown away first was made before.
        self.cpu_ms.append(1e3 * (cpu_seconds(self.process.pid) - before) / max(1, answer["pairs"]))

    def close(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # with its workers
        self.process.wait()


class Ours:
    """`pairquet bench loader`, a process a round."""

    def __init__(self, name, command, note=""):
        self.name, self.command, self.note, self.rates, self.cpu_ms = name, command, note, [], []
        self.version = subprocess.run([command[0], "--version"], check=True, capture_output=True, text=True).stdout.split()[-1]

    def round(self, seconds):
        command = [*self.command, "--rounds", 1, "--seconds", seconds, "--loader-only", "--json", "--quiet"]
        done = subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True)
        loader = json.loads(done.stdout)["loaders"][0]
        self.rates.append(loader["pairs_per_s"])
        self.cpu_ms.append(loader["cpu_ms"] or float("nan"))

    def close(self):
        pass


def images(args, work):
    """Lists the pictures, makes our shards of them, and says how ours are timed."""
    files = sorted(file for file in args.folder.rglob("*") if file.suffix.lower() in (".jpg", ".jpeg"))
    whole = [file for file in files if is_plain_jpeg(file)]
    if len(whole) < len(files):
        say(f"{len(files) - len(whole)} files are no RGB or grey JPEG and left out for everyone")
    (work / "images.txt").write_text("\n".join(map(str, whole)))
    source = work / "source"
    for file in whole:
        place = source / file.parent.name / file.name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, place)
    mean_kib = sum(file.stat().st_size for file in whole) / len(whole) / 1024
    config = ROOT / "configs/train/cropmae_vits16_in1k.toml"
    ours = {"pairquet, u8": ([], []), "pairquet, float32": ([], ["--float32"]),
            "pairquet, u8, short side 256": (["--short-side", "256"], [])}
    return f"{len(whole)} JPEGs of {mean_kib:.0f} KiB", "imagenet", source, config, ours


def is_plain_jpeg(file):
    from PIL import Image

    try:
        with Image.open(file) as image:
            return image.format == "JPEG" and image.mode in ("RGB", "L")
    except OSError:
        return False


def clips(args, work):
    """As `images`, of the clips that decord reads and that have at least five frames."""
    import decord

    files = []
    for file in sorted(args.folder.rglob("*")):
        if file.suffix.lower() not in (".mp4", ".mkv", ".avi", ".webm", ".mov") or {"broken", "formats"} & set(file.parts):
            continue
        try:
            reader = decord.VideoReader(str(file), num_threads=1)
            height, width = reader[0].shape[:2]
        except Exception as error:  # whatever a foreign library raises
            say(f"left out for everyone: {file}: {error}")
            continue
        if len(reader) >= 5 and min(width, height) <= args.max_side:
            files.append((file, f"{width}x{height}"))
    (work / "clips.txt").write_text("\n".join(str(file) for file, _ in files))
    source = work / "source"
    for file, _ in files:
        place = source / file.parent.name / file.name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, place)
    sizes = ", ".join(sorted({size for _, size in files}))
    config = ROOT / "configs/train/siammae_vits16_k400.toml"
    ours = {"pairquet, u8": ([], []), "pairquet, float32": ([], ["--float32"])}
    return f"{len(files)} clips of {sizes}", "kinetics", source, config, ours


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["images", "clips"])
    parser.add_argument("folder", type=Path, nargs="?", help="JPEGs or clips, in any folders below [default: shared/data beside the workspace]")
    parser.add_argument("--pairquet", type=Path, default=ROOT / "target/release/pairquet", help="the built program")
    parser.add_argument("--workers", type=int, default=2, help="threads or worker processes of each")
    parser.add_argument("--cores", help="cores for all, such as 0,1 [default: as many of those given as there are workers]")
    parser.add_argument("--batch-size", type=int, help="[default: 64 images; 16 clips, of which readers make few a second]")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each peer in a round")
    parser.add_argument("--peers", help="names, divided by commas [default: all]")
    parser.add_argument("--max-side", type=int, default=1 << 30, help="leave clips out whose shorter side is longer, in px")
    args = parser.parse_args()
    args.batch_size = args.batch_size or {"images": 64, "clips": 16}[args.kind]
    shared = Path(os.environ.get("PAIRQUET_SHARED_DIR", ROOT.parent / "shared"))
    args.folder = args.folder or shared / "data" / {"images": "imagenet/train", "clips": "videos"}[args.kind]
    if not args.folder.is_dir():
        sys.exit(f"SKIPPED: no {args.folder}")
    given = sorted(os.sched_getaffinity(0))
    cores = [int(core) for core in args.cores.split(",")] if args.cores else given[:args.workers]
    os.sched_setaffinity(0, cores)
    names = args.peers.split(",") if args.peers else [name for name, peer in PEERS.items() if peer[2] == args.kind]
    if unknown := set(names) - set(PEERS):
        parser.error(f"no such peer: {', '.join(sorted(unknown))}; there are {', '.join(PEERS)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as work:
        measure(args, names, Path(work), cores)


def measure(args, names, work, cores):
    what, convert, source, config, variants = {"images": images, "clips": clips}[args.kind](args, work)
    timed, made = [], {}
    for name, (how, extra) in variants.items():
        target = made.setdefault(tuple(how), work / f"set-{len(made)}")
        if not target.exists():
            subprocess.run([str(args.pairquet), "--quiet", "convert", convert, str(source), str(target), *how], check=True,
                           stdout=subprocess.DEVNULL)
        samples = len((work / f"{args.kind}.txt").read_text().splitlines())
        settings = {"data.path": target, "data.batch_size": args.batch_size, "data.repeated_sampling": -(-args.batch_size // samples)}
        sets = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        timed.append(Ours(name, [args.pairquet, "bench", "loader", config, *sets, "--threads", args.workers, *extra]))
    try:
        for name in names:
            try:
                timed.append(Peer(name, work, args))
            except RuntimeError as error:
                say(f"SKIPPED {name}: {error}")
                continue
            say(f"{name} {timed[-1].version}: {timed[-1].note}")
        for number in range(args.rounds):
            for one in timed:
                one.round(args.seconds)
            say(f"round {number + 1} of {args.rounds}: " + ", ".join(f"{one.name} {one.rates[-1]:.0f}" for one in timed))
    finally:
        for one in timed:
            one.close()
    print(f"{what}; {platform.machine()}, cores {cores} of {os.cpu_count()}, load {os.getloadavg()[0]:.1f}; batches of {args.batch_size}, "
          f"{args.workers} workers; medians of {args.rounds} rounds of {args.seconds} s, lowest and highest")
    print("| what | version | pairs/s | lowest | highest | CPU ms a pair | pairquet u8 is | pairquet float32 is |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    ours = [next(one for one in timed if one.name == name) for name in ("pairquet, u8", "pairquet, float32")]
    for one in timed:
        times = [statistics.median(mine / theirs for mine, theirs in zip(our.rates, one.rates)) for our in ours]
        print(f"| {one.name} | {one.version} | {statistics.median(one.rates):.0f} | {min(one.rates):.0f} | {max(one.rates):.0f} "
              f"| {statistics.median(one.cpu_ms):.2f} | {times[0]:.2f} x | {times[1]:.2f} x |")


if __name__ == "__main__":
    main()
