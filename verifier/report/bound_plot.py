"""One figure of several methods' bounds, time and memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

#: Okabe and Ito's blue, orange and green, told apart by the colour-blind.
_BOUND, _TIME, _MEMORY, _ATTACK = "#0072b2", "#e69f00", "#009e73", "#d55e00"


@dataclass(frozen=True)
class BoundBars:
    """One method: its rows' margins [S] (finite ones), seconds and bytes."""

    method: str
    margins: np.ndarray
    seconds: float
    memory_bytes: int


def draw_bounds(bars: list[BoundBars], attained: np.ndarray, path: str) -> None:
    """Write the figure to `path`; its ending decides the format."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    place = np.arange(len(bars))
    figure, (bound, cost, memory) = pyplot.subplots(
        1, 3, figsize=(10, 1.2 + 0.34 * len(bars)), sharey=True, width_ratios=(3, 1.3, 1.3), layout="constrained"
    )
    for y, bar in zip(place, bars, strict=True):
        if bar.margins.size:
            bound.plot([bar.margins.min(), bar.margins.max()], [y, y], color=_BOUND, alpha=0.35, linewidth=5)
            bound.plot(bar.margins, np.full(bar.margins.size, y), "|", color=_BOUND, markersize=9)
            bound.plot(bar.margins.min(), y, "o", color=_BOUND, markersize=5)
    if attained.size:
        bound.axvline(attained.min(), color=_ATTACK, linestyle="--", label="smallest margin attacked")
    bound.axvline(0.0, color="black", linewidth=0.8)
    values = np.concatenate([b.margins for b in bars] + [attained])
    if values.size and np.abs(values).max() > 100.0 * max(np.median(np.abs(values)), 1e-12):
        bound.set_xscale("symlog", linthresh=max(float(np.median(np.abs(values))), 1e-6))
    bound.set_xlabel("lower bound of each row's margin (dot: worst row)")
    bound.set_yticks(place, [b.method for b in bars])
    bound.invert_yaxis()
    if attained.size:
        bound.legend(fontsize=8, loc="best")
    cost.barh(place, [max(b.seconds, 1e-3) for b in bars], color=_TIME)
    cost.set_xscale("log")
    cost.set_xlabel("seconds")
    memory.barh(place, [b.memory_bytes / 2**20 for b in bars], color=_MEMORY)
    memory.set_xlabel("MiB added")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
