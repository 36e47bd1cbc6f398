"""Make a backdoored model forget: a table of every method before and after, and the repaired model.

DATA holds trusted rows. Accuracy is measured on --test (default: the trusted rows), attack
success only where the --trigger and its --label are known. MODEL is a classifier file (.pt), or an ONNX or
.nnet network of common layers in one chain.

  verifier repair model.pt --data trusted.npz --test test.npz --method all
  verifier repair model.pt --data trusted.npz --method prune-neurons --out fixed.pt
"""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

import numpy as np

from verifier.cli.answer import check_writable
from verifier.cli.training import add_common_arguments, opened, print_table, progress, start, write_results
from verifier.errors import NetworkError, SpecError

if TYPE_CHECKING:
    from torch import nn

    from verifier.data import Dataset
    from verifier.training.backdoor.trigger import Trigger

METHODS = ("fine-tune", "fine-prune", "random-boxes", "unlearn", "adversarial-unlearn", "connect", "prune-neurons")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The contract of `verifier repair`."""
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--data", required=True, metavar="DATA", help="trusted rows: a .npz file or a packaged name")
    parser.add_argument("--method", nargs="+", default=["all"], choices=(*METHODS, "all"), metavar="NAME",
                        help=f"{', '.join(METHODS)}, or all (default)")  # fmt: skip
    parser.add_argument("--test", metavar="DATA", help="rows to measure the accuracy on")
    parser.add_argument("--trigger", metavar="FILE", help="known or reversed trigger (.npz): measure its success")
    parser.add_argument("--label", metavar="CLASS", help="class that trigger asks for")
    parser.add_argument("--use-trigger", action="store_true", help="unlearn the given trigger instead of scanning")
    parser.add_argument("--out", metavar="FILE", help="write the repaired model (.pt); one method only")
    add_common_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Repair, measure, print, write."""
    start(args)
    check_writable(args.out)
    from verifier.report.training_page import Section
    from verifier.training.architecture import save_model
    from verifier.training.backdoor.trigger import load_trigger
    from verifier.training.graphs import open_model
    from verifier.training.repair.methods import Job, repair

    clean = opened(args.data)
    methods = _suitable(clean) if "all" in args.method else args.method
    if args.out is not None and len(methods) != 1:
        raise SpecError("--out: name one --method; `all` only compares them")
    test = opened(args.test) if args.test else clean
    model = open_model(args.model, clean)
    if not any(p.requires_grad for p in model.parameters()):
        raise NetworkError(f"{args.model}: is not one chain of common layers, so there is nothing to train in it")
    trigger = load_trigger(args.trigger) if args.trigger else None
    if (trigger is None) != (args.label is None):
        raise SpecError("--trigger and --label belong together: give both or neither")
    if args.use_trigger and trigger is None:
        raise SpecError("--use-trigger: give the trigger with --trigger FILE and --label CLASS")
    target = None if args.label is None else test.label(args.label)
    rows = [_measured("before", model, test, trigger, target, 0.0)]
    repaired = model
    for method in methods:
        began = time.monotonic()
        with progress(args, method) as tell:
            known = (trigger,) if args.use_trigger and trigger is not None else ()
            repaired = repair(method, Job(model, clean, args.seed, known, tell))
        rows.append(_measured(method, repaired, test, trigger, target, time.monotonic() - began))
    columns = ("model", "accuracy", "points lost", "attack success", "seconds")
    table = [_line(row, float(rows[0]["accuracy"])) for row in rows]
    print_table(columns, table)
    if args.out is not None:
        save_model(repaired, args.out)
        print(f"repaired model written to {args.out}")
    words = () if trigger is not None else ("No trigger was given, so attack success is not measured.",)
    write_results(
        args, {"rows": rows}, f"Repair of {args.model}", f"{len(clean)} trusted rows, {len(test)} test rows.",
        [Section("Before and after", words, columns, table)],
    )  # fmt: skip
    return 0


def _suitable(clean: Dataset) -> list[str]:
    """What `all` means for this data: boxes are for images."""
    return [method for method in METHODS if method != "random-boxes" or clean.kind == "image"]


def _measured(
    name: str, model: nn.Module, test: Dataset, trigger: Trigger | None, target: int | None, spent: float
) -> dict:
    from verifier.training import predict

    success = None
    if trigger is not None:
        others = test.subset(test.y != target)
        if len(others) == 0:
            raise SpecError("attack success: every test row already has the target class; bring others")
        shown = np.clip(trigger(others.x), *test.valid)
        success = float(np.mean(predict.labels(model, shown) == target))
    return {"model": name, "accuracy": predict.accuracy(model, test), "success": success, "seconds": round(spent, 2)}


def _line(row: dict, before: float) -> tuple[str, ...]:
    success = "not measured" if row["success"] is None else f"{row['success']:.1%}"
    lost = 100 * (before - row["accuracy"])
    return (row["model"], f"{row['accuracy']:.1%}", f"{lost:+.1f}", success, f"{row['seconds']:.1f}")
