"""Time from process start to the verdict: `verifier verify` once per instance, one process after the other.

    python benchmarks/process_start.py FOLDER [--only NAME ...] [--sample K] [--timeout S]

FOLDER holds benchmarks with an instances.csv each, as for benchmarks/run.py. Prints, for each benchmark, the median and
the most seconds, how many answers came, and the peak memory of any process.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

from run import find_benchmarks

from verifier.batch.instances import Instance, read_instances


def measure(instance: Instance, timeout_s: float) -> tuple[float, str]:
    """Wall-clock seconds of the whole process, and its answer."""
    command = [sys.executable, "-m", "verifier", "verify", str(instance.network), str(instance.spec)]
    begin = time.perf_counter()
    done = subprocess.run([*command, "--timeout", str(timeout_s)], capture_output=True, text=True, check=False)
    return time.perf_counter() - begin, done.stdout.split("\n", 1)[0].strip()


def main() -> None:
    """Print one line a benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--sample", type=int, default=1, help="every K-th instance")
    parser.add_argument("--timeout", type=float, default=60.0)
    args = parser.parse_args()
    for name, folder in find_benchmarks(args.folder, args.only).items():
        found = [measure(one, args.timeout) for one in read_instances(folder / "instances.csv")[:: args.sample]]
        seconds = [s for s, _ in found]
        solved = sum(answer in ("sat", "unsat") for _, answer in found)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
        print(
            f"{name}: median {statistics.median(seconds):.3f} s, most {max(seconds):.2f} s; "
            f"{solved} of {len(found)} solved; peak of a process so far {peak} MiB",
            flush=True,
        )


if __name__ == "__main__":
    main()
