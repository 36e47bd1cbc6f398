"""Lines below and above a curve on an interval: its convex hull where it is piecewise linear."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from verifier.tighten.curves import Curve

# Points at which a curved function is sampled to choose slopes, besides its knots.
_SAMPLES = 5


@dataclass(frozen=True)
class Lines:
    """slope * x + offset below (lower) or above (upper) f on [lower, upper]; arrays [N, K] each."""

    slope_lower: np.ndarray
    offset_lower: np.ndarray
    slope_upper: np.ndarray
    offset_upper: np.ndarray


def enclose(curve: Curve, lower: np.ndarray, upper: np.ndarray) -> Lines:
    """Lines whose intersection encloses the graph of f on [lower, upper], [N] each.

    Slopes are the edges of the convex hull of a few points of the graph; offsets are then rounded
    outward from a rigorous minimum for the slope actually stored, so any slope is sound. For a
    piecewise linear f the points hold every knot: the lines are the convex hull itself, for relu
    the triangle. K lines on either side, some of them repeated.

    Property: sound, `deployed_error` of the curve included.
    """
    points = _sample(curve, lower, upper)
    values = curve.value(points)
    slope_lower = _hull_slopes(points, values)
    slope_upper = -_hull_slopes(points, -values) + 0.0
    one = np.ones_like(lower)
    offset_lower = [curve.minimum(-s, one, lower, upper) for s in slope_lower.T]
    offset_upper = [-curve.minimum(s, -one, lower, upper) for s in slope_upper.T]
    return Lines(slope_lower, np.stack(offset_lower, axis=1), slope_upper, np.stack(offset_upper, axis=1))


def hull_slopes_at_middle(curve: Curve, lower: np.ndarray, upper: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Slopes [N] of the lower and of the upper hull's edge over the middle of [lower, upper].

    For relu: 1 if upper > -lower else 0 below, and upper / (upper - lower) above, CROWN's adaptive choice.
    """
    points = _sample(curve, lower, upper)
    values = curve.value(points)
    middle = 0.5 * (lower + upper)[:, None]
    gap = np.clip((points <= middle).sum(axis=1) - 1, 0, points.shape[1] - 2)[:, None]
    below = np.take_along_axis(_hull_slopes(points, values), gap, axis=1)[:, 0]
    return below, -np.take_along_axis(_hull_slopes(points, -values), gap, axis=1)[:, 0]


def _sample(curve: Curve, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    ends = curve.segment_ends(lower, upper)
    if curve.piecewise_linear:
        return ends
    share = np.linspace(0.0, 1.0, _SAMPLES)[1:-1]
    inner = np.clip(lower[:, None] + (upper - lower)[:, None] * share, lower[:, None], upper[:, None])
    return np.sort(np.concatenate([ends, inner], axis=1), axis=1)


def _hull_slopes(points: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Slopes [N, M - 1] of the lower hull's edges over each gap between M ascending points.

    Over the middle of a gap the lower hull is the lowest chord that spans the gap.
    """
    count = points.shape[1]
    width = points[:, None, :] - points[:, :, None]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        slopes = (values[:, None, :] - values[:, :, None]) / width
    usable = (width > 0) & np.isfinite(slopes)
    slopes = np.where(usable, slopes, 0.0)
    result = np.empty((points.shape[0], count - 1))
    for gap in range(count - 1):
        middle = 0.5 * (points[:, gap] + points[:, gap + 1])[:, None, None]
        spans = slice(0, gap + 1), slice(gap + 1, count)
        chord_slopes, allowed = slopes[:, *spans], usable[:, *spans]
        start, level = points[:, spans[0], None], values[:, spans[0], None]
        height = np.where(allowed, level + chord_slopes * (middle - start), np.inf)
        flat = height.reshape(len(points), -1)
        best = flat.argmin(axis=1)
        result[:, gap] = chord_slopes.reshape(len(points), -1)[np.arange(len(points)), best]
    return result
