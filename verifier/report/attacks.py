"""What an attack sweep found: the summary, its table for terminals, and a self-contained HTML page."""

from __future__ import annotations

import base64
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from rich.table import Table

from verifier import __version__
from verifier.report.html import machine
from verifier.report.picture import difference_png, image_shape, intensity_png

#: Name of the line that takes the worst of all attacks, sample by sample.
WORST = "worst case"
RecordLike = Mapping[str, Any]


@dataclass(frozen=True)
class Line:
    """One attack at one budget.

    Attributes:
        robust: share of all samples classified correctly and not broken, 0..1.
        broken: correctly classified samples with an adversarial input inside the budget.
        distortion: median size of those inputs in the sweep's norm; None without any.
        queries: median evaluations per sample attacked; seconds: total.
    """

    attack: str
    eps: float
    robust: float
    broken: int
    distortion: float | None
    queries: float
    seconds: float


@dataclass(frozen=True)
class Summary:
    """A sweep in numbers: samples, clean accuracy 0..1, the norm, and a line per budget and attack."""

    samples: int
    clean: float
    norm: str
    lines: tuple[Line, ...]


def summarise(records: Sequence[RecordLike]) -> Summary:
    """The summary of records as `Record.to_json` gives them; every attack seen, worst case last in each budget."""
    correct = {r["index"]: r["clean_prediction"] == r["label"] for r in records}
    samples = max(len(correct), 1)
    lines = []
    for eps in sorted({r["eps"] for r in records}):
        at = [r for r in records if r["eps"] == eps]
        names = list(dict.fromkeys(r["attack"] for r in at))
        lines += [_line(name, eps, [r for r in at if r["attack"] == name], correct) for name in names]
        if len(names) > 1:
            lines.append(_line(WORST, eps, at, correct))
    norm = records[0]["norm"] if records else ""
    return Summary(len(correct), sum(correct.values()) / samples, norm, tuple(lines))


def _line(name: str, eps: float, part: Sequence[RecordLike], correct: Mapping[int, bool]) -> Line:
    best: dict[int, float] = {}
    queries: dict[int, int] = {}
    for r in part:
        if not correct[r["index"]]:
            continue
        queries[r["index"]] = queries.get(r["index"], 0) + r["queries"]
        if r["success"]:
            best[r["index"]] = min(best.get(r["index"], float("inf")), r["distortion"][r["norm"]])
    attacked = {r["index"] for r in part}
    standing = sum(correct[i] and i not in best for i in attacked)
    return Line(
        name,
        eps,
        standing / max(len(attacked), 1),
        len(best),
        statistics.median(best.values()) if best else None,
        statistics.median(queries.values()) if queries else 0.0,
        sum(r["seconds"] for r in part),
    )


def attack_table(summary: Summary) -> Table:
    """The summary for a terminal."""
    table = Table(box=None, pad_edge=False)
    table.add_column("attack")
    for name in ("eps", "clean", "robust", "broken", f"median {summary.norm}", "median queries", "seconds"):
        table.add_column(name, justify="right")
    last = None
    for line in summary.lines:
        if last is not None and line.eps != last:
            table.add_section()
        last = line.eps
        table.add_row(line.attack, *_cells(summary, line))
    return table


def _cells(summary: Summary, line: Line) -> tuple[str, ...]:
    distortion = "-" if line.distortion is None else f"{line.distortion:.4g}"
    return (
        f"{line.eps:g}", f"{summary.clean:.1%}", f"{line.robust:.1%}", str(line.broken),
        distortion, f"{line.queries:g}", f"{line.seconds:.2f}",
    )  # fmt: skip


def render_attacks(
    title: str,
    records: Sequence[RecordLike],
    flags: Sequence[tuple[str, bool, str]],
    originals: Mapping[int, np.ndarray],
    *,
    classes: Sequence[str],
    pictures: int = 6,
) -> str:
    """The page's text: summary table, flags, and the smallest successful changes as pictures.

    Args:
        flags: (name, raised, message); originals: sample index -> clean input [*S].
        classes: class names; pictures: how many samples to draw at most.
    """
    summary = summarise(records)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = resources.files("verifier.report").joinpath("attacks.html").read_text(encoding="utf-8")
    return environment.from_string(template).render(
        title=title,
        summary=summary,
        rows=[(line.attack, line.attack == WORST, *_cells(summary, line)) for line in summary.lines],
        bars=[(line.attack, f"{line.eps:g}", 100 * line.robust, f"{line.robust:.1%}") for line in summary.lines],
        flags=flags,
        pictures=_pictures(records, originals, classes, pictures),
        machine=machine(),
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=__version__,
    )


def _pictures(
    records: Sequence[RecordLike], originals: Mapping[int, np.ndarray], classes: Sequence[str], count: int
) -> list[dict[str, Any]]:
    found: dict[int, RecordLike] = {}
    for r in records:
        if not r["adversarial_f32"] or r["clean_prediction"] != r["label"] or r["index"] not in originals:
            continue
        known = found.get(r["index"])
        if known is None or r["distortion"][r["norm"]] < known["distortion"][known["norm"]]:
            found[r["index"]] = r
    drawn = []
    for index in sorted(found)[:count]:
        clean = np.asarray(originals[index], dtype=np.float64)
        shape = clean.shape if clean.ndim == 3 and clean.shape[0] in (1, 3) else image_shape(clean.size)
        if shape is None:
            continue
        drawn.append(_picture(found[index], clean, shape, classes))
    return drawn


def _picture(record: RecordLike, clean: np.ndarray, shape: tuple[int, ...], classes: Sequence[str]) -> dict[str, Any]:
    changed = np.frombuffer(base64.b64decode(record["adversarial_f32"]), dtype="<f4").astype(np.float64)
    flat, size = clean.reshape(-1), (int(shape[0]), int(shape[1]), int(shape[2]))
    change = changed - flat
    low, high = min(float(flat.min()), 0.0), max(float(flat.max()), 1.0)
    return {
        "index": record["index"], "attack": record["attack"], "norm": record["norm"],
        "size": f"{record['distortion'][record['norm']]:.4g}",
        "before": _class(classes, record["label"]), "after": _class(classes, record["prediction"]),
        "original": intensity_png(flat, size, low, high), "found": intensity_png(changed, size, low, high),
        "difference": difference_png(change, size, float(np.abs(change).max(initial=0.0))),
        "reach": f"{np.abs(change).max(initial=0.0):.3g}",
    }  # fmt: skip


def _class(classes: Sequence[str], number: int) -> str:
    return classes[number] if 0 <= number < len(classes) else f"class {number}"
