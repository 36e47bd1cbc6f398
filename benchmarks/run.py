"""Runs `verifier run` over every benchmark of a folder and prints a scoreboard.

    python benchmarks/run.py FOLDER [--timeout-cap S] [--only NAME ...] [--sample K] [--workers N]
                                    [--out FOLDER] [--resume]

A benchmark is a folder with an instances.csv; FOLDER holds several, or is one. Each gets
OUT/NAME.csv (rows) and OUT/NAME.jsonl (full reports); OUT/scoreboard.md and OUT/scoreboard.json
name commit, date, processor and cores. Every benchmark runs with the same default settings.

Exit code: 0 no verdict contradicts the expected one, 1 some do, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from verifier import __version__
from verifier.batch.results import read_rows
from verifier.batch.score import Score, score
from verifier.errors import VerifierError

HEADINGS = (
    "benchmark", "instances", "sat", "unsat", "wrong", "unknown", "timeout", "error",
    "median s", "total s", "peak MiB", "score",
)  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One line of the scoreboard: a score and the largest memory of any instance."""

    score: Score
    peak_memory_bytes: int

    def cells(self, name: str) -> list[str]:
        """Texts in the order of HEADINGS."""
        s = self.score
        counts = (s.instances, s.sat, s.unsat, s.wrong, s.unknown, s.timeouts, s.errors)
        peak = str(round(self.peak_memory_bytes / 2**20)) if self.peak_memory_bytes else "-"
        return [name, *map(str, counts), f"{s.median_seconds:.2f}", f"{s.total_seconds:.0f}", peak, str(s.points)]


def find_benchmarks(folder: Path, only: list[str]) -> dict[str, Path]:
    """Name -> folder of every benchmark, sorted by name.

    Raises:
        VerifierError: none is there, or a name of `only` is not among them.
    """
    if (folder / "instances.csv").exists():
        found = {folder.resolve().name: folder}
    else:
        found = {path.parent.name: path.parent for path in sorted(folder.glob("*/instances.csv"))}
    if not found:
        raise VerifierError(f"{folder}: expected instances.csv, or folders that hold one; found none")
    unknown = [name for name in only if name not in found]
    if unknown:
        raise VerifierError(f"{folder}: no benchmark '{unknown[0]}'; there are {', '.join(found)}")
    return {name: path for name, path in found.items() if not only or name in only}


def run_benchmark(folder: Path, out: Path, name: str, options: list[str]) -> int:
    """Sweep one benchmark in a process of its own and return its exit code."""
    rows, details = out / f"{name}.csv", out / f"{name}.jsonl"
    command = [sys.executable, "-m", "verifier", "run", str(folder / "instances.csv")]
    command += ["--out", str(rows), "--details", str(details), *options]
    return subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode


def read_entry(out: Path, name: str) -> Entry:
    """The scoreboard line of a benchmark from its files."""
    peaks = [0]
    details = out / f"{name}.jsonl"
    if details.exists():
        for line in details.read_text(encoding="utf-8").splitlines():
            try:
                report = json.loads(line)["report"]
            except ValueError:
                continue  # a line cut off by a kill
            peaks.append((report or {}).get("peak_memory_bytes", 0))
    return Entry(score(read_rows(out / f"{name}.csv")), max(peaks))


def total(entries: dict[str, Entry], out: Path) -> Entry:
    """All benchmarks together."""
    rows = [row for name in entries for row in read_rows(out / f"{name}.csv")]
    return Entry(score(rows), max((entry.peak_memory_bytes for entry in entries.values()), default=0))


def machine() -> dict[str, Any]:
    """Where and with what the numbers were measured."""
    here = Path(__file__).parent
    git = ["git", "-C", str(here)]
    commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=False)
    return {
        "version": __version__,
        "commit": (commit.stdout.strip() or "unknown") + (" with local changes" if changed.stdout.strip() else ""),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }


def processor_name() -> str:
    """The processor as the system calls it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def write_scoreboard(out: Path, entries: dict[str, Entry], options: list[str]) -> str:
    """Write scoreboard.md and scoreboard.json; returns the Markdown."""
    lines_of = {**entries, **({"all": total(entries, out)} if len(entries) > 1 else {})}
    where = machine()
    lines = ["| " + " | ".join(HEADINGS) + " |", "|---" + "|---:" * (len(HEADINGS) - 1) + "|"]
    lines += ["| " + " | ".join(entry.cells(name)) + " |" for name, entry in lines_of.items()]
    facts = ", ".join(f"{key} {value}" for key, value in where.items())
    text = "\n".join([*lines, "", f"Measured with {facts}; options: {' '.join(options) or 'none'}."]) + "\n"
    (out / "scoreboard.md").write_text(text, encoding="utf-8")
    content = {
        "machine": where,
        "options": options,
        "benchmarks": {
            name: {**asdict(e.score), "points": e.score.points, "peak_memory_bytes": e.peak_memory_bytes}
            for name, e in lines_of.items()
        },
    }
    (out / "scoreboard.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return text


def main(argv: list[str] | None = None) -> int:
    """Run everything, print the scoreboard after each benchmark's end and at the end."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--timeout-cap", metavar="S")
    parser.add_argument("--only", action="append", default=[], metavar="NAME")
    parser.add_argument("--sample", metavar="K", help="only every K-th instance")
    parser.add_argument("--workers", metavar="N")
    parser.add_argument("--device", choices=("cpu", "cuda"))
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args(argv)
    named = {"timeout-cap": args.timeout_cap, "sample": args.sample, "workers": args.workers, "device": args.device}
    options = [text for name, value in named.items() if value is not None for text in (f"--{name}", value)]
    entries: dict[str, Entry] = {}
    code = 0
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        for name, folder in find_benchmarks(args.folder, args.only).items():
            print(f"== {name}", file=sys.stderr, flush=True)
            ended = run_benchmark(folder, args.out, name, options + (["--resume"] if args.resume else []))
            if (args.out / f"{name}.csv").exists():
                entries[name] = read_entry(args.out, name)
                write_scoreboard(args.out, entries, options)
            code = max(code, ended)
            if ended in (2, 130):
                break
    except KeyboardInterrupt:
        code = 130
    except (VerifierError, OSError) as error:
        print(f"benchmarks/run.py: {error}", file=sys.stderr)
        return 2
    if entries:
        print(write_scoreboard(args.out, entries, options), end="")
    return code


if __name__ == "__main__":
    sys.exit(main())
