"""Clean, attacked and certified accuracy of a network on a data set, at given radii.

  verifier certify specs/onnx/fc.onnx --data digits --start 1500 --norm linf --eps 0.05,0.1 --samples 50
  verifier certify net.onnx --data test.npz --norm l2 --eps 0.5 --method smoothing --sigma 0.5

  verifier certify specs/onnx/conv.onnx --data digits --transform brightness=-0.1:0.1 --transform contrast=0.9:1.1

With --transform the question is about the parameters of image transformations, applied in the order
given (or every one, --any-order), and --eps lists shares of the box of their ranges (1: all of it).

At each radius a sample is wrong from the start, attacked (a replayed counterexample), certified
(proved), or open. One row a sample, as `verifier radius` writes them; --resume goes on.

Exit code: 0 done, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import argparse
import math

from verifier.cli.sweep_options import add_sweep_arguments, run_sweep
from verifier.cli.transform_options import add_transform_arguments
from verifier.errors import SpecError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The contract of `verifier certify`."""
    add_sweep_arguments(parser)
    add_transform_arguments(parser)
    parser.add_argument("--eps", metavar="R,R,...", help="radii, in input units (features for l0), or shares of a box")


def run(args: argparse.Namespace) -> int:
    """Decide every sample at every radius."""
    if args.eps is None and not args.transform:
        raise SpecError("--eps: give the radii to decide, for example --eps 0.05,0.1, or transformations (--transform)")
    if args.any_order and not args.transform:
        raise SpecError("--any-order: only with --transform")
    radii = _radii("1" if args.eps is None else args.eps)
    if args.transform and not 0 < radii[0] <= radii[-1] <= 1:
        raise SpecError(f"--eps: with --transform expected shares of the box, above 0 and at most 1, got '{args.eps}'")
    return run_sweep(args, "certify", radii, 0.05, tuple(args.transform))


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
