"""Decide one property: is there an input in the set whose outputs are unsafe?

The first line of stdout is exactly `sat`, `unsat`, `unknown` or `timeout`; after `sat` the
counterexample follows in the specification's own format. Logs go to stderr. (VNN-LIB 2.0 writes
`timed-out` for `timeout`; everything else is its command-line contract.)

  verifier verify net.onnx property.vnnlib --timeout 60
  verifier verify query.vnnlib --network f=net.onnx --network g=other.onnx

Exit code: 0 a verdict was printed, 2 bad input, 1 internal error, 130 interrupted.
"""

from __future__ import annotations

import argparse

from verifier.cli.answer import add_output_arguments, decide
from verifier.cli.parser import add_analysis_arguments, add_problem_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The contract of `verifier verify`."""
    add_problem_arguments(parser)
    add_analysis_arguments(parser)
    add_output_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Verify and print the verdict."""
    return decide(args, "verify")
