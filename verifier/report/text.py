"""Tables and progress for terminals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from verifier.batch.instances import network_label
from verifier.batch.results import VERDICTS, Row
from verifier.batch.score import Score, score, score_by_network

#: A style that colour-blind eyes and black-and-white printers can tell apart: the words differ, too.
STYLES = {"sat": "yellow", "unsat": "cyan", "unknown": "dim", "timeout": "dim", "error": "red", "wrong": "bold red"}


class SweepProgress:
    """Progress over a list: a live bar on a terminal, one line an instance elsewhere."""

    def __init__(self, total: int, stream: TextIO) -> None:
        self._console = Console(file=stream, soft_wrap=True, highlight=False)
        self._total = total
        self._counts = dict.fromkeys((*VERDICTS, "wrong"), 0)
        self._done = 0
        self._bar: Progress | None = None

    def __enter__(self) -> SweepProgress:
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                console=self._console,
            )  # fmt: skip
            self._task = self._bar.add_task(self._description(), total=self._total)
            self._bar.start()
        return self

    def __exit__(self, *failure: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def add(self, row: Row) -> None:
        """Show one more finished instance."""
        self._done += 1
        self._counts[row.verdict] += 1
        self._counts["wrong"] += row.wrong
        if self._bar is not None:
            self._bar.update(self._task, advance=1, description=self._description())
        if self._bar is None or row.wrong or row.verdict == "error":
            self._console.print(self._line(row))

    def _description(self) -> str:
        counts = (f"[{STYLES[k]}]{k} {n}[/]" for k, n in self._counts.items() if n or k in ("sat", "unsat"))
        return "  ".join(counts)

    def _line(self, row: Row) -> str:
        what = f"[{STYLES[row.verdict]}]{row.verdict:<7}[/]"
        wrong = f"  [{STYLES['wrong']}]WRONG: expected {row.expected}[/]" if row.wrong else ""
        late = "  (after its time limit)" if row.late and row.verdict in ("sat", "unsat") else ""
        why = f"  {_plain(row.reason)}" if row.verdict == "error" else ""
        place = f"{self._done:>{len(str(self._total))}}/{self._total}"
        network = _plain(network_label(row.onnx))
        return f"{place}  {what} {row.seconds:8.2f} s  {network}  {_plain(row.vnnlib)}{late}{wrong}{why}"


def print_summary(rows: Iterable[Row], stream: TextIO) -> None:
    """A table of scores by network, then every wrong verdict in red."""
    rows = list(rows)
    console = Console(file=stream, highlight=False, width=None if stream.isatty() else 120)
    scores = score_by_network(rows)
    if len(scores) > 1:
        scores["all"] = score(rows)
    console.print(score_table("network", scores))
    for row in rows:
        if row.wrong:
            console.print(
                f"[{STYLES['wrong']}]WRONG[/] {_plain(network_label(row.onnx))} {_plain(row.vnnlib)}: "
                f"answered {row.verdict}, expected {row.expected}"
            )


def score_table(heading: str, scores: Mapping[str, Score]) -> Table:
    """One line a name; a last line called "all" is set apart."""
    table = Table(box=None, pad_edge=False)
    table.add_column(heading, overflow="fold")
    for name in ("instances", "sat", "unsat", "wrong", "unknown", "timeout", "error", "median s", "total s"):
        table.add_column(name, justify="right")
    for name, s in scores.items():
        if name == "all":
            table.add_section()
        wrong = f"[{STYLES['wrong']}]{s.wrong}[/]" if s.wrong else "0"
        errors = f"[{STYLES['error']}]{s.errors}[/]" if s.errors else "0"
        table.add_row(
            _plain(network_label(name)), str(s.instances), str(s.sat), str(s.unsat), wrong,
            str(s.unknown), str(s.timeouts), errors, f"{s.median_seconds:.2f}", f"{s.total_seconds:.1f}",
        )  # fmt: skip
    return table


def _plain(text: str) -> str:
    """Text whose brackets are not markup."""
    return text.replace("[", "\\[")
