"""Compares two sets of results: what changed in verdicts, and the ratio of times.

    python benchmarks/compare.py BEFORE AFTER

BEFORE and AFTER are result files of `verifier run`, or folders of them as benchmarks/run.py
writes. Exit code: 0 nothing got worse, 1 a verdict was lost or is wrong in AFTER, 2 bad input.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass
from pathlib import Path

from verifier.batch.results import Row, read_rows
from verifier.errors import VerifierError

#: Times below this are mostly start-up and noise; they count as this much, seconds.
FLOOR_S = 0.05


@dataclass(frozen=True)
class Comparison:
    """What became of the instances present on both sides.

    Attributes:
        common: how many. gained, lost: (key, verdict before, verdict after) of instances solved on
            one side only. flipped: solved on both sides with opposite answers.
        time_ratio: geometric mean of seconds after / before where both sides solve, nan without any.
    """

    common: int
    gained: list[tuple[str, str, str]]
    lost: list[tuple[str, str, str]]
    flipped: list[tuple[str, str, str]]
    wrong: list[str]
    time_ratio: float
    seconds: tuple[float, float]


def load(path: Path) -> dict[str, dict[str, Row]]:
    """Benchmark -> "onnx vnnlib" -> row.

    Raises:
        VerifierError: there are no result files.
    """
    files = sorted(path.glob("*.csv")) if path.is_dir() else [path]
    if not files or not files[0].exists():
        raise VerifierError(f"{path}: expected a result file or a folder of them")
    return {file.stem if path.is_dir() else "": _keyed(read_rows(file)) for file in files}


def _keyed(rows: list[Row]) -> dict[str, Row]:
    return {f"{row.onnx} {row.vnnlib}": row for row in rows}


def compare(before: dict[str, Row], after: dict[str, Row]) -> Comparison:
    """Match rows by network and property."""
    gained, lost, flipped, logs = [], [], [], []
    common = [key for key in before if key in after]
    for key in common:
        a, b = before[key], after[key]
        change = (key, a.verdict, b.verdict)
        solved = a.verdict in ("sat", "unsat"), b.verdict in ("sat", "unsat")
        if solved == (True, True):
            if a.verdict != b.verdict:
                flipped.append(change)
            logs.append(math.log(max(b.seconds, FLOOR_S) / max(a.seconds, FLOOR_S)))
        elif solved == (False, True):
            gained.append(change)
        elif solved == (True, False):
            lost.append(change)
    ratio = math.exp(sum(logs) / len(logs)) if logs else math.nan
    seconds = sum(before[k].seconds for k in common), sum(after[k].seconds for k in common)
    wrong = [key for key in common if after[key].wrong]
    return Comparison(len(common), gained, lost, flipped, wrong, ratio, seconds)


def describe(name: str, result: Comparison) -> str:
    """Text for people."""
    lines = [
        f"{name or 'all'}: {result.common} common, {len(result.gained)} gained, {len(result.lost)} lost, "
        f"{len(result.flipped)} contradict, {len(result.wrong)} wrong; "
        f"time ratio {result.time_ratio:.2f} where both solve, {result.seconds[0]:.0f} s -> {result.seconds[1]:.0f} s"
    ]
    for title, changes in (("gained", result.gained), ("lost", result.lost), ("contradict", result.flipped)):
        lines += [f"  {title}: {key}: {before} -> {after}" for key, before, after in changes]
    return "\n".join([*lines, *(f"  wrong: {key}" for key in result.wrong)])


def main(argv: list[str] | None = None) -> int:
    """Print the comparison of every benchmark that both sides have."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    args = parser.parse_args(argv)
    try:
        before, after = load(args.before), load(args.after)
        names = [name for name in before if name in after]
        if not names:
            raise VerifierError(f"{args.before} and {args.after} have no benchmark in common")
        results = {name: compare(before[name], after[name]) for name in names}
    except (VerifierError, OSError) as error:
        print(f"benchmarks/compare.py: {error}", file=sys.stderr)
        return 2
    for name, result in results.items():
        print(describe(name, result))
    return 1 if any(r.lost or r.flipped or r.wrong for r in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
