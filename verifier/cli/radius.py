"""How far inputs of a data set can move before their class can change: proved and attacked, a row a sample.

  verifier radius specs/onnx/fc.onnx --data digits --start 1500 --norm linf --samples 50 --out radii
  verifier radius net.onnx --data test.npz --norm l2 --method smoothing --sigma 0.5 --n 100000
  verifier radius specs/onnx/fc.onnx --data digits --start 1500 --samples 20 --weights gemm_0

Each radius is bracketed: the class provably stays up to the lower end, a replayed counterexample
changes it at the upper end. With --out DIR every row is on disk at once (samples.csv, samples.jsonl),
Ctrl-C loses nothing, --resume goes on, and report.html shows it all.

Exit code: 0 done, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import argparse

from verifier.cli.sweep_options import add_sweep_arguments, run_sweep


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The contract of `verifier radius`."""
    add_sweep_arguments(parser)
    parser.add_argument(
        "--gap", type=float, default=0.05, help="stop at (upper - lower) / upper <= GAP (default: 0.05)"
    )


def run(args: argparse.Namespace) -> int:
    """Narrow every sample's radius down to the gap."""
    return run_sweep(args, "radius", (), args.gap)
