"""Small charts as inline SVG: they scale with the page, print sharply and need no script."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape

#: Okabe-Ito colours, distinct for colour-blind eyes; the dash patterns differ as well.
PROVED, ATTACKED, QUIET = "#0072b2", "#d55e00", "#8a93a0"


@dataclass(frozen=True)
class Curve:
    """One line of a chart: y at x, with its name, colour and SVG dash pattern ("" for solid)."""

    name: str
    x: np.ndarray
    y: np.ndarray
    colour: str
    dash: str = ""


def line_chart(curves: Sequence[Curve], x_label: str, y_label: str, shade: bool = False) -> Markup:
    """Curves of shares (0 to 1) against a radius; with `shade`, the band between the first two is filled."""
    width, height, left, right, top, bottom = 720, 340, 62, 16, 16, 50
    end = max((float(c.x.max()) for c in curves), default=1.0) or 1.0

    def at(x: float, y: float) -> str:
        return f"{left + (width - left - right) * x / end:.1f},{top + (height - top - bottom) * (1 - y):.1f}"

    parts = [f'<svg viewBox="0 0 {width} {height}" class="chart" role="img" aria-label="{escape(y_label)}">']
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        x0, y0 = at(0, share).split(",")
        parts.append(f'<line x1="{x0}" x2="{width - right}" y1="{y0}" y2="{y0}" class="grid"/>')
        parts.append(f'<text x="{left - 8}" y="{float(y0) + 5:.1f}" text-anchor="end">{100 * share:g} %</text>')
    for tick in ticks(end):
        x0, y0 = at(tick, 0).split(",")
        parts.append(f'<line x1="{x0}" x2="{x0}" y1="{y0}" y2="{float(y0) + 5:.1f}" class="axis"/>')
        parts.append(f'<text x="{x0}" y="{float(y0) + 20:.1f}" text-anchor="middle">{tick:g}</text>')
    if shade and len(curves) >= 2:
        there = [at(x, y) for x, y in zip(curves[0].x, curves[0].y, strict=True)]
        back = [at(x, y) for x, y in zip(curves[1].x[::-1], curves[1].y[::-1], strict=True)]
        parts.append(f'<polygon points="{" ".join([*there, *back])}" class="band"/>')
    for curve in curves:
        points = " ".join(at(x, y) for x, y in zip(curve.x, curve.y, strict=True))
        dash = f' stroke-dasharray="{curve.dash}"' if curve.dash else ""
        parts.append(f'<polyline points="{points}" fill="none" stroke="{curve.colour}" stroke-width="3"{dash}/>')
    middle = left + (width - left - right) / 2
    parts.append(f'<text x="{middle:.0f}" y="{height - 8}" text-anchor="middle">{escape(x_label)}</text></svg>')
    return Markup("".join(parts))


def histogram(values: np.ndarray, edges: np.ndarray, highest: int, name: str) -> Markup:
    """Counts of finite values between edges, as bars; `highest` counts reach the top in every chart of a page."""
    width, height, base = 240, 110, 86
    counts, _ = np.histogram(values[np.isfinite(values)], edges)
    step = (width - 12) / len(counts)
    parts = [f'<svg viewBox="0 0 {width} {height}" class="bars" role="img" aria-label="{escape(name)}">']
    for i, n in enumerate(counts):
        tall = (base - 8) * n / max(highest, 1)
        title = f"{edges[i]:.4g} to {edges[i + 1]:.4g}: {n}"
        parts.append(
            f'<rect x="{6 + i * step:.1f}" y="{base - tall:.1f}" width="{step - 1.5:.1f}" height="{tall:.1f}" '
            f'fill="{PROVED}"><title>{escape(title)}</title></rect>'
        )
    parts.append(f'<line x1="4" x2="{width - 4}" y1="{base}" y2="{base}" class="axis"/>')
    parts.append(f'<text x="6" y="{base + 17}">{edges[0]:g}</text>')
    parts.append(f'<text x="{width - 6}" y="{base + 17}" text-anchor="end">{edges[-1]:.3g}</text></svg>')
    return Markup("".join(parts))


def ticks(end: float, about: int = 6) -> list[float]:
    """Round numbers from 0 to `end`, about so many."""
    raw = end / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw)
    return [round(k * step, 12) for k in range(int(end / step + 1e-9) + 1)]
