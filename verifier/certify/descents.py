"""A nearer counterexample by descents from random points at several scales, on the compiled engine.

Method: gradient steps on a margin inside a ball whose radius follows the decision boundary, as in FMN: after a hit to
where the margin would vanish were it linear on the way from the center, after a miss to where it would by its
gradient. Started at random, a few shares of the known distance away, they do not depend on the gradient at the
center, which is what misleads `linearised`.
Property: a proposal only; what it is worth is said by a replay.
Source: Pintor et al. 2021, arXiv:2102.12827; random starts, Madry et al. 2018, arXiv:1706.06083.
"""

from __future__ import annotations

import math

import numpy as np

from verifier.bounds.native_engine import NativeEngine
from verifier.certify.threat import Nearness

#: Gradient steps; starts for each of the rivals nearest to the label, as shares of the distance known.
STEPS, STARTS, RIVALS = 16, (0.5, 0.25, 0.125), 3
#: Least share by which the radius shrinks below the nearest hit, at first and at last, and the most one hit says.
SHRINK, LAST_SHRINK, LEAST_SHARE = 0.1, 1e-3, 0.3
#: How far beyond the boundary a step aims after a miss, so that it is crossed.
OVERSHOOT = 1.002
#: Length of a step in radii, at first and at last.
STEP, LAST_STEP = 2.0, 0.04
SMALLEST = 1e-30


def descents(
    engine: NativeEngine,
    nearness: Nearness,
    center: np.ndarray,
    known: np.ndarray,
    rows: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """The nearest point with a negative margin that they meet, or the known one where that is nearer, [1, N_in].

    Args:
        nearness: in l-infinity or l2, arrays of the network's size. center: [N_in].
        known: a point [N_in] of another class. rows: [S, N_out], the margins that points shall make negative.
    """
    box = np.isinf(nearness.norm)
    scale = np.ones_like(center) if nearness.scale is None else nearness.scale
    moves = np.ones_like(center, dtype=bool) if nearness.mask is None else nearness.mask
    valid = (-np.inf, np.inf) if nearness.valid is None else nearness.valid
    unit = np.where(moves, scale, 0.0)
    low, high = (np.where(moves, (end - center) / scale, 0.0) for end in valid)
    aims = rows[(rows @ engine.evaluate(known[None])[0]).argsort()[:RIVALS]].repeat(len(STARTS), 0)
    at_center = aims @ engine.evaluate(center[None])[0]
    best = known[None].repeat(len(aims), 0)
    nearest = nearness.distance(center, best)
    radius = nearest * np.resize(STARTS, len(aims))
    steps = rng.uniform(-1.0, 1.0, best.shape) * radius[:, None]
    for turn in range(STEPS + 1):
        steps = np.clip(_into(steps, radius, box), low, high)
        points = center + steps * unit
        margins, size = (engine.evaluate(points) * aims).sum(1), nearness.distance(center, points)
        hit = margins <= 0
        nearer = hit & (size < nearest)
        best[nearer], nearest[nearer] = points[nearer], size[nearer]
        if turn == STEPS:
            break
        fade = 0.5 * (1 + math.cos(math.pi * turn / STEPS))
        slope = engine.gradient(points, aims) * unit
        fall = np.abs(slope).sum(1) if box else np.linalg.norm(slope, axis=1)
        crossing = np.clip(at_center / np.maximum(at_center - margins, SMALLEST), LEAST_SHARE, 1.0)
        beyond = OVERSHOOT * (size + margins / np.maximum(fall, SMALLEST))
        wanted = np.where(hit, size * crossing, beyond)
        radius = np.minimum(wanted, nearest * (1 - LAST_SHRINK - (SHRINK - LAST_SHRINK) * fade))
        length = (LAST_STEP + (STEP - LAST_STEP) * fade) * radius
        steepest = np.sign(slope) if box else slope / np.maximum(fall, SMALLEST)[:, None]
        steps = steps - length[:, None] * steepest
    return best[[nearest.argmin()]]


def _into(steps: np.ndarray, radius: np.ndarray, box: bool) -> np.ndarray:
    """Steps [P, N_in] in the balls [P] of a radius: clipped in a box, else scaled."""
    if box:
        return np.clip(steps, -radius[:, None], radius[:, None])
    size = np.linalg.norm(steps, axis=1)
    return steps * np.minimum(1.0, radius / np.maximum(size, SMALLEST))[:, None]
