"""The certified-radius report: one page, and the same facts as plain data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib import resources
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined

from verifier.certify.rows import Row
from verifier.certify.summary import curve_radii, shares_at, summarise
from verifier.outcome import Soundness
from verifier.report.chart import ATTACKED, PROVED, Curve, histogram, line_chart
from verifier.report.picture import difference_png, intensity_png

#: Inputs pictured at either end of the order.
PICTURED = 4
BINS = 12


def facts(setup: dict[str, Any], rows: Sequence[Row], seconds: float) -> dict[str, Any]:
    """Everything the page says, as JSON values.

    Args:
        setup: what was asked, see run.json. rows: a row a sample. seconds: wall time of this run.
    """
    question = setup["question"]
    smoothing = question["smoothing"]
    level = {"float32": Soundness.IEEE_FLOAT, "real": Soundness.REAL_ARITHMETIC}[question["soundness"]]
    if smoothing is not None:
        strength = (
            f"each certificate is about the smoothed classifier and holds with confidence "
            f"{100 * (1 - smoothing['alpha']):g} % over the sampled noise ({smoothing['samples']} samples, ideal real "
            f"{smoothing['noise']} noise of scale {smoothing['sigma']:g}); among all certificates of this page about a "
            f"share of {smoothing['alpha']:g} may be wrong"
        )
    else:
        moved = question.get("weights") is not None
        where = "the graph with its weights moved, in the program's arithmetic" if moved else "the deployed program"
        strength = f"proofs: {level.message}; counterexamples: replayed in {where}"
        if question.get("transforms") is not None:
            strength += (
                "; transformations: proofs hold for them in real arithmetic and for every program whose pixels "
                "differ from that by rounding alone"
            )
    radii = curve_radii(rows)
    shares = [shares_at(rows, float(r)) for r in radii]
    return {
        **setup,
        "soundness": "sampled" if smoothing is not None else level.name.lower(),
        "strength": strength,
        "method": _method(question),
        "summary": _finite(asdict(summarise(rows, question["radii"]))),
        "curve": {
            "radius": radii.tolist(),
            "certified": [s.certified for s in shares],
            "withstood": None if smoothing is not None else [s.withstood for s in shares],
        },
        "seconds": seconds,
        "samples": [row.to_json() for row in rows],
    }


def _method(question: dict[str, Any]) -> str:
    smoothing = question["smoothing"]
    if smoothing is not None:
        order = ", the gradient of the vote included" if smoothing["order"] else ""
        return f"randomised smoothing with {smoothing['noise']} noise, Clopper-Pearson bounds{order}"
    if question.get("transforms") is not None:
        return (
            "the transformations as layers in front of the network, branch and bound over their parameters; "
            "attacks over the same parameters (grid and gradients) from above"
        )
    how = {
        "bounds": "linear bounds of the whole ball",
        "slopes": "linear bounds with optimised slopes",
        "search": "linear bounds, optimised slopes, and branch and bound over neurons",
    }[question["effort"]]
    return f"{how}; minimum-norm attacks (local linear models, FMN, FAB, APGD) from above"


def _finite(value: Any) -> Any:
    """JSON has no infinity: such numbers become strings."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def render(found: dict[str, Any], rows: Sequence[Row], x: np.ndarray) -> str:
    """The page's text.

    Args:
        found: see `facts`. rows: in the order of the table.
        x: flat network inputs of the whole data set [n, N_in], for the pictures.
    """
    good = [row for row in rows if row.right]
    classes = found["data"]["classes"]
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = resources.files("verifier.report").joinpath("radius.html").read_text(encoding="utf-8")
    shape = _image(found["data"], x.shape[1])
    if shape is not None and found["data"]["channels_last"]:
        channels, height, width = shape
        x = x.reshape(-1, height, width, channels).transpose(0, 3, 1, 2).reshape(len(x), -1)
        rows = [_planes_first(row, shape) for row in rows]
        good = [row for row in rows if row.right]
    return environment.from_string(template).render(
        f=found,
        sampled=found["question"]["smoothing"] is not None,
        transforms=found["question"].get("transforms") is not None,
        weights=found["question"].get("weights") is not None,
        unit=_unit(found["question"]),
        norm=found["question"]["norm"],
        curve=_curve(found),
        histograms=_histograms(good, classes),
        least=_gallery(sorted(good, key=lambda r: (r.lower, r.upper))[:PICTURED], x, shape, classes),
        most=_gallery(sorted(good, key=lambda r: (-r.lower, -r.upper))[:PICTURED], x, shape, classes),
        closest=_counterexamples(good, x, shape, classes),
        table=[_line(row, classes) for row in rows],
        shares=found["summary"]["shares"],
        operators=", ".join(f"{name} ×{n}" for name, n in found["model"]["operators"].items()),
    )


