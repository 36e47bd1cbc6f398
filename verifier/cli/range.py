"""Certified lower and upper bounds of every output over a set of inputs.

  verifier range net.onnx --input box.vnnlib --timeout 60
  verifier range net.onnx --input box.npz
  verifier range net.onnx --input image.npy:0.02

BOX is a VNN-LIB file (its outputs' constraints are ignored), an .npz with arrays 'lower' and 'upper',
or CENTRE.npy:EPS. The ranges hold for every input of the set; beside them stand values that the
outputs do attain, so the true range lies between the two. With --timeout all of the time is used
unless the two agree; without it the command stops after optimising slopes. Ctrl-C prints what is
certified by then.

Exit code: 0 answered, 2 bad input, 130 interrupted (the ranges printed are valid).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from typing import TYPE_CHECKING

from verifier.cli.answer import check_writable, interruptible
from verifier.cli.input_set import FORMS, NORMS, read_box
from verifier.cli.parser import seconds

if TYPE_CHECKING:
    from verifier.spec.problem import InputSet
    from verifier.tighten.output_range import OutputRange


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The network, the input set, the time."""
    parser.add_argument("network", metavar="NET")
    parser.add_argument("--input", required=True, metavar="BOX", help=FORMS)
    parser.add_argument("--norm", choices=tuple(NORMS), default="linf", help="of CENTRE.npy:EPS (default: linf)")
    parser.add_argument("--timeout", type=seconds, metavar="S", help="seconds to spend on tighter ranges")
    parser.add_argument("--soundness", choices=("float32", "real"), default="float32",
                        help="what the ranges hold for (default: float32, which implies real)")  # fmt: skip
    parser.add_argument("--json", metavar="FILE", help="write ranges and attaining inputs to FILE as JSON")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the attack (default: 0)")


def run(args: argparse.Namespace) -> int:
    """Bound every output and print the table."""
    check_writable(args.json)
    with interruptible() as pressed:
        from verifier.graph.load import load_network
        from verifier.outcome import Soundness
        from verifier.tighten.output_range import RangeSettings, output_range

        graph = load_network(args.network)
        sets = read_box(args.input, graph, args.norm)
        settings = RangeSettings(
            timeout_s=None if args.timeout is None else args.timeout / len(sets),
            soundness=Soundness.IEEE_FLOAT if args.soundness == "float32" else Soundness.REAL_ARITHMETIC,
            seed=args.seed,
            cancelled=pressed,
            on_progress=_progress,
        )
        found: list[tuple[InputSet, OutputRange]] = []
        for index, inputs in enumerate(sets):
            if pressed():
                print(f"verifier: {len(sets) - index} of {len(sets)} input sets were not reached", file=sys.stderr)
                break
            if len(sets) > 1:
                print(f"input set {index + 1} of {len(sets)}:")
            ranges = output_range(graph, inputs, settings)
            _print_table(ranges)
            found.append((inputs, ranges))
        if args.json is not None:
            _write_json(args, [r for _, r in found])
        return 130 if pressed() else 0


def _progress(stage: str, found: OutputRange) -> None:
    import numpy as np

    width = np.max(found.upper - found.lower, initial=0.0)
    print(
        f"verifier: {found.seconds:8.2f} s  {stage:<16} widest range {width:.6g}, "
        f"{int(found.finished.sum())} of {found.finished.size} outputs finished",
        file=sys.stderr,
    )


def _print_table(found: OutputRange) -> None:
    print(f"{'output':>6} {'lower':>14} {'attained':>14} {'attained':>14} {'upper':>14}")
    for i, (low, reached_low, reached_high, high) in enumerate(
        zip(found.lower, found.reached_low, found.reached_high, found.upper, strict=True)
    ):
        print(f"{i:>6} {_down(low):>14} {reached_low:>14.7g} {reached_high:>14.7g} {_up(high):>14}")
    print(f"ranges: {found.soundness.message}; {found.seconds:.2f} s")


def _down(value: float) -> str:
    """Seven digits, rounded towards -inf, so that the printed end is certified too."""
    return _outward(value, -1.0)


def _up(value: float) -> str:
    return _outward(value, 1.0)


def _outward(value: float, sign: float) -> str:
    if not math.isfinite(value):
        return f"{value}"
    text = f"{value:.7g}"
    step = 10.0 ** (math.floor(math.log10(abs(value))) - 6) if value else 0.0
    while sign * (float(text) - value) < 0:
        text = f"{value + sign * step:.7g}"
        step *= 2.0
    return text


def _write_json(args: argparse.Namespace, ranges: list[OutputRange]) -> None:
    def numbers(values) -> list:
        return [float(v) if math.isfinite(v) else str(float(v)) for v in values]

    content = {
        "network": args.network,
        "input": args.input,
        "sets": [
            {
                "lower": numbers(r.lower),
                "upper": numbers(r.upper),
                "attained_low": numbers(r.reached_low),
                "attained_high": numbers(r.reached_high),
                "inputs_low": [numbers(p) for p in r.points_low],
                "inputs_high": [numbers(p) for p in r.points_high],
                "finished": r.finished.tolist(),
                "seconds": r.seconds,
                "soundness": r.soundness.name.lower(),
            }
            for r in ranges
        ],
    }
    with open(args.json, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=1, allow_nan=False)
        file.write("\n")
