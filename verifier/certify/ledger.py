"""A sweep's folder: run.json says what was asked, samples.jsonl and samples.csv hold a row a sample."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any, TextIO

from verifier.certify.rows import COLUMNS, Row
from verifier.errors import SpecError

RUN, ROWS, TABLE = "run.json", "samples.jsonl", "samples.csv"


class Ledger:
    """Writes rows as they come; every row is on disk before the next sample ends.

    Args:
        folder: made if missing.
        setup: what was asked, JSON values; its "question" part must be the same to go on.
        resume: keep the rows that are there.
    Attributes:
        rows: those kept and those added.
    Raises:
        SpecError: the folder holds another question's rows, or rows and no --resume, or damaged ones.
    """

    def __init__(self, folder: str | Path, setup: dict[str, Any], *, resume: bool):
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SpecError(f"--out: cannot make the folder {folder}: {error.strerror}") from error
        self.rows: list[Row] = []
        held = self.folder / ROWS
        if held.exists() and not resume:
            raise SpecError(f"--out: {folder} holds the rows of an earlier run; add --resume, or name another folder")
        if resume and held.exists():
            self._check_question(setup)
            self.rows = read_rows(held)
        write_json(self.folder / RUN, setup)
        self._lines = self._rewrite(held, lambda file, row: file.write(json.dumps(row.to_json()) + "\n"))
        self._table = self._rewrite(self.folder / TABLE, _write_cells, header=COLUMNS)

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *failure: object) -> None:
        self._lines.close()
        self._table.close()

    def add(self, row: Row) -> None:
        """Append one row to both files, flushed."""
        self.rows.append(row)
        self._lines.write(json.dumps(row.to_json()) + "\n")
        _write_cells(self._table, row)
        self._lines.flush()
        self._table.flush()

    def _check_question(self, setup: dict[str, Any]) -> None:
        before = read_run(self.folder)
        for key, value in setup["question"].items():
            if before["question"].get(key) != value:
                raise SpecError(
                    f"--resume: {self.folder} was made with {key} {before['question'].get(key)!r}, now {value!r}; "
                    "give the same command, or another --out"
                )

    def _rewrite(self, path: Path, write: Any, header: tuple[str, ...] | None = None) -> TextIO:
        """A file that holds the rows kept, open at its end; a line cut off by a kill is gone."""
        partial = path.with_name(path.name + ".partial")
        with partial.open("w", newline="", encoding="utf-8") as file:
            if header is not None:
                csv.writer(file, lineterminator="\n").writerow(header)
            for row in self.rows:
                write(file, row)
        os.replace(partial, path)
        return path.open("a", newline="", encoding="utf-8")


def _write_cells(file: TextIO, row: Row) -> None:
    values = row.to_json()
    csv.writer(file, lineterminator="\n").writerow([values[name] for name in COLUMNS])


def read_rows(path: Path) -> list[Row]:
    """The rows of a samples.jsonl; a last line cut off by a kill is left out.

    Raises:
        SpecError: any other line is no row; names the line.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(Row.from_json(json.loads(line)))
        except (ValueError, SpecError) as error:
            if number < len(lines):
                raise SpecError(f"{path}:{number}: {error}; remove the line, or start afresh") from error
    return rows


def read_run(folder: Path) -> dict[str, Any]:
    """What was asked, from run.json.

    Raises:
        SpecError: missing or damaged.
    """
    try:
        found = json.loads((folder / RUN).read_text(encoding="utf-8"))
        return {**found, "question": dict(found["question"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SpecError(f"{folder / RUN}: not a run's description: {error}; start afresh in another folder") from error


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a file in one piece, so that a kill leaves the old one or the new one."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(partial, path)
