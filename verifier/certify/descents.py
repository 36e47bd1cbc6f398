"""A nearer counterexample by descents from random points, and where bounds lead, on the compiled engine.

Method: gradient steps on a margin inside a ball whose radius follows the decision boundary, as in FMN: after a hit to
where the margin would vanish were it linear on the way from the center, after a miss to where it would by its
gradient. Started at random, a few shares of the known distance away, or where linear bounds of a ball are smallest,
they do not depend on the gradient at the center, which is what misleads `linearised`.
Property: a proposal only; what it is worth is said by a replay.
Source: Pintor et al. 2021, arXiv:2102.12827; random starts, Madry et al. 2018, arXiv:1706.06083.
"""

from __future__ import annotations

import math

import numpy as np

from verifier.bounds.native_engine import NativeEngine
from verifier.certify.threat import Nearness

#: Gradient steps; random starts of one round, and rivals that bounds lead to. Every rival has a start before any has a
#: second one: the nearest need not be among those whose margins are smallest where another was met.
STEPS, STARTS = 16, 9
#: Radii of a rival's first random start, second and so on, as shares of the distance known.
SHARES = (0.5, 0.25, 0.125)
#: Least share by which the radius shrinks below the nearest hit, at first and at last, and the most one hit says.
SHRINK, LAST_SHRINK, LEAST_SHARE = 0.1, 1e-3, 0.3
#: How far beyond the boundary a step aims after a miss, so that it is crossed.
OVERSHOOT = 1.002
#: Length of a step in radii, at first and at last.
STEP, LAST_STEP = 2.0, 0.04
#: Distances and slopes are kept within these, so that nothing overflows.
LARGEST, SMALLEST = 1e30, 1e-30


def descents(
    engine: NativeEngine,
    nearness: Nearness,
    center: np.ndarray,
    rows: np.ndarray,
    rng: np.random.Generator,
    known: np.ndarray | None = None,
    leads: np.ndarray | None = None,
) -> np.ndarray:
    """The nearest point with a negative margin that they meet, or the known one where that is nearer, [1, N_in].

    Without a known point they start about where each margin would vanish were it linear; [0, N_in] where none is met.

    Args:
        nearness: in l-infinity or l2, arrays of the network's size. center: [N_in].
        rows: [S, N_out], the margins that points shall make negative.
        known: a point [N_in] of another class. leads: [S, N_in], a start for every margin.
    """
    box = np.isinf(nearness.norm)
    scale = np.ones_like(center) if nearness.scale is None else nearness.scale
    moves = np.ones_like(center, dtype=bool) if nearness.mask is None else nearness.mask
    valid = (-np.inf, np.inf) if nearness.valid is None else nearness.valid
    unit = np.where(moves, scale, 0.0)
    low, high = (np.where(moves, (end - center) / scale, 0.0) for end in valid)
    outputs = engine.evaluate(np.stack([center, center if known is None else known]))
    rivals = (rows @ outputs[1]).argsort()[:STARTS]
    aims = np.resize(rows[rivals], (STARTS, rows.shape[1]))
    if known is None:
        fall = _length(engine.gradient(center[None].repeat(STARTS, 0), aims) * unit, box)
        reach = np.minimum(aims @ outputs[0] / np.maximum(fall, SMALLEST), LARGEST)
    else:
        reach = nearness.distance(center, known[None]).repeat(STARTS)
    radius = reach * np.take(SHARES, np.arange(STARTS) // len(rivals), mode="wrap")
    steps = rng.uniform(-1.0, 1.0, (STARTS, len(center))) * radius[:, None]
    if leads is not None:
        steps = np.concatenate([steps, (leads[rivals] - center) / scale])
        radius = np.concatenate([radius, nearness.distance(center, leads[rivals])])
        aims = np.concatenate([aims, rows[rivals]])
    at_center = aims @ outputs[0]
    best = (center if known is None else known)[None].repeat(len(aims), 0)
    nearest = np.full(len(aims), np.inf if known is None else reach[0])
    for turn in range(STEPS + 1):
        steps = np.clip(_into(steps, radius, box), low, high)
        points = center + steps * unit
        outputs, trace = engine.record(points)
        margins, size = (outputs * aims).sum(1), nearness.distance(center, points)
        hit = margins <= 0
        nearer = hit & (size < nearest)
        best[nearer], nearest[nearer] = points[nearer], size[nearer]
        if turn == STEPS:
            break
        fade = 0.5 * (1 + math.cos(math.pi * turn / STEPS))
        slope = engine.pull_back(trace, aims) * unit
        fall = _length(slope, box)
        crossing = np.clip(at_center / np.maximum(at_center - margins, SMALLEST), LEAST_SHARE, 1.0)
        beyond = OVERSHOOT * (size + margins / np.maximum(fall, SMALLEST))
        wanted = np.where(hit, size * crossing, beyond)
        radius = np.minimum(wanted, nearest * (1 - LAST_SHRINK - (SHRINK - LAST_SHRINK) * fade))
        length = (LAST_STEP + (STEP - LAST_STEP) * fade) * radius
        steepest = np.sign(slope) if box else slope / np.maximum(fall, SMALLEST)[:, None]
        steps = steps - length[:, None] * steepest
    return best[[nearest.argmin()]] if np.isfinite(nearest).any() else best[:0]


def _length(slopes: np.ndarray, box: bool) -> np.ndarray:
    """How fast [P] margins fall along the steepest steps of length 1, l1 norms for a box, else l2."""
    return np.abs(slopes).sum(1) if box else np.linalg.norm(slopes, axis=1)


def _into(steps: np.ndarray, radius: np.ndarray, box: bool) -> np.ndarray:
    """Steps [P, N_in] in the balls [P] of a radius: clipped in a box, else scaled."""
    if box:
        return np.clip(steps, -radius[:, None], radius[:, None])
    size = np.linalg.norm(steps, axis=1)
    return steps * np.minimum(1.0, radius / np.maximum(size, SMALLEST))[:, None]
