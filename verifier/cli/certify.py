"""Clean, attacked and certified accuracy of a network on a data set, at given radii.

  verifier certify specs/onnx/fc.onnx --data digits --start 1500 --norm linf --eps 0.05,0.1 --samples 50
  verifier certify net.onnx --data test.npz --norm l2 --eps 0.5 --method smoothing --sigma 0.5

At each radius a sample is wrong from the start, attacked (a replayed counterexample), certified
(proved), or open. One row a sample, as `verifier radius` writes them; --resume goes on.

Exit code: 0 done, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import argparse
import math

from verifier.cli.sweep_options import add_sweep_arguments, run_sweep
from verifier.errors import SpecError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The contract of `verifier certify`."""
    add_sweep_arguments(parser)
    parser.add_argument("--eps", required=True, metavar="R,R,...", help="radii, in input units (features for l0)")


def run(args: argparse.Namespace) -> int:
    """Decide every sample at every radius."""
    return run_sweep(args, "certify", _radii(args.eps), 0.05)


def _radii(text: str) -> tuple[float, ...]:
    """The radii, sorted, each once.

    Raises:
        SpecError: not numbers >= 0, or none above 0.
    """
    try:
        found = sorted({float(part) for part in text.split(",")})
    except ValueError:
        found = []
    if not found or found[0] < 0 or not 0 < found[-1] < math.inf:
        raise SpecError(f"--eps: expected radii >= 0 separated by commas, one above 0, got '{text}'")
    return tuple(found)
