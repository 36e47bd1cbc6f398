"""Lists of instances: one CSV row a network, a property, a time limit, perhaps the known answer."""

from __future__ import annotations

import ast
import csv
import math
from dataclasses import dataclass
from pathlib import Path

from verifier.errors import SpecError

COLUMNS = ("onnx", "vnnlib", "timeout", "expected")
ANSWERS = ("sat", "unsat", "unknown", "")


@dataclass(frozen=True)
class Instance:
    """One question of a list.

    Attributes:
        onnx, vnnlib: as written in the list; paths relative to `folder`.
        timeout_s: seconds, > 0; None where the list names none.
        expected: "sat", "unsat", "unknown", or "" where the list says nothing.
        folder: where the list lies.
    """

    onnx: str
    vnnlib: str
    timeout_s: float | None
    expected: str
    folder: Path

    @property
    def network(self) -> str | dict[str, str]:
        """Path of the network, or name -> path for a query over several networks."""
        networks = parse_networks(self.onnx)
        if isinstance(networks, str):
            return _locate(self.folder, networks)
        return {name: _locate(self.folder, path) for name, path in networks.items()}

    @property
    def spec(self) -> str:
        """Path of the property file."""
        return _locate(self.folder, self.vnnlib)


def parse_networks(text: str) -> str | dict[str, str]:
    """A path, or the paths of several named networks: `[("f", "a.onnx"), ("g", "b.onnx")]`.

    Raises:
        SpecError: the text starts like a list but is not a list of (name, path) pairs.
    """
    if not text.lstrip().startswith("["):
        return text
    try:
        pairs = ast.literal_eval(text.strip())
        networks = {name: path for name, path in pairs}
        if len(networks) == len(pairs) and all(isinstance(t, str) for pair in networks.items() for t in pair):
            return networks
    except (ValueError, SyntaxError, TypeError):
        pass  # fall through to the one message that covers every malformed list
    raise SpecError(f"networks: expected a path or a list of distinct (name, path) pairs, got {text!r}")


def network_label(text: str) -> str:
    """The networks of an instance for people: `a.onnx`, or `f=a.onnx, g=b.onnx`."""
    try:
        networks = parse_networks(text)
    except SpecError:
        return text
    return networks if isinstance(networks, str) else ", ".join(f"{n}={path}" for n, path in networks.items())


def read_instances(path: str | Path) -> list[Instance]:
    """The instances of a CSV file, in its order.

    Columns are onnx, vnnlib, timeout (seconds; `timeout_s` is accepted) and, optionally, expected.
    A header line may name them in any order, and further columns are ignored then.

    Raises:
        SpecError: not CSV text, a missing column, a time limit that is no number > 0, an unknown
            expected answer; with the line.
        OSError: the file cannot be read.
    """
    path = Path(path)
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            lines = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise SpecError(f"{path}: expected CSV text, got something else ({error})") from None
    lines = [(number, row) for number, row in lines if any(row) and not row[0].startswith("#")]
    if not lines:
        raise SpecError(f"{path}: expected rows of onnx,vnnlib,timeout, got an empty list")
    order = _header(lines[0][1])
    if order is not None:
        lines = lines[1:]
        for name in ("onnx", "vnnlib"):
            if name not in order:
                raise SpecError(f"{path}:1: the header names no column '{name}'")
    else:
        order = {name: k for k, name in enumerate(COLUMNS)}
    return [_instance(row, order, f"{path}:{number}", path.parent) for number, row in lines]


def _header(row: list[str]) -> dict[str, int] | None:
    """Column name -> position, when the row is a header."""
    names = ["timeout" if cell.lower() == "timeout_s" else cell.lower() for cell in row]
    return {name: k for k, name in enumerate(names)} if {"onnx", "vnnlib"} & set(names) else None


def _instance(row: list[str], order: dict[str, int], where: str, folder: Path) -> Instance:
    cells = {name: row[k] for name, k in order.items() if k < len(row)}
    onnx, vnnlib, limit = (cells.get(name, "") for name in ("onnx", "vnnlib", "timeout"))
    expected = cells.get("expected", "").lower()
    if not onnx or not vnnlib:
        raise SpecError(f"{where}: expected onnx,vnnlib,timeout, got '{','.join(row)}'")
    try:
        timeout_s = float(limit) if limit else None
    except ValueError:
        timeout_s = math.nan
    if timeout_s is not None and not 0 < timeout_s < math.inf:
        raise SpecError(f"{where}: timeout: expected seconds > 0, got '{limit}'")
    if expected not in ANSWERS:
        raise SpecError(f"{where}: expected: one of sat, unsat, unknown or nothing, got '{expected}'")
    return Instance(onnx, vnnlib, timeout_s, expected, folder)


def _locate(folder: Path, name: str) -> str:
    """The file, or its gzip-compressed form where only that exists."""
    path = folder / name
    packed = path.with_name(path.name + ".gz")
    return str(packed if not path.exists() and packed.exists() else path)
