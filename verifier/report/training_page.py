"""A self-contained page about training-phase results: tables, pictures and curves, no scripts, no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import resources
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined

from verifier import __version__
from verifier.report.picture import difference_png, image_shape, intensity_png


@dataclass(frozen=True)
class Picture:
    """An image with its caption; `source` is a data URI."""

    source: str
    caption: str


@dataclass(frozen=True)
class Curve:
    """Named lines over a common axis.

    Attributes:
        lines: name -> [(x, y), ...]; y is a fraction in [0, 1].
        x_label, y_label: of the axes, units included.
    """

    lines: Mapping[str, Sequence[tuple[float, float]]]
    x_label: str
    y_label: str


@dataclass(frozen=True)
class Section:
    """One part of the page.

    Attributes:
        heading: its title; words: paragraphs.
        columns, rows: a table; empty for none.
        pictures, curve: shown below it.
    """

    heading: str
    words: Sequence[str] = ()
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[object]] = ()
    pictures: Sequence[Picture] = field(default_factory=tuple)
    curve: Curve | None = None


def picture_of(values: np.ndarray, caption: str, valid: tuple[Any, Any]) -> Picture | None:
    """An input of any shape as a picture on the scale of its valid range; None where it makes none."""
    shape = _drawable(np.shape(values))
    if shape is None:
        return None
    low, high = (float(f(end)) for f, end in zip((np.min, np.max), valid, strict=True))
    return Picture(intensity_png(np.asarray(values), shape, low, high), caption)


def change_picture(values: np.ndarray, caption: str) -> Picture | None:
    """A signed change as a picture: orange is less, blue is more."""
    shape = _drawable(np.shape(values))
    reach = float(np.max(np.abs(values), initial=0.0))
    return None if shape is None else Picture(difference_png(np.asarray(values), shape, reach), caption)


def _drawable(shape: tuple[int, ...]) -> tuple[int, int, int] | None:
    if len(shape) == 3 and shape[0] in (1, 3):
        return shape
    if len(shape) == 2:  # tokens by embedding
        return (1, *shape)
    return image_shape(int(np.prod(shape))) if len(shape) == 1 and shape[0] >= 16 else None


def render_page(title: str, summary: str, sections: Sequence[Section]) -> str:
    """The page's text.

    Args:
        summary: one sentence under the title.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = resources.files("verifier.report").joinpath("training.html").read_text(encoding="utf-8")
    return environment.from_string(template).render(
        title=title,
        summary=summary,
        sections=sections,
        plots=[None if s.curve is None else plot(s.curve) for s in sections],
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=__version__,
    )


#: Colour-blind safe, and each line has its own dash pattern for black-and-white print.
_STROKES = (("#0072b2", ""), ("#d55e00", "6 3"), ("#009e73", "2 3"), ("#7a2048", "8 3 2 3"), ("#555", "1 2"))


def plot(curve: Curve) -> dict[str, Any]:
    """Coordinates of an SVG of 560 x 260 with the plotting area from (50, 10) to (550, 220)."""
    xs = [x for line in curve.lines.values() for x, _ in line]
    first, last = (min(xs), max(xs)) if xs else (0.0, 1.0)
    span = last - first or 1.0
    lines = []
    for number, (name, points) in enumerate(curve.lines.items()):
        colour, dash = _STROKES[number % len(_STROKES)]
        spots = [(50 + 500 * (x - first) / span, 220 - 210 * float(np.clip(y, 0, 1))) for x, y in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
        lines.append({"name": name, "colour": colour, "dash": dash, "path": path, "spots": spots})
    ticks = [(50 + 125 * k, f"{first + span * k / 4:.3g}") for k in range(5)]
    return {"lines": lines, "ticks": ticks, "x_label": curve.x_label, "y_label": curve.y_label}
