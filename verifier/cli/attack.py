"""Search for a counterexample only: falsification without any proof.

Prints `sat` and the counterexample when one is found and replayed in ONNX Runtime, otherwise
`unknown` (or `timeout`). Options and exit codes are those of `verifier verify`.

  verifier attack net.onnx property.vnnlib --timeout 10
"""

from __future__ import annotations

import argparse

from verifier.cli.answer import add_output_arguments, decide
from verifier.cli.parser import add_analysis_arguments, add_problem_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `verifier verify`."""
    add_problem_arguments(parser)
    add_analysis_arguments(parser)
    add_output_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Attack and print the verdict."""
    return decide(args, "falsify")
