"""Decide one property: is there an input in the set whose outputs are unsafe?

The first line of stdout is exactly `sat`, `unsat`, `unknown` or `timeout`; after `sat` the
counterexample follows in the specification's own format. Logs go to stderr. (VNN-LIB 2.0 writes
`timed-out` for `timeout`; everything else is its command-line contract.)

  verifier verify net.onnx property.vnnlib --timeout 60
  verifier verify query.vnnlib --network f=net.onnx --network g=other.onnx

With --proof, after `unsat` a proof is looked for as well, in the time that is left, and written to a
file that `verifier check` verifies with none of the code that found it.

Exit code: 0 a verdict was printed, 2 bad input, 1 internal error, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from verifier.cli.answer import add_output_arguments, analysis_settings, check_writable, decide, write_json
from verifier.cli.parser import add_analysis_arguments, add_problem_arguments, split_problem
from verifier.errors import SpecError, UnsupportedOperator
from verifier.outcome import Verdict

if TYPE_CHECKING:
    from verifier.report.model import Report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The contract of `verifier verify`."""
    add_problem_arguments(parser)
    add_analysis_arguments(parser)
    add_output_arguments(parser)
    parser.add_argument("--proof", metavar="FILE", help="after `unsat`, write a proof that `verifier check` verifies")


def run(args: argparse.Namespace) -> int:
    """Verify and print the verdict."""
    check_writable(args.proof)
    return decide(args, "verify", None if args.proof is None else partial(_prove, args))


def _prove(args: argparse.Namespace, report: Report, pressed: Callable[[], bool]) -> None:
    """Write a proof where the verdict is `unsat`; what came of it on stderr, and in the JSON report as `proof`."""
    from verifier import api
    from verifier.proof.format import save
    from verifier.proof.growth import NotProved

    if report.verdict is not Verdict.UNSAT:
        return
    network, spec = split_problem(args)
    began = time.monotonic()
    try:
        proof = api.prove(network, spec, analysis_settings(args), cancel=pressed)
    except (NotProved, UnsupportedOperator, SpecError) as reason:
        print(f"verifier: no proof was written, the verdict stands unchecked: {reason}", file=sys.stderr)
        return
    save(proof, args.proof)
    size, spent = os.path.getsize(args.proof), time.monotonic() - began
    count = f"{proof.leaf_count} {'leaf' if proof.leaf_count == 1 else 'leaves'}"
    print(f"verifier: proof: {count}, {size} bytes in '{args.proof}'; {spent:.2f} s", file=sys.stderr)
    about = {"file": args.proof, "leaves": proof.leaf_count, "bytes": size, "seconds": spent}
    write_json(report.to_json() | {"proof": about}, args.json)
