"""Reader of comma-separated tables with a label column."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np

from verifier.data.dataset import Dataset
from verifier.errors import SpecError


def load_csv(path: str | Path, label: str | int = -1) -> Dataset:
    """Rows of a .csv file; words in a feature column become one indicator column a value.

    Args:
        label: name or position of the label column; default the last. Labels may be words.
    Returns:
        A table in the file's units, whose valid range is the observed one.
    Raises:
        SpecError: unreadable, ragged, empty cells, an unknown label column, one class only.
    """
    path = Path(path)
    header, rows = _read(path)
    column = _column(path, header, label)
    names = sorted({row[column] for row in rows}, key=lambda v: (not v.lstrip("-").isdigit(), _number(v, 0.0), v))
    y = np.array([names.index(row[column]) for row in rows])
    features = [_encode([row[i] for row in rows]) for i in range(len(header)) if i != column]
    if not features:
        raise SpecError(f"{path}: no feature columns beside the label '{header[column]}'")
    x = np.concatenate(features, axis=1)
    return Dataset(x, y, tuple(names), "tabular", (x.min(0), x.max(0)), path.stem)


def _read(path: Path) -> tuple[list[str], list[list[str]]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            rows = [[cell.strip() for cell in row] for row in csv.reader(stream) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SpecError(f"{path}: cannot be read as a table: {error}") from error
    if not rows:
        raise SpecError(f"{path}: the table is empty")
    # A first row without a single number in it is a header.
    has_header = all(math.isnan(_number(cell, math.nan)) for cell in rows[0])
    header = rows.pop(0) if has_header else [str(i) for i in range(len(rows[0]))]
    for number, row in enumerate(rows, start=1 + has_header):
        if len(row) != len(header) or "" in row:
            raise SpecError(f"{path}: line {number}: expected {len(header)} filled cells, got {row[:6]}")
    if len(rows) < 2:
        raise SpecError(f"{path}: expected at least two rows of data, got {len(rows)}")
    return header, rows


def _number(text: str, default: float) -> float:
    try:
        return float(text)
    except ValueError:
        return default


def _column(path: Path, header: list[str], label: str | int) -> int:
    if isinstance(label, str) and label in header:
        return header.index(label)
    position = int(label) if str(label).lstrip("-").isdigit() else None
    if position is None or not -len(header) <= position < len(header):
        raise SpecError(f"{path}: no label column '{label}'; the columns are {', '.join(header)}")
    return position % len(header)


def _encode(cells: list[str]) -> np.ndarray:
    numbers = np.array([_number(cell, math.nan) for cell in cells])
    if not np.any(np.isnan(numbers)):
        return numbers[:, None].astype(np.float32)
    values = sorted(set(cells))
    return np.array([[float(cell == value) for value in values] for cell in cells], dtype=np.float32)
