"""Write results of `verifier run` as one self-contained HTML page.

  verifier run specs/instances.csv --out results.csv --details results.jsonl
  verifier report results.csv --details results.jsonl --instances specs/instances.csv --out report.html

The pictured counterexample is the first one of the results whose inputs look like an image, or the
one that --show names. It is compared with the input that --originals gives for its property (JSON:
{"property": {"x": [...], "label": 3}}), else with the centre of the input box it lies in.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verifier.cli.answer import check_writable
from verifier.errors import SpecError

if TYPE_CHECKING:
    from verifier.batch.results import Row
    from verifier.report.html import Counterexample

Reports = dict[tuple[str, str], dict[str, Any]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Result files in, a page out."""
    parser.add_argument("results", metavar="RESULTS.csv")
    parser.add_argument("--details", metavar="FILE", help="the reports that `verifier run --details` wrote")
    parser.add_argument("--instances", metavar="FILE", help="the list that was run; its folder holds the files")
    parser.add_argument("--originals", metavar="FILE", help="original inputs by property name, JSON")
    parser.add_argument("--show", metavar="NAME", help="property whose counterexample to picture")
    parser.add_argument("--title", default="Verification report")
    parser.add_argument("--out", metavar="FILE", required=True, help="the page to write")


def run(args: argparse.Namespace) -> int:
    """Render and write."""
    from verifier.batch.results import read_rows
    from verifier.report.html import render

    check_writable(args.out)
    rows = read_rows(args.results)
    reports = _read_reports(args.details) if args.details else {}
    order = _order(args.instances) if args.instances else {}
    rows.sort(key=lambda row: order.get((row.onnx, row.vnnlib), len(order)))
    page = render(rows, reports, _choose(rows, reports, args), args.title)
    Path(args.out).write_text(page, encoding="utf-8")
    return 0


def _read_reports(path: str) -> Reports:
    """The last report of every instance; a line cut off by a kill is left out.

    Raises:
        SpecError: the file is not what `verifier run --details` writes.
    """
    reports: Reports = {}
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            if entry["report"] is not None:
                reports[entry["row"]["onnx"], entry["row"]["vnnlib"]] = entry["report"]
        except (ValueError, KeyError, TypeError):
            if number < len(lines):
                raise SpecError(f"{path}:{number}: expected a line of `verifier run --details`") from None
    return reports


def _order(path: str) -> dict[tuple[str, str], int]:
    from verifier.batch.instances import read_instances

    return {(i.onnx, i.vnnlib): number for number, i in enumerate(read_instances(path))}


def _choose(rows: list[Row], reports: Reports, args: argparse.Namespace) -> Counterexample | None:
    """The counterexample to picture, or None when there is none to show."""
    from verifier.report.picture import image_shape

    found = [row for row in rows if (reports.get((row.onnx, row.vnnlib)) or {}).get("witness")]
    if args.show:
        found = [row for row in found if Path(row.vnnlib).stem == args.show]
        if not found:
            raise SpecError(f"--show: the results hold no counterexample of a property '{args.show}'")
    if not found:
        return None
    originals = json.loads(Path(args.originals).read_text(encoding="utf-8")) if args.originals else {}
    found.sort(key=lambda row: Path(row.vnnlib).stem not in originals)
    images = [row for row in found if image_shape(len(reports[row.onnx, row.vnnlib]["witness"]["x"]))]
    row = (images or found)[0]
    return _compared(row, reports[row.onnx, row.vnnlib]["witness"], originals, args)


def _compared(row: Row, witness: dict, originals: dict, args: argparse.Namespace) -> Counterexample | None:
    import numpy as np

    from verifier.report.html import Counterexample

    x, y = np.array(witness["x"]), np.array(witness["y"])
    known = originals.get(Path(row.vnnlib).stem)
    if known is not None and len(known["x"]) == x.size:
        return Counterexample(row, np.array(known["x"], dtype=float), x, y, "the image asked about", known.get("label"))
    if args.instances is None:
        return None
    from verifier.api import load
    from verifier.batch.instances import Instance

    instance = Instance(row.onnx, row.vnnlib, None, "", Path(args.instances).parent)
    query, _ = load(instance.network, instance.spec)
    for case in query.problem.cases:
        lower, upper = case.inputs.lower, case.inputs.upper
        if np.all((lower <= x) & (x <= upper)):
            return Counterexample(row, 0.5 * (lower + upper), x, y, "the centre of the input box")
    return None
