"""Is this model backdoored? Neural Cleanse, DL-TND and DF-TND, with their evidence and known mistakes.

MODEL is a classifier file of this project (.pt) or an ONNX or .nnet network; DATA holds trusted rows in the
model's units. With --prove the suspected class (or --label) also gets a certified trigger bound: for
each square side, the share of the rows that *no* patch of that size at any place can send there.
"nothing found" proves nothing; the certified bound does.

  verifier scan model.pt --data attacked/trusted.npz --html scan.html
  verifier scan model.onnx --data digits --detectors neural-cleanse --prove 1 2 --rows 5
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from verifier.cli.parser import seconds
from verifier.cli.training import (
    add_common_arguments,
    count,
    opened,
    positive,
    print_table,
    progress,
    start,
    write_results,
)
from verifier.errors import NetworkError, SpecError

if TYPE_CHECKING:
    from torch import nn

    from verifier.data import Dataset
    from verifier.report.training_page import Section
    from verifier.training.detect.scan import Finding, ScanReport

DETECTORS = ("neural-cleanse", "dl-tnd", "df-tnd")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The contract of `verifier scan`."""
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--data", required=True, metavar="DATA", help="trusted rows: a .npz file or a packaged name")
    parser.add_argument("--detectors", nargs="+", choices=DETECTORS, metavar="NAME", help=", ".join(DETECTORS))
    parser.add_argument("--prove", nargs="+", type=count, metavar="SIDE", help="square patches to rule out, pixels")
    parser.add_argument("--blends", nargs="+", type=positive, metavar="S", help="blend strengths to rule out")
    parser.add_argument("--label", metavar="CLASS", help="class to prove about (default: the most suspected)")
    parser.add_argument("--rows", type=count, default=10, metavar="N", help="rows of other classes to prove about")
    parser.add_argument("--timeout", type=seconds, default=10.0, metavar="S", help="for each row and shape")
    parser.add_argument("--out", metavar="FILE", help="write the reversed triggers to FILE (.npz)")
    add_common_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Scan, prove, print."""
    start(args)
    from verifier.training.detect.scan import scan
    from verifier.training.graphs import open_model

    data = opened(args.data)
    model = open_model(args.model, data)
    detectors = _usable(model, args.detectors)
    with progress(args, "scan") as tell:
        report = scan(model, data, detectors, seed=args.seed, progress=tell)
    print(f"verdict: {report.verdict}" + ("" if report.target is None else f", class {data.classes[report.target]}"))
    sections = [_table(f, data) for f in report.findings]
    record = report.record()
    if args.prove or args.blends:
        record["proved"] = _prove(args, model, data, report, sections)
    for section in sections:
        print(f"\n{section.heading}")
        print_table(section.columns, section.rows)
        for text in section.words:
            print(text)
    if args.out is not None:
        _save_triggers(args.out, report)
    sections[0] = _with_pictures(sections[0], report.findings, data)
    words = "Nothing found proves nothing." if report.target is None else ""
    write_results(args, record, f"Scan of {args.model}", f"Verdict: {report.verdict}. {words}", sections)
    return 0


def _usable(model: nn.Module, wanted: list[str] | None) -> tuple[str, ...]:
    from verifier.training.predict import feature_layer

    try:
        feature_layer(model)
    except NetworkError as error:
        if wanted is not None and set(wanted) != {"neural-cleanse"}:
            raise NetworkError(f"{error}; only neural-cleanse works on this network") from None
        return ("neural-cleanse",)
    return tuple(wanted or DETECTORS)


def _table(finding: Finding, data: Dataset) -> Section:
    from verifier.report.training_page import Section

    per_class = {k: v for k, v in finding.evidence.items() if len(v) == len(data.classes)}
    rows = [
        (name, *(f"{values[k]:.3f}" for values in per_class.values()), "flagged" if k in finding.flagged else "")
        for k, name in enumerate(data.classes)
    ]
    columns = ("class", *(name.replace("_", " ") for name in per_class), "")
    return Section(finding.detector, (f"Known mistakes: {finding.caveat}.",), columns, rows)


def _suspect(args: argparse.Namespace, report: ScanReport, data: Dataset) -> int:
    if args.label is not None:
        return data.label(args.label)
    if report.target is not None:
        return report.target
    for finding in report.findings:
        if "mask_size" in finding.evidence:
            sizes = finding.evidence["mask_size"]
            return sizes.index(min(sizes))
    raise SpecError("--prove: nothing is suspected; name the class with --label")


def _prove(args: argparse.Namespace, model: nn.Module, data: Dataset, report: ScanReport, sections: list) -> list[dict]:
    from verifier.report.training_page import Curve, Section, picture_of
    from verifier.training.certify.triggers import (
        TriggerQuestion,
        blend_answers,
        largest_ruled_out,
        patch_answers,
        rows_outside,
    )
    from verifier.training.graphs import graph_for

    label = _suspect(args, report, data)
    rows = rows_outside(data, label, args.rows, args.seed)
    question = TriggerQuestion(graph_for(args.model, model, data), rows, data.valid, label, args.timeout, args.seed)
    answers = []
    with progress(args, "prove") as tell:
        groups = [patch_answers(question, sorted(args.prove), progress=tell)] if args.prove else []
        groups += [blend_answers(question, sorted(args.blends), progress=tell)] if args.blends else []
    words = [f"Towards class {data.classes[label]}, {len(rows)} rows of other classes."]
    for group in groups:
        best = largest_ruled_out(group)
        words.append(
            f"Proved: no {best.shape} sends any of these rows there."
            if best is not None
            else f"Not even {group[0].shape} could be ruled out for all rows."
        )
        answers += group
    table = [
        (a.shape, a.verdicts.count("unsat"), a.verdicts.count("sat"),
         len(rows) - a.verdicts.count("unsat") - a.verdicts.count("sat"), f"{a.success_at_most:.0%}")
        for a in answers
    ]  # fmt: skip
    columns = ("trigger", "proved safe", "a trigger exists", "open", "attack success at most")
    pictures = [picture_of(a.example, f"{a.shape}: reaches class {data.classes[label]}", data.valid)
                for a in answers if a.example is not None]  # fmt: skip
    curve = None
    if args.prove and len(args.prove) > 1:
        line = [(a.size, a.success_at_most) for a in groups[0]]
        curve = Curve({"proved ceiling": line}, "side of the square patch, pixels", "attack success at most")
    drawn = [p for p in pictures if p is not None]
    sections.append(Section("Certified trigger bound", words, columns, table, drawn, curve))
    return [{"shape": a.shape, "size": a.size, "verdicts": a.verdicts, "success_at_most": a.success_at_most}
            for a in answers]  # fmt: skip


def _with_pictures(section: Section, findings: tuple[Finding, ...], data: Dataset) -> Section:
    from dataclasses import replace

    from verifier.report.training_page import picture_of

    drawn = []
    for finding in findings:
        for label, trigger in finding.triggers.items():
            name = f"class {data.classes[label]}, {finding.detector}"
            drawn.append(picture_of(trigger.mask, f"{name}: reversed mask", (0.0, 1.0)))
            drawn.append(picture_of(trigger.pattern * trigger.mask, f"{name}: reversed trigger", data.valid))
    return replace(section, pictures=[p for p in drawn if p is not None])


def _save_triggers(path: str, report: ScanReport) -> None:
    from verifier.training.backdoor.trigger import save_trigger

    for finding in report.findings:
        for trigger in finding.triggers.values():
            save_trigger(trigger, path)
            print(f"\nreversed trigger written to {path}")
            return
    print("\nno trigger was reversed, nothing is written")
