"""Which rows of this data set are poisoned? Spectral signatures, activation clustering, STRIP, loss filter.

MODEL was trained on DATA (left out: one is trained here). STRIP also needs trusted rows. Each
flagged row comes with the methods that name it and how sure they are (the share of unflagged rows
that score lower).

  verifier scan-data attacked/data.npz --trusted attacked/trusted.npz --html rows.html
  verifier scan-data attacked/data.npz --model model.pt --methods spectral --out cleaned.npz
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from verifier.cli.answer import check_writable
from verifier.cli.training import (
    add_common_arguments,
    add_data_argument,
    add_recipe_arguments,
    count,
    fraction,
    opened,
    print_table,
    progress,
    recipe_of,
    start,
    write_results,
)
from verifier.errors import SpecError

if TYPE_CHECKING:
    from verifier.data import Dataset
    from verifier.training.detect.rows import RowScores

METHODS = ("spectral", "clustering", "strip", "loss")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The contract of `verifier scan-data`."""
    add_data_argument(parser)
    parser.add_argument("--model", metavar="MODEL", help="trained on DATA; left out: one is trained here")
    parser.add_argument("--methods", nargs="+", choices=METHODS, metavar="NAME", help=", ".join(METHODS))
    parser.add_argument("--trusted", metavar="DATA", help="trusted rows, for STRIP")
    parser.add_argument(
        "--expected", type=fraction, default=0.05, metavar="F", help="upper bound on the poisoned share"
    )
    parser.add_argument("--agree", type=count, default=1, metavar="N", help="methods that must agree on a row")
    parser.add_argument("--truth", metavar="FILE", help="poison.json of the attack: also print what was found")
    parser.add_argument("--out", metavar="FILE", help="write the data set without the flagged rows (.npz)")
    parser.add_argument("--show", type=count, default=20, metavar="N", help="rows to print (default: 20)")
    add_recipe_arguments(parser)
    add_common_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Scan, print, write."""
    start(args)
    check_writable(args.out)
    data = opened(args.data)
    answers = _answers(args, data)
    named = np.sum([a.flagged for a in answers], axis=0)
    rows = np.flatnonzero(named >= args.agree)
    order = rows[np.lexsort((rows, -_sureness(answers)[rows], -named[rows]))]
    table = [
        (row, data.classes[data.y[row]], ", ".join(a.method for a in answers if a.flagged[row]),
         f"{_sureness(answers)[row]:.1%}")
        for row in order
    ]  # fmt: skip
    columns = ("row", "class", "named by", "surer than")
    print(f"{len(rows)} of {len(data)} rows flagged")
    print_table(columns, table[: args.show])
    summary = [(a.method, int(a.flagged.sum()), a.reason) for a in answers]
    print()
    print_table(("method", "flagged", "what was read"), summary)
    record: dict[str, Any] = {
        "rows": order,
        "methods": {a.method: {"rows": a.rows, "sure": a.sure(), "reason": a.reason} for a in answers},
    }
    if args.truth is not None:
        record["truth"] = _against_truth(args.truth, answers, data)
    if args.out is not None:
        data.without(rows).save(args.out)
        print(f"\n{len(data) - len(rows)} rows written to {args.out}")
    write_results(
        args, record, f"Rows of {data.name}", f"{len(rows)} of {len(data)} rows flagged.",
        _sections(data, order, table, summary),
    )  # fmt: skip
    return 0


def _sections(data: Dataset, order: np.ndarray, table: list, summary: list) -> list:
    from verifier.report.training_page import Section, picture_of

    pictures = [picture_of(data.x[row], f"row {row}, class {data.classes[data.y[row]]}", data.valid)
                for row in order[:24]]  # fmt: skip
    return [
        Section("Methods", (), ("method", "flagged", "what was read"), summary),
        Section("Flagged rows", (), ("row", "class", "named by", "surer than"), table[:200],
                [p for p in pictures if p is not None]),
    ]  # fmt: skip


def _sureness(answers: list[RowScores]) -> np.ndarray:
    """The largest sureness any method gives a row, [n]; 0 where none flags it."""
    found = np.zeros(len(answers[0].scores))
    for answer in answers:
        found[answer.rows] = np.maximum(found[answer.rows], answer.sure())
    return found


def _answers(args: argparse.Namespace, data: Dataset) -> list[RowScores]:
    from verifier.training.detect.clustering import activation_clustering
    from verifier.training.detect.loss_filter import loss_filter
    from verifier.training.detect.spectral import Spectral, spectral_signatures
    from verifier.training.detect.strip import strip
    from verifier.training.graphs import open_model
    from verifier.training.train import train

    methods = args.methods or [m for m in METHODS if m != "strip" or args.trusted]
    if "strip" in methods and args.trusted is None:
        raise SpecError("strip: give trusted rows with --trusted DATA")
    recipe, model = recipe_of(args, data), None
    if set(methods) - {"loss"}:
        with progress(args, "training") as tell:
            model = open_model(args.model, data) if args.model else train(None, data, recipe, progress=tell).model
    answers = []
    for method in methods:
        with progress(args, method) as tell:
            if method == "loss":
                answers.append(loss_filter(data, recipe, expected=args.expected, progress=tell))
                continue
            assert model is not None
            if method == "spectral":
                answers.append(spectral_signatures(data, model, Spectral(expected=max(args.expected, 0.1))))
            elif method == "clustering":
                answers.append(activation_clustering(data, model))
            else:
                answers.append(strip(data, model, opened(args.trusted), seed=args.seed))
    return answers


def _against_truth(path: str, answers: list[RowScores], data: Dataset) -> dict[str, Any]:
    from verifier.training.detect.rows import recall

    try:
        touched = np.array(json.loads(Path(path).read_text())["touched"], dtype=np.int64)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SpecError(f"--truth {path}: not the poison.json of an attack: {error}") from error
    if touched.size and touched.max() >= len(data):
        raise SpecError(f"--truth {path}: names row {touched.max()}, the data has {len(data)}")
    found = {a.method: recall(a, touched, data) for a in answers}
    print()
    print_table(
        ("method", "poisoned rows found", "clean rows flagged"),
        [(name, f"{r.found:.1%}", f"{r.false_alarms:.1%}") for name, r in found.items()],
    )
    return {name: {"found": r.found, "false_alarms": r.false_alarms} for name, r in found.items()}
