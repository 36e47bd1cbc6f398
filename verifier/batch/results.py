"""Result rows: written one by one, flushed each, readable after any interruption."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from verifier.batch.instances import Instance
from verifier.errors import SpecError

COLUMNS = ("onnx", "vnnlib", "timeout_s", "verdict", "seconds", "expected", "reason")
VERDICTS = ("sat", "unsat", "unknown", "timeout", "error")


@dataclass(frozen=True)
class Row:
    """What came out of one instance.

    Attributes:
        onnx, vnnlib, expected: copied from the list.
        timeout_s: the limit that was in force, seconds; None for no limit.
        verdict: one of VERDICTS.
        seconds: wall clock, from handing the instance to a process until its answer.
        reason: why it ended so, one line.
    """

    onnx: str
    vnnlib: str
    timeout_s: float | None
    verdict: str
    seconds: float
    expected: str
    reason: str

    @property
    def wrong(self) -> bool:
        """True when the verdict contradicts the expected one."""
        return {self.verdict, self.expected} == {"sat", "unsat"}

    @property
    def late(self) -> bool:
        """True for an answer that came after the time limit: it counts as a timeout."""
        return self.timeout_s is not None and self.seconds > self.timeout_s and not self.wrong

    def cells(self) -> list[str]:
        """The row's texts in the order of COLUMNS."""
        limit = "" if self.timeout_s is None else f"{self.timeout_s:g}"
        reason = " ".join(self.reason.split())
        return [self.onnx, self.vnnlib, limit, self.verdict, f"{self.seconds:.3f}", self.expected, reason]


class RowWriter:
    """Appends rows to an open text file, each complete and flushed when `write` returns."""

    def __init__(self, file: TextIO, *, header: bool) -> None:
        self._file = file
        if header:
            self._put(COLUMNS)

    def write(self, row: Row) -> None:
        """Append one row."""
        self._put(row.cells())

    def _put(self, cells: Iterable[str]) -> None:
        # One write call a row: a reader, or a kill, sees whole lines as far as the system allows.
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow(cells)
        self._file.write(text.getvalue())
        self._file.flush()


def read_rows(path: str | Path) -> list[Row]:
    """The rows of a results file; a last line cut off by a kill is left out.

    Raises:
        SpecError: the file is no results file, or a line before the last is damaged.
    """
    path = Path(path)
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    lines = [cells for cells in csv.reader(io.StringIO(whole)) if cells]
    if not lines:
        return []
    if tuple(lines[0]) != COLUMNS:
        raise SpecError(f"{path}: expected the header {','.join(COLUMNS)}, got '{','.join(lines[0])[:80]}'")
    return [_row(cells, f"{path}, row {number}") for number, cells in enumerate(lines[1:], 1)]


def _row(cells: list[str], where: str) -> Row:
    if len(cells) != len(COLUMNS) or cells[3] not in VERDICTS:
        raise SpecError(f"{where}: expected {','.join(COLUMNS)}, got '{','.join(cells)[:80]}'")
    try:
        limit = float(cells[2]) if cells[2] else None
        return Row(cells[0], cells[1], limit, cells[3], float(cells[4]), cells[5], cells[6])
    except ValueError:
        raise SpecError(f"{where}: timeout_s and seconds must be numbers, got '{cells[2]}', '{cells[4]}'") from None


def remaining(instances: list[Instance], done: list[Row]) -> list[Instance]:
    """The instances that `done` does not answer yet; an instance listed twice needs two rows."""
    answered = Counter((row.onnx, row.vnnlib) for row in done)
    left = []
    for instance in instances:
        key = (instance.onnx, instance.vnnlib)
        if answered[key]:
            answered[key] -= 1
        else:
            left.append(instance)
    return left
