"""The report's figures for papers: PDF and PNG by matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from verifier.certify.rows import Row
from verifier.errors import SpecError
from verifier.report.chart import ATTACKED, PROVED


def save_plots(found: dict[str, Any], rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write curve.pdf, curve.png, radii.pdf and radii.png; returns their paths.

    Args:
        found: see `verifier.report.radius.facts`.
    Raises:
        SpecError: matplotlib is missing, or the folder cannot be made.
    """
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        raise SpecError("--plots: needs matplotlib; install it, or use report.html") from None
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SpecError(f"--plots: cannot make the folder {folder}: {error.strerror}") from error
    norm = found["question"]["norm"]
    paths = []
    for name, draw in (("curve", _draw_curve), ("radii", _draw_radii)):
        figure, axes = pyplot.subplots(figsize=(4.6, 3.0), layout="constrained")
        draw(axes, found, rows)
        axes.set_xlabel(f"radius ({norm})")
        axes.spines[["top", "right"]].set_visible(False)
        for suffix in ("pdf", "png"):
            paths.append(folder / f"{name}.{suffix}")
            figure.savefig(paths[-1], dpi=200, metadata={"CreationDate": None} if suffix == "pdf" else None)
        pyplot.close(figure)
    return paths


def _draw_curve(axes: Any, found: dict[str, Any], rows: Sequence[Row]) -> None:
    curve = found["curve"]
    axes.plot(curve["radius"], curve["certified"], color=PROVED, label="certified")
    if curve["withstood"] is not None:
        axes.plot(curve["radius"], curve["withstood"], color=ATTACKED, linestyle="--", label="under attack")
        axes.fill_between(curve["radius"], curve["certified"], curve["withstood"], color="0.85", label="open")
    axes.set_ylim(0, 1.02)
    axes.set_xlim(left=0)
    axes.set_ylabel("accuracy")
    axes.legend(frameon=False)


def _draw_radii(axes: Any, found: dict[str, Any], rows: Sequence[Row]) -> None:
    classes = sorted({row.label for row in rows if row.right})
    for position, label in enumerate(classes):
        values = np.array([row.lower for row in rows if row.right and row.label == label and np.isfinite(row.lower)])
        # A fixed spread keeps equal radii apart without chance.
        offset = np.linspace(-0.25, 0.25, len(values)) if len(values) > 1 else np.zeros(len(values))
        axes.plot(values, position + offset, "o", markersize=2.5, color=PROVED, alpha=0.7)
        if len(values):
            axes.plot([np.median(values)] * 2, [position - 0.38, position + 0.38], color=ATTACKED)
    axes.set_yticks(range(len(classes)), [found["data"]["classes"][k] for k in classes])
    axes.set_ylabel("class")
    axes.set_xlim(left=0)
