"""Decide every instance of a list: a CSV file with columns onnx,vnnlib,timeout[,expected].

Paths are relative to the CSV file; a header line may be present. A row
onnx,vnnlib,timeout_s,verdict,seconds,expected,reason goes to --out (or stdout) the moment an instance
ends, so nothing is lost by an interruption; --resume goes on where a file of rows ends. Each process
serves many instances. A process that crashes or overruns its limit by 10 s costs one row. --proofs then looks
for a proof of every unsat verdict, each in its instance's time limit, one after the other: DIR/proofs.csv says
what was found, `verifier check` verifies; the same command goes on where it ended.

  verifier run specs/instances.csv --timeout-cap 60 --out results.csv --workers 2

Exit code: 0 every instance has a row and none is wrong, 1 a verdict contradicts the `expected` column,
2 bad input, 130 interrupted (rows so far are kept).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from verifier.cli.answer import check_writable, interruptible, shared_settings
from verifier.cli.parser import add_settings_arguments, count, seconds
from verifier.errors import SpecError

if TYPE_CHECKING:
    from verifier.batch.instances import Instance
    from verifier.batch.pool import SweepSettings
    from verifier.batch.results import Row
    from verifier.settings import Settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The contract of `verifier run`."""
    parser.add_argument("instances", metavar="INSTANCES.csv")
    parser.add_argument("--timeout-cap", type=seconds, metavar="S", help="upper limit on every instance's own timeout")
    parser.add_argument("--out", metavar="FILE", help="write the rows here instead of stdout")
    parser.add_argument("--details", metavar="FILE", help="append every full report here, one JSON object a line")
    parser.add_argument("--workers", type=count, default=1, metavar="N", help="processes at a time (default: 1)")
    parser.add_argument("--threads", type=count, metavar="N", help="CPU threads a process (default: cores / workers)")
    parser.add_argument("--resume", action="store_true", help="keep the rows already in --out and do the rest")
    parser.add_argument("--sample", type=count, default=1, metavar="K", help="only every K-th instance")
    parser.add_argument("--proofs", metavar="DIR", help="then look for proofs of unsat verdicts, a file each in DIR")
    add_settings_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Sweep the list and print the summary."""
    from verifier.batch.instances import read_instances
    from verifier.batch.pool import SweepSettings, sweep
    from verifier.batch.results import RowWriter, remaining
    from verifier.report.text import SweepProgress, print_summary

    instances = read_instances(args.instances)[:: args.sample]
    for path in (args.out, args.details):
        check_writable(path)
    if args.proofs is not None:
        Path(args.proofs).mkdir(parents=True, exist_ok=True)  # what cannot be made is said before the work
    if args.resume and args.out is None:
        raise SpecError("--resume: name the file of rows to go on with (--out FILE)")
    rows = _kept_rows(args.out) if args.resume else []
    waiting = remaining(instances, rows)
    settings = SweepSettings(
        workers=args.workers,
        threads=args.threads or max(1, (os.cpu_count() or 1) // args.workers),
        timeout_cap_s=args.timeout_cap,
        analysis=shared_settings(args),
    )
    interrupted = False
    with ExitStack() as stack:
        out = stack.enter_context(_open(args.out, append=bool(rows))) if args.out else sys.stdout
        details = stack.enter_context(_open(args.details, append=args.resume)) if args.details else None
        writer = RowWriter(out, header=not rows)
        progress = stack.enter_context(SweepProgress(len(waiting), sys.stderr))
        results = stack.enter_context(closing(sweep(waiting, settings)))
        try:
            for result in results:
                writer.write(result.row)
                rows.append(result.row)
                if details is not None:
                    _write_details(details, result.row.cells(), result.report)
                progress.add(result.row)
        except KeyboardInterrupt:
            interrupted = True
    print_summary(rows, sys.stdout if args.out else sys.stderr)
    if interrupted:
        print(f"verifier: interrupted; {len(rows)} rows are kept", file=sys.stderr)
        return 130
    if args.proofs is not None and not _prove(args, instances, rows, settings):
        return 130
    return 1 if any(row.wrong for row in rows) else 0


def _prove(args: argparse.Namespace, instances: list[Instance], rows: list[Row], sweep: SweepSettings) -> bool:
    """Proofs of the unsat verdicts, each in its instance's time limit; False when interrupted."""
    from verifier.batch.proofs import found_in, prove_all
    from verifier.settings import Settings

    told = {(row.onnx, row.vnnlib) for row in rows if row.verdict == "unsat"}
    unsat = [i for i in instances if (i.onnx, i.vnnlib) in told]

    def settings(instance: Instance) -> Settings:
        return Settings(timeout_s=sweep.limit_s(instance), threads=sweep.threads, **shared_settings(args))

    folder = Path(args.proofs)
    with interruptible() as pressed:
        for attempt in prove_all(unsat, folder, settings, pressed):
            what = attempt.proof or f"none: {attempt.reason}"
            print(f"verifier: proof of {attempt.instance.onnx} {attempt.instance.vnnlib}: {what}", file=sys.stderr)
        print(f"proofs: {found_in(folder)} of {len(unsat)} unsat verdicts, in {folder}", file=sys.stderr)
        return not pressed()


def _kept_rows(path: str) -> list:
    """The rows of an earlier run; a line cut off by a kill is removed from the file."""
    from verifier.batch.results import RowWriter, read_rows

    if not os.path.exists(path):
        return []
    rows = read_rows(path)
    partial = f"{path}.partial"
    with open(partial, "w", newline="", encoding="utf-8") as file:
        writer = RowWriter(file, header=True)
        for row in rows:
            writer.write(row)
    os.replace(partial, path)
    return rows


def _open(path: str, *, append: bool) -> TextIO:
    return open(path, "a" if append else "w", newline="", encoding="utf-8")


def _write_details(file: TextIO, cells: list[str], report: dict | None) -> None:
    from verifier.batch.results import COLUMNS

    json.dump({"row": dict(zip(COLUMNS, cells, strict=True)), "report": report}, file)
    file.write("\n")
    file.flush()