def _unit(question: dict[str, Any]) -> str:
    if question.get("transforms") is not None:
        return "shares of the parameter box"
    if question.get("weights") is not None:
        return "norms of each tensor" if question["weights"]["relative"] else "the weights' own units"
    return "features" if question["norm"] == "l0" else "input units"


def _curve(found: dict[str, Any]) -> Any:
    radii, sampled = np.array(found["curve"]["radius"]), found["curve"]["withstood"] is None
    curves = [Curve("certified", radii, np.array(found["curve"]["certified"]), PROVED)]
    if not sampled:
        curves.append(Curve("under attack", radii, np.array(found["curve"]["withstood"]), ATTACKED, "9 5"))
    return line_chart(curves, f"radius ({found['question']['norm']})", "accuracy against radius", shade=not sampled)


def _histograms(good: Sequence[Row], classes: Sequence[str]) -> list[dict[str, Any]]:
    """A chart for each class that occurs, all on the same axes."""
    finite = np.array([row.lower for row in good if math.isfinite(row.lower)])
    if finite.size == 0:
        return []
    edges = np.linspace(0.0, float(finite.max()) or 1.0, BINS + 1)
    groups = {k: np.array([row.lower for row in good if row.label == k]) for k in sorted({row.label for row in good})}
    highest = max(int(np.histogram(v[np.isfinite(v)], edges)[0].max()) for v in groups.values())
    return [
        {
            "name": classes[k],
            "count": len(values),
            "median": f"{float(np.median(values)):.4g}",
            "chart": histogram(values, edges, highest, f"radii of class {classes[k]}"),
        }
        for k, values in groups.items()
    ]


def _image(data: dict[str, Any], size: int) -> tuple[int, int, int] | None:
    shape = tuple(data["shape"])
    picture = data["kind"] == "image" and len(shape) == 3 and shape[0] in (1, 3) and math.prod(shape) == size
    return shape if picture else None  # type: ignore[return-value]


def _planes_first(row: Row, shape: tuple[int, int, int]) -> Row:
    """The row with its counterexample's channels moved to the front."""
    if not row.counterexample:
        return row
    channels, height, width = shape
    moved = np.array(row.counterexample).reshape(height, width, channels).transpose(2, 0, 1)
    return replace(row, counterexample=tuple(moved.reshape(-1).tolist()))


def _gallery(
    rows: Sequence[Row], x: np.ndarray, shape: tuple[int, int, int] | None, classes: Sequence[str]
) -> list[dict[str, Any]]:
    if shape is None:
        return []
    low, high = float(x.min()), float(x.max())
    return [
        {
            "image": intensity_png(x[row.index], shape, low, high),
            "index": row.index, "label": classes[row.label], "lower": f"{row.lower:.4g}", "upper": _number(row.upper),
        }
        for row in rows
    ]  # fmt: skip


def _counterexamples(
    good: Sequence[Row], x: np.ndarray, shape: tuple[int, int, int] | None, classes: Sequence[str]
) -> list[dict[str, Any]]:
    """The closest counterexamples beside their inputs."""
    found = sorted((row for row in good if row.counterexample), key=lambda row: row.upper)[:PICTURED]
    low, high = (float(x.min()), float(x.max())) if x.size else (0.0, 1.0)
    entries = []
    for row in found:
        before, after = np.asarray(x[row.index], dtype=np.float64), np.array(row.counterexample)
        change = after - before
        reach = float(np.abs(change).max(initial=0.0))
        top = np.argsort(-np.abs(change))[:8]
        pictures = None
        if shape is not None:
            pictures = (
                intensity_png(before, shape, low, high),
                intensity_png(after, shape, low, high),
                difference_png(change, shape, reach),
            )
        entries.append(
            {
                "index": row.index, "label": classes[row.label], "rival": _name(row.rival, classes),
                "pictures": pictures,
                "upper": f"{row.upper:.4g}", "lower": f"{row.lower:.4g}", "reach": f"{reach:.2g}",
                "changed": int(np.count_nonzero(change)), "size": change.size,
                "largest": [(int(i), f"{before[i]:.5g}", f"{after[i]:.5g}", f"{change[i]:+.4g}") for i in top],
            }
        )  # fmt: skip
    return entries


def _line(row: Row, classes: Sequence[str]) -> dict[str, Any]:
    return {
        "index": row.index, "label": _name(row.label, classes), "predicted": _name(row.predicted, classes),
        "lower": _number(row.lower), "upper": _number(row.upper), "status": row.status,
        "rival": _name(row.rival, classes), "by": row.proved_by, "reason": row.error or row.reason.replace("_", " "),
        "seconds": f"{row.attack_seconds + row.proof_seconds:.2f}", "right": row.right,
    }  # fmt: skip


def _name(label: int, classes: Sequence[str]) -> str:
    return classes[label] if 0 <= label < len(classes) else ("–" if label < 0 else str(label))


def _number(value: float) -> str:
    if math.isnan(value):
        return "–"
    return "∞" if math.isinf(value) else f"{value:.5g}"
