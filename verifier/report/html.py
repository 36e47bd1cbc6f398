"""One self-contained HTML page about a set of results: no network, no scripts, prints well."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined

from verifier import __version__
from verifier.batch.instances import network_label
from verifier.batch.results import Row
from verifier.batch.score import Score, score, score_by_network
from verifier.report.picture import difference_png, image_shape, intensity_png

#: What each verdict means for a reader who does not know the words; symbols survive black-and-white print.
MEANINGS = {
    "unsat": ("✓", "proved", "no input of the set is unsafe"),
    "sat": ("✗", "counterexample", "an unsafe input was found and replayed"),
    "unknown": ("?", "open", "neither a proof nor a counterexample was found"),
    "timeout": ("?", "out of time", "the time limit came first"),
    "error": ("!", "error", "the instance could not be analysed"),
}


@dataclass(frozen=True)
class Counterexample:
    """A counterexample next to the input it is compared with.

    Attributes:
        row: the result it belongs to.
        original, found: flat inputs [N_in]; origin says what `original` is.
        outputs: network outputs at `found`, [N_out].
        label: class of the original, None where unknown.
    """

    row: Row
    original: np.ndarray
    found: np.ndarray
    outputs: np.ndarray
    origin: str
    label: int | None = None


def render(
    rows: Sequence[Row],
    reports: Mapping[tuple[str, str], Mapping[str, Any]],
    counterexample: Counterexample | None,
    title: str,
) -> str:
    """The page's text.

    Args:
        rows: results, in the order to show them.
        reports: (onnx, vnnlib) -> Report.to_json() values, for margins and soundness; may lack some.
        counterexample: the one to draw, or None.
        title: heading of the page.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row.onnx, []).append(_line(row, reports.get((row.onnx, row.vnnlib))))
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = resources.files("verifier.report").joinpath("template.html").read_text(encoding="utf-8")
    return environment.from_string(template).render(
        title=title,
        total=score(rows),
        bar=_bar(score(rows)),
        groups=groups,
        labels={name: network_label(name) for name in groups},
        bars={name: _bar(s) for name, s in score_by_network(rows).items()},
        meanings=MEANINGS,
        soundness=sorted({report["soundness"]["meaning"] for report in reports.values()}),
        picture=None if counterexample is None else _picture(counterexample),
        machine=machine(),
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=__version__,
    )


def machine() -> str:
    """Processor, cores and Python, for the page's foot."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    return f"{name}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"


def _line(row: Row, report: Mapping[str, Any] | None) -> dict[str, Any]:
    symbol, word, _ = MEANINGS[row.verdict]
    bound = report["bound"]["after"] if report else None
    margin = f"{bound:.4g}" if isinstance(bound, float) and row.verdict == "unsat" else ""
    return {
        "name": Path(row.vnnlib).name.removesuffix(".gz").removesuffix(".vnnlib"),
        "verdict": row.verdict, "symbol": symbol, "word": word, "seconds": f"{row.seconds:.2f}",
        "reason": row.reason, "margin": margin,
        "wrong": row.wrong, "late": row.late and row.verdict in ("sat", "unsat"), "expected": row.expected,
    }  # fmt: skip


def _bar(s: Score) -> list[tuple[str, int, float]]:
    """(kind, count, per cent of the width) of the parts that are not empty."""
    parts = [("unsat", s.unsat), ("sat", s.sat), ("open", s.unknown + s.timeouts), ("error", s.errors + s.wrong)]
    return [(kind, n, 100.0 * n / max(s.instances, 1)) for kind, n in parts if n]


def _picture(c: Counterexample) -> dict[str, Any]:
    change = c.found - c.original
    reach = float(np.max(np.abs(change), initial=0.0))
    low, high = (float(f(np.concatenate([c.original, c.found]))) for f in (np.min, np.max))
    # Images usually live in [0, 1]; the full range keeps faint ones faint.
    low, high = min(low, 0.0), max(high, 1.0) if high <= 1 else high
    shape = image_shape(c.original.size)
    largest = np.argsort(-np.abs(change))[:10]
    top = np.argsort(-c.outputs)[:5]
    return {
        "network": c.row.onnx, "property": c.row.vnnlib, "origin": c.origin, "label": c.label,
        "original": shape and intensity_png(c.original, shape, low, high),
        "found": shape and intensity_png(c.found, shape, low, high),
        "difference": shape and difference_png(change, shape, reach),
        "reach": f"{reach:.4g}", "changed": int(np.count_nonzero(change)), "size": change.size,
        "largest": [(int(i), f"{c.original[i]:.6g}", f"{c.found[i]:.6g}", f"{change[i]:+.4g}") for i in largest],
        "top": [(int(k), f"{c.outputs[k]:.4f}") for k in top],
    }  # fmt: skip
