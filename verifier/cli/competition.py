"""One instance with the calling convention of the verification competition.

  verifier competition CATEGORY ONNX VNNLIB RESULTS_FILE TIMEOUT

The first line of RESULTS_FILE is `sat`, `unsat`, `unknown`, `timeout` or `error`; after `sat` the
counterexample follows. CATEGORY is accepted and ignored: no setting depends on a benchmark's name.
ONNX may be a list of (name, path) pairs, as written for queries over several networks. The file is
complete before the program ends. Exit codes are those of `verifier verify`.
"""

from __future__ import annotations

import argparse
import os
import sys

from verifier.cli.answer import VerdictLine, analysis_settings, check_writable, interruptible, summary_line, watchdog
from verifier.cli.parser import add_analysis_arguments, seconds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The five positional arguments of run_instance."""
    parser.add_argument("category", metavar="CATEGORY")
    parser.add_argument("onnx", metavar="ONNX")
    parser.add_argument("vnnlib", metavar="VNNLIB")
    parser.add_argument("results", metavar="RESULTS_FILE")
    parser.add_argument("limit", type=seconds, metavar="TIMEOUT")
    add_analysis_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Verify and write the results file."""
    from verifier.batch.instances import parse_networks

    check_writable(args.results)
    limit = args.limit if args.timeout is None else min(args.limit, args.timeout)
    args.timeout = limit - min(1.5, 0.1 * limit)  # the harness stops its clock at TIMEOUT: answer before it
    line = VerdictLine()

    def overrun() -> None:
        _write(args.results, "timeout\n")

    try:
        with watchdog(args.timeout, args.started, line, overrun), interruptible() as pressed:
            from verifier import api

            networks = parse_networks(args.onnx)
            report = api.verify(networks, args.vnnlib, analysis_settings(args), cancel=pressed)
    except Exception:
        if line.claim():
            _write(args.results, "error\n")
        raise
    if line.claim():
        witness = report.witness.text if report.witness is not None else ""
        _write(args.results, f"{report.verdict.value}\n{witness}")
    print(f"verifier: {summary_line(report)}", file=sys.stderr)
    return 0


def _write(path: str, text: str) -> None:
    """Write the whole file under another name first: a reader never sees half of it."""
    partial = f"{path}.partial"
    with open(partial, "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(partial, path)
