"""Progress and summary of data-set sweeps for terminals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from verifier.certify.rows import Row
from verifier.certify.summary import summarise


class SampleProgress:
    """Progress over samples: a live bar on a terminal, one line a sample elsewhere."""

    def __init__(self, total: int, stream: TextIO) -> None:
        self._console = Console(file=stream, soft_wrap=True, highlight=False)
        self._total, self._counts = total, Counter[str]()
        self._bar: Progress | None = None

    def __enter__(self) -> SampleProgress:
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                TimeRemainingColumn(), console=self._console,
            )  # fmt: skip
            self._task = self._bar.add_task("samples", total=self._total)
            self._bar.start()
        return self

    def __exit__(self, *failure: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def add(self, row: Row) -> None:
        """Show one more finished sample."""
        self._counts[row.status] += 1
        done = sum(self._counts.values())
        if self._bar is not None:
            text = "  ".join(f"{name} {n}" for name, n in sorted(self._counts.items()))
            self._bar.update(self._task, advance=1, description=text)
        if self._bar is None or row.status == "error":
            self._console.print(f"{done:>{len(str(self._total))}}/{self._total}  {sample_line(row)}", markup=False)


def sample_line(row: Row) -> str:
    """One sample in words."""
    spent = f"{row.attack_seconds + row.proof_seconds:6.2f} s"
    head = f"sample {row.index} class {row.label}"
    if row.status == "error":
        return f"{head}: error: {row.error}"
    if row.status in ("wrong", "abstained"):
        said = "abstains" if row.status == "abstained" else f"answers {row.predicted}"
        return f"{head}: {said} without any change  {spent}"
    ends = f"certified {row.lower:.5g}" + ("" if row.upper == float("inf") else f", attacked {row.upper:.5g}")
    rival = f" (as {row.rival})" if row.rival >= 0 else ""
    return f"{head}: {ends}{rival}  {spent}  {row.reason}"


def print_summary(rows: Sequence[Row], setup: dict[str, Any], stream: TextIO) -> None:
    """Accuracies, radii and, where radii were asked for, a line for each."""
    console = Console(file=stream, highlight=False, width=None if stream.isatty() else 110)
    if not rows:
        console.print("no samples analysed")
        return
    radii = setup["question"]["radii"]
    s = summarise(rows, radii)
    sampled = setup["question"]["smoothing"] is not None
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_row("samples", str(s.samples) + (f" ({s.errors} errors)" if s.errors else ""))
    table.add_row("clean accuracy", f"{100 * s.clean:.1f} %")
    if not radii:
        table.add_row("certified radius, mean", f"{s.mean_lower:.5g}")
        table.add_row("certified radius, median", f"{s.median_lower:.5g}")
        if not sampled:
            table.add_row("attacked radius, mean", f"{s.mean_upper:.5g}")
            table.add_row("attacked radius, median", f"{s.median_upper:.5g}")
            table.add_row("ends within the gap", f"{100 * s.finished:.1f} %")
    table.add_row("median time a sample", f"{s.seconds:.2f} s")
    console.print(table)
    if radii:
        at = Table(box=None, pad_edge=False)
        for name in ("radius", "certified", "under attack", "open"):
            at.add_column(name, justify="right")
        for share in s.shares:
            under = "" if sampled else f"{100 * share.withstood:.1f} %"
            at.add_row(f"{share.radius:g}", f"{100 * share.certified:.1f} %", under, f"{100 * share.open:.1f} %")
        console.print(at)
    if sampled:
        alpha = setup["question"]["smoothing"]["alpha"]
        console.print(f"certificates hold for the smoothed classifier, each with confidence {100 * (1 - alpha):g} %")
