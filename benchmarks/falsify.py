"""Measures counterexample search alone: the share of instances expected `sat` that `verifier attack` finds.

    python benchmarks/falsify.py FOLDER [--timeout S] [--only NAME ...] [--log FILE] [--out FILE]

FOLDER holds benchmarks (folders with an instances.csv of onnx, vnnlib, timeout_s, expected), or is
one. Every instance runs in a process of its own with the same defaults. The table goes to stdout
and, with --out, to a Markdown file. --log notes every attempt as it ends, and a run that finds the
file goes on from there. `sat` counts only with a witness replayed in ONNX Runtime.

Exit code: 0 measured, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path


@dataclass(frozen=True)
class Attempt:
    """One instance: where it is, what was answered, and the wall time."""

    benchmark: str
    onnx: str
    vnnlib: str
    verdict: str
    seconds: float


def expected_sat(folder: Path) -> list[tuple[Path, str, str]]:
    """(benchmark folder, network, property) of every instance expected `sat`.

    Raises:
        SystemExit: no instances.csv anywhere.
    """
    lists = (
        [folder / "instances.csv"] if (folder / "instances.csv").exists() else sorted(folder.glob("*/instances.csv"))
    )
    if not lists:
        raise SystemExit(f"{folder}: expected instances.csv, or folders that hold one; found none")
    found = []
    for path in lists:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if row.get("expected", "").strip() == "sat":
                    found.append((path.parent, row["onnx"], row["vnnlib"]))
    return found


def attack(folder: Path, onnx: str, vnnlib: str, timeout_s: float) -> Attempt:
    """Run `verifier attack` on one instance."""
    command = [sys.executable, "-m", "verifier", "attack", str(folder / onnx), str(folder / vnnlib)]
    began = time.perf_counter()
    done = subprocess.run([*command, "--timeout", str(timeout_s)], capture_output=True, text=True, check=False)
    verdict = done.stdout.split("\n", 1)[0].strip() if done.returncode == 0 else f"error {done.returncode}"
    return Attempt(folder.resolve().name, onnx, vnnlib, verdict, time.perf_counter() - began)


def noted(log: Path | None) -> dict[tuple[str, ...], Attempt]:
    """(benchmark, network, property) -> the attempt that an earlier run left in `log`."""
    if log is None or not log.exists():
        return {}
    with log.open(newline="", encoding="utf-8") as file:
        found = [Attempt(a, b, c, verdict, float(seconds)) for a, b, c, verdict, seconds in csv.reader(file)]
    return {(a.benchmark, a.onnx, a.vnnlib): a for a in found}


def note(log: Path | None, done: Attempt) -> None:
    """Append an attempt to `log`."""
    if log is not None:
        with log.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow([done.benchmark, done.onnx, done.vnnlib, done.verdict, f"{done.seconds:.3f}"])


def table(attempts: Sequence[Attempt]) -> list[str]:
    """Markdown lines: a row for each benchmark, then every instance that was not found."""
    lines = ["| benchmark | expected sat | found | share | median s |", "|---|---|---|---|---|"]
    for name in [*dict.fromkeys(a.benchmark for a in attempts), "all"]:
        part = [a for a in attempts if name in (a.benchmark, "all")]
        times = sorted(a.seconds for a in part)
        hits = sum(a.verdict == "sat" for a in part)
        share = f"{100 * hits / len(part):.1f} %"
        lines.append(f"| {name} | {len(part)} | {hits} | {share} | {times[len(times) // 2]:.2f} |")
    missed = [a for a in attempts if a.verdict != "sat"]
    lines += ["", f"Not found: {len(missed)}", ""]
    return lines + [f"- {a.benchmark}: {a.onnx} {a.vnnlib}: {a.verdict}, {a.seconds:.1f} s" for a in missed]


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--timeout", type=float, default=10.0, metavar="S", help="seconds an instance (default: 10)")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="benchmarks to run")
    parser.add_argument("--log", type=Path, metavar="FILE", help="note attempts in FILE, and skip those noted there")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the table to FILE as well")
    args = parser.parse_args()
    instances = [i for i in expected_sat(args.folder) if not args.only or i[0].resolve().name in args.only]
    if not instances:
        parser.error("no instance expected sat")
    attempts: list[Attempt] = []
    earlier = noted(args.log)
    try:
        for i, (folder, onnx, vnnlib) in enumerate(instances, 1):
            known = earlier.get((folder.resolve().name, onnx, vnnlib))
            last = known or attack(folder, onnx, vnnlib, args.timeout)
            attempts.append(last)
            if known is None:
                note(args.log, last)
            print(f"{i}/{len(instances)} {last.benchmark} {vnnlib} {last.verdict} {last.seconds:.1f}", file=sys.stderr)
    except KeyboardInterrupt:
        return 130
    finally:
        if attempts:
            head = [f"Counterexample search alone, {args.timeout:g} s an instance, {datetime.now(UTC):%Y-%m-%d}.", ""]
            text = "\n".join([*head, *table(attempts)]) + "\n"
            print(text)
            if args.out is not None:
                args.out.parent.mkdir(parents=True, exist_ok=True)
                args.out.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
