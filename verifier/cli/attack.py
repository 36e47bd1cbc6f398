"""Search for a counterexample only, to one property or over a whole data set.

With a property: prints `sat` and the counterexample when one is found and replayed in ONNX Runtime,
otherwise `unknown` (or `timeout`). Options and exit codes are those of `verifier verify`.

  verifier attack net.onnx property.vnnlib --timeout 10

With a data set: attacks every sample and prints clean and robust accuracy for each attack and budget,
and for the worst case over the attacks, sample by sample.

  verifier attack net.onnx --data digits --norm linf --eps 0.03,0.1 --attack pgd,fab --out results
"""

from __future__ import annotations

import argparse
import math

from verifier.cli.answer import add_output_arguments, check_writable, decide
from verifier.cli.parser import add_analysis_arguments, add_problem_arguments, count
from verifier.errors import SpecError

_NORMS = {"l0": 0.0, "0": 0.0, "l1": 1.0, "1": 1.0, "l2": 2.0, "2": 2.0, "linf": math.inf, "inf": math.inf}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `verifier verify`, and those of a sweep over data."""
    add_problem_arguments(parser)
    add_analysis_arguments(parser, proves=False)
    add_output_arguments(parser)
    parser.add_argument(
        "--attack", default="auto", metavar="NAME,...",
        help="auto (default), standard, plus, or names; with a property only auto",
    )  # fmt: skip
    data = parser.add_argument_group("over a data set (needs --data and --eps)")
    data.add_argument("--data", metavar="FILE", help="digits, another packaged set, .npz, .csv, IDX, CIFAR or a folder")
    data.add_argument("--norm", choices=tuple(_NORMS), default="linf", help="norm of the budget (default: linf)")
    data.add_argument("--eps", type=budgets, metavar="E,...", help="budgets in the data's own units")
    data.add_argument("--samples", type=count, metavar="N", help="only the first N samples")
    data.add_argument("--start", type=int, default=0, metavar="K", help="from row K on only (a test part)")
    data.add_argument("--targeted", action="store_true", help="aim at a random other class for each sample")
    data.add_argument("--batch", type=count, default=32, metavar="N", help="samples at a time (default: 32)")
    data.add_argument("--out", metavar="DIR", help="write one JSON line a result to DIR/results.jsonl, at once")
    data.add_argument("--resume", action="store_true", help="keep the results in --out and do the rest")
    data.add_argument("--report", metavar="FILE", help="write an HTML page with the table and pictures")


def budgets(text: str) -> tuple[float, ...]:
    """Budgets separated by commas: finite numbers > 0, returned in rising order."""
    try:
        values = sorted({float(part) for part in text.split(",")})
    except ValueError:
        values = [math.nan]
    if not all(0 < v < math.inf for v in values):
        raise argparse.ArgumentTypeError(f"expected numbers > 0 separated by commas, got '{text}'")
    return tuple(values)


def run(args: argparse.Namespace) -> int:
    """Attack and print the verdict, or the table of a sweep."""
    if args.data is not None:
        from verifier.cli.attack_data import run_sweep

        _check_sweep(args)
        return run_sweep(args, _NORMS[args.norm])
    for name in ("eps", "samples", "start", "targeted", "out", "resume", "report"):
        if getattr(args, name):
            raise SpecError(f"--{name}: only with --data; a property has its own input set")
    if args.attack != "auto":
        raise SpecError(f"--attack: expected auto with a property, got '{args.attack}'; named attacks need --data")
    return decide(args, "falsify")


def _check_sweep(args: argparse.Namespace) -> None:
    if len(args.files) != 1 or args.network:
        raise SpecError(f"--data: expected one network and no specification, got {' '.join(args.files)}")
    if args.eps is None:
        raise SpecError("--data: give the budgets with --eps, for example --eps 0.03,0.1")
    if args.device != "cpu":
        raise SpecError("--device: attacks over a data set run on the CPU only")
    if args.resume and args.out is None:
        raise SpecError("--resume: name the folder of results to go on with (--out DIR)")
    for name in ("witness", "json", "timeout"):
        if getattr(args, name) is not None:
            raise SpecError(f"--{name}: only with a property; results over a data set go to --out and --report")
    check_writable(args.report)
