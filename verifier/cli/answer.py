"""From arguments to a printed verdict: what `verify`, `attack` and `competition` share.

The verdict goes out exactly once. Whoever claims the `Verdict line` first prints it: the analysis
when it ends, or the watchdog when a step overruns the time limit and cannot be interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

from verifier.errors import SpecError
from verifier.outcome import StopReason, Verdict

if TYPE_CHECKING:
    from verifier.report.model import Report

#: Seconds past the limit after which the watchdog answers instead of the analysis.
WATCHDOG_GRACE_S = 0.9


def analysis_settings(args: argparse.Namespace) -> Any:
    """The library's Settings; the time spent since `args.started` is taken off the limit."""
    from verifier.settings import Settings

    timeout_s = args.timeout
    if timeout_s is not None:
        timeout_s = max(timeout_s - (time.monotonic() - args.started), 0.01)
    return Settings(timeout_s=timeout_s, threads=args.threads, **shared_settings(args))


def shared_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Fields of Settings that every analysis of a list shares, see `add_settings_arguments`."""
    names = ("device", "soundness", "effort", "engine", "seed")
    return {name: getattr(args, name) for name in names if hasattr(args, name)}


def check_writable(path: str | None) -> None:
    """Raise before the work rather than after it when `path` cannot be written.

    Raises:
        SpecError: `path` is a folder, lies in no folder, or may not be written.
    """
    if path is None:
        return
    folder = os.path.dirname(os.path.abspath(path))
    if os.path.isdir(path):
        raise SpecError(f"cannot write '{path}': it is a folder")
    if not os.path.isdir(folder):
        raise SpecError(f"cannot write '{path}': there is no folder '{folder}'")
    if not os.access(path if os.path.exists(path) else folder, os.W_OK):
        raise SpecError(f"cannot write '{path}': permission denied")


class VerdictLine:
    """The right to print the verdict, which only one thread ever gets."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def claim(self) -> bool:
        """True for the first caller, False for everyone after it."""
        return self._lock.acquire(blocking=False)


@contextmanager
def watchdog(
    limit_s: float | None, started: float, line: VerdictLine, on_overrun: Callable[[], None]
) -> Iterator[None]:
    """Call `on_overrun` and end the process with 0 when no verdict came in `limit_s` seconds plus a grace.

    A step inside a library (reading a huge file, one long matrix product) cannot be interrupted; a
    thread beside it can still answer in time.
    """
    if limit_s is None:
        yield
        return

    def answer() -> None:
        if line.claim():
            on_overrun()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)

    timer = threading.Timer(max(limit_s + WATCHDOG_GRACE_S - (time.monotonic() - started), 0.01), answer)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C into a question the analysis asks; a second one stops at once.

    Yields:
        A function that says whether Ctrl-C was pressed.
    """
    pressed = threading.Event()

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()
        print("verifier: stopping; press Ctrl-C again to stop at once", file=sys.stderr)

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, before)


def summary_line(report: Report) -> str:
    """One line for people: verdict, reason, cost."""
    detail = f" ({report.reason_detail})" if report.reason_detail else ""
    parts = [f"{report.verdict.value}: {report.reason.value}{detail}", f"{report.total_seconds:.2f} s"]
    if report.domains_visited:
        parts.append(f"{report.domains_visited} subdomains, {report.domains_open} open")
    if report.bound_after is not None:
        parts.append(f"worst margin {report.bound_after:.6g}")
    if report.engine:
        parts.append(f"{report.engine} on {report.device}")
    return "; ".join(parts)


def print_log(report: Report, *, explain: bool) -> None:
    """What happened, on stderr: the time line when asked for, the notes, one summary line."""
    if explain:
        for event in report.timeline:
            print(f"{event.seconds:9.3f} s  {event.stage:<12} {event.text}", file=sys.stderr)
        for stage, spent in report.seconds.items():
            print(f"{spent:9.3f} s  in {stage}", file=sys.stderr)
        if report.verdict in (Verdict.SAT, Verdict.UNSAT):
            print(f"soundness: {report.soundness.message}", file=sys.stderr)
    for note in report.notes:
        print(f"verifier: note: {note}", file=sys.stderr)
    print(f"verifier: {summary_line(report)}", file=sys.stderr)


def print_answer(report: Report, line: VerdictLine, args: argparse.Namespace) -> int:
    """Print the verdict and its witness, write the files asked for, and say the exit code."""
    if report.reason is StopReason.INTERRUPTED:
        print_log(report, explain=args.explain)
        write_json(report.to_json(), args.json)
        return 130
    if line.claim():
        # The files first: a reader that closes the pipe after the verdict must not cost them.
        if report.witness is not None and args.witness is not None:
            with open(args.witness, "w", encoding="utf-8") as file:
                file.write(report.witness.text)
        write_json(report.to_json(), args.json)
        print(report.verdict.value)
        if report.witness is not None:
            sys.stdout.write(report.witness.text)
        sys.stdout.flush()
    print_log(report, explain=args.explain)
    return 0


def write_json(report: dict[str, Any], path: str | None) -> None:
    """Write a report as JSON, where a file was asked for."""
    if path is not None:
        with open(path, "w", encoding="utf-8") as file:
            json.dump(report, file, indent=1, allow_nan=False)
            file.write("\n")


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the answer goes besides stdout."""
    parser.add_argument("--witness", metavar="FILE", help="write the counterexample to FILE as well")
    parser.add_argument("--json", metavar="FILE", help="write the full report to FILE as JSON")
    parser.add_argument("--explain", action="store_true", help="print what happened when, on stderr")


def decide(
    args: argparse.Namespace, analysis: str, then: Callable[[Report, Callable[[], bool]], None] | None = None
) -> int:
    """Run `verifier.api.<analysis>` on the files of `args` and print the answer.

    Args:
        then: called with the report, and whether Ctrl-C was pressed, once the answer is out.
    """
    from verifier.cli.parser import split_problem

    network, spec = split_problem(args)
    check_writable(args.witness)
    check_writable(args.json)
    line = VerdictLine()

    def overrun() -> None:
        print("timeout")
        print("verifier: timeout: a step overran the time limit and was abandoned", file=sys.stderr)

    with watchdog(args.timeout, args.started, line, overrun), interruptible() as pressed:
        from verifier import api

        settings = analysis_settings(args)
        report = getattr(api, analysis)(network, spec, settings, cancel=pressed)
        code = print_answer(report, line, args)
        if then is not None and code == 0:
            then(report, pressed)
        return code
