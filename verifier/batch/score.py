"""What a set of rows amounts to: counts, times, and the competition's score."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from verifier.batch.results import Row

#: Points for a correct answer and for a wrong one; every other outcome scores nothing.
CORRECT, WRONG = 10, -150


@dataclass(frozen=True)
class Score:
    """Counts over some rows.

    Attributes:
        instances: number of rows. sat, unsat: answers in time that contradict nothing. unknown,
            timeouts (late answers too), errors: the rest. wrong: answers that contradict the expected one.
        median_seconds, total_seconds: wall clock of all rows, 0 without rows.
    """

    instances: int
    sat: int
    unsat: int
    wrong: int
    unknown: int
    timeouts: int
    errors: int
    median_seconds: float
    total_seconds: float

    @property
    def solved(self) -> int:
        """Answers in time that contradict nothing."""
        return self.sat + self.unsat

    @property
    def points(self) -> int:
        """+10 for each answer that contradicts nothing, -150 for each that contradicts the expected one."""
        return CORRECT * self.solved + WRONG * self.wrong


def score(rows: Iterable[Row]) -> Score:
    """Count rows."""
    rows = list(rows)
    seconds = [row.seconds for row in rows]

    def count(verdict: str) -> int:
        return sum(row.verdict == verdict and not row.wrong and not row.late for row in rows)

    return Score(
        instances=len(rows),
        sat=count("sat"),
        unsat=count("unsat"),
        wrong=sum(row.wrong for row in rows),
        unknown=count("unknown"),
        timeouts=sum(row.late or row.verdict == "timeout" for row in rows if row.verdict != "error"),
        errors=sum(row.verdict == "error" for row in rows),
        median_seconds=statistics.median(seconds) if seconds else 0.0,
        total_seconds=sum(seconds),
    )


def score_by_network(rows: Iterable[Row]) -> dict[str, Score]:
    """One score a network, in order of first appearance."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.onnx, []).append(row)
    return {name: score(group) for name, group in groups.items()}
