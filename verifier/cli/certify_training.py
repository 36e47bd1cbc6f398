"""Certificates of the training phase: what no poison within a budget can change.

  dpa       models on hash partitions vote; certified against inserted and deleted rows
  rab       models on noisy copies vote; certified against changes of the training features (Euclidean norm)
  nearest   the same for the 1-nearest-neighbour rule, computed exactly instead of sampled
  sanitise  two classes, linear learner behind an outlier filter: a ceiling on its loss under any
            poison that passes the filter, and a poison that nearly reaches it

DATA is divided into train, test and trusted parts; certified accuracy is measured on the test part.
The certified trigger bound of one finished model is `verifier scan MODEL --prove`.

  verifier certify-training digits --method dpa --parts 50 --html dpa.html
  verifier certify-training digits --method nearest --sigma 0.5 --rows 50
  verifier certify-training breast_cancer --method sanitise --poison 0.01 0.03 0.1
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

import numpy as np

from verifier.cli.training import (
    add_common_arguments,
    add_data_argument,
    add_recipe_arguments,
    count,
    fraction,
    parts_of,
    positive,
    print_table,
    progress,
    recipe_of,
    start,
    write_results,
)
from verifier.errors import SpecError

if TYPE_CHECKING:
    from verifier.data import Dataset, Split


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The contract of `verifier certify-training`."""
    add_data_argument(parser)
    parser.add_argument("--method", required=True, choices=("dpa", "rab", "nearest", "sanitise"))
    parser.add_argument("--parts", type=count, default=50, metavar="K", help="dpa: partitions")
    parser.add_argument("--sigma", type=positive, default=0.5, metavar="S", help="rab, nearest: noise, data's units")
    parser.add_argument("--models", type=count, default=200, metavar="N", help="rab: noisy trainings")
    parser.add_argument("--alpha", type=fraction, default=0.001, metavar="P", help="rab: chance of a wrong certificate")
    parser.add_argument("--rows", type=count, metavar="N", help="test rows to certify (default: all; nearest: 100)")
    parser.add_argument("--poison", nargs="+", type=fraction, default=[0.01, 0.03, 0.1], metavar="F", help="sanitise")
    parser.add_argument("--keep", type=fraction, default=0.95, metavar="F", help="sanitise: share the filter keeps")
    parser.add_argument("--norm", type=positive, default=5.0, metavar="R", help="sanitise: norm of the learner")
    add_recipe_arguments(parser)
    add_common_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Certify, print, write."""
    start(args)
    parts = parts_of(args.data, args.seed)
    if args.method == "sanitise":
        return _sanitise(args, parts)
    rows = args.rows or (100 if args.method == "nearest" else len(parts.test))
    test = parts.test.subset(np.arange(min(rows, len(parts.test))))
    answers, radii, unit = _certified(args, parts, test)
    right = answers == test.y
    if args.method == "dpa":
        from verifier.training.certify.partition import certified_curve

        curve: list[tuple[float, float]] = [(float(r), v) for r, v in certified_curve(answers, radii, test.y)]
    else:
        sizes = np.linspace(0.0, float(radii[right].max(initial=0.0)), 11)
        curve = [(float(s), float(np.mean(right & (radii > s)))) for s in sizes]
    columns, table = (unit, "certified accuracy"), [(f"{size:.4g}", f"{share:.1%}") for size, share in curve]
    print(f"accuracy {np.mean(right):.1%} on {len(test)} test rows, abstained {np.mean(answers < 0):.1%}")
    print_table(columns, table)
    record: dict[str, Any] = {"labels": answers, "radii": radii, "truth": test.y, "curve": curve, "unit": unit}
    from verifier.report.training_page import Curve, Section

    section = Section("Certified accuracy", (), columns, table, (), Curve({args.method: curve}, unit, columns[1]))
    write_results(args, record, f"Certificates by {args.method}", f"{args.data}, {len(test)} test rows.", [section])
    return 0


def _certified(args: argparse.Namespace, parts: Split, test: Dataset) -> tuple[np.ndarray, np.ndarray, str]:
    """(labels, radii, what a radius counts)."""
    from verifier.training.certify import partition, smoothed

    recipe = recipe_of(args, parts.train)
    with progress(args, args.method) as tell:
        if args.method == "dpa":
            ensemble = partition.deep_partition(parts.train, recipe, args.parts, tell)
            return *partition.certified_votes(ensemble.votes(test.x)), "rows inserted or deleted"
        if args.method == "rab":
            chosen = smoothed.Smoothing(args.sigma, args.models, args.alpha, args.seed)
            found = smoothed.smoothed(parts.train, test.x, recipe, chosen, tell)
        else:
            found = smoothed.nearest_neighbour(parts.train, test.x, args.sigma)
    return found.labels, found.radii, "change of all training features, Euclidean norm"


def standardised(data: Dataset, by: Dataset) -> Dataset:
    """Rows in units of the standard deviation of `by`, centred on its mean."""
    from dataclasses import replace

    center, scale = by.x.mean(axis=0), by.x.std(axis=0)
    return replace(data, x=(data.x - center) / (scale + (scale == 0)), valid=(-np.inf, np.inf))


def _sanitise(args: argparse.Namespace, parts: Split) -> int:
    from verifier.report.training_page import Curve, Section
    from verifier.training.certify.sanitise import Sanitisation, certify_filter, fit_filter

    if len(parts.train.classes) != 2:
        raise SpecError(f"sanitise: expected two classes, '{args.data}' has {len(parts.train.classes)}")
    trusted, clean = (standardised(part, parts.trusted) for part in (parts.trusted, parts.train))
    rule, rows, record = fit_filter(trusted, args.keep), [], []
    with progress(args, "sanitise") as tell:
        for number, poison in enumerate(sorted(args.poison)):
            found = certify_filter(clean, rule, Sanitisation(poison, args.norm))
            record.append({"poison": poison, "bound": found.bound, "clean_loss": found.clean_loss,
                           "reached": found.reached, "wrong": found.wrong})  # fmt: skip
            rows.append((f"{poison:.1%}", f"{found.bound:.4f}", f"{found.reached:.4f}", f"{found.clean_loss:.4f}",
                         f"{found.wrong:.1%}"))  # fmt: skip
            tell((number + 1) / len(args.poison), f"poison {poison:.1%}: bound {found.bound:.4f}")
    columns = ("poison", "loss at most", "loss the matching attack reaches", "loss without", "rows wrong under it")
    print_table(columns, rows)
    words = ("Mean hinge loss on the clean rows that pass the filter; no poison that passes it can exceed the first "
             "number, nor make a larger share of these rows wrong.",)  # fmt: skip
    lines = {
        name: [(r["poison"], r[key]) for r in record] for name, key in (("at most", "bound"), ("reached", "reached"))
    }
    curve = Curve(lines, "poisoned rows over clean rows", "mean hinge loss (100% is 1)")
    section = Section("Ceiling on the damage", words, columns, rows, (), curve)
    write_results(
        args, {"rows": record}, "Data sanitisation certificate", f"{args.data}, {len(clean)} rows.", [section]
    )
    return 0
