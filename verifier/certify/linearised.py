"""A counterexample near the boundary of local linear models, in l-infinity or l2: milliseconds on the compiled engine.

Method: where a margin is linearised at the present point, the nearest point to the center at
which the linear margin vanishes is a closed expression; the present point moves towards it.
Recentring every step keeps the distance small, as in FAB.
Property: a proposal only; what it is worth is said by a replay.
Source: Croce and Hein 2020, arXiv:1907.02044; Moosavi-Dezfooli et al. 2016, arXiv:1511.04599.
"""

from __future__ import annotations

import numpy as np

from verifier.bounds.native_engine import NativeEngine
from verifier.certify.threat import Nearness

#: Share of the way to the linear model's boundary, step by step; `descents` do the rest.
STEPS = (1.0, 1.0, 0.5)
#: How far beyond the boundary a step aims, so that it is crossed.
OVERSHOOT = 1.01
#: Most Newton steps on the length; they meet a concave function from below.
NEWTON_STEPS = 6
#: Distances and slopes are kept within these, so that nothing overflows.
LARGEST, SMALLEST = 1e30, 1e-30


def linearised(engine: NativeEngine, nearness: Nearness, center: np.ndarray, aims: np.ndarray) -> np.ndarray:
    """The nearest point with a negative margin that a descent for each meets, [1, N_in]; [0, N_in] where none does.

    Args:
        nearness: in l-infinity or l2, arrays of the network's size. center: [N_in].
        aims: [P, N_out], the rows whose margins shall become negative.
    """
    unit = np.ones_like(center) if nearness.scale is None else nearness.scale
    unit = unit if nearness.mask is None else np.where(nearness.mask, unit, 0.0)
    below, above = np.full_like(center, np.inf), np.full_like(center, np.inf)
    if nearness.valid is not None:
        below, above = center - nearness.valid[0], nearness.valid[1] - center
    points, nearest = center[None].repeat(len(aims), 0), np.inf
    best = points[:0]
    for share in (*STEPS, 0.0):
        margins = (engine.evaluate(points) * aims).sum(1)
        far = np.where(margins <= 0, nearness.distance(center, points), np.inf)
        if far.min() < nearest:
            best, nearest = points[[far.argmin()]], far.min()
        if share:
            slope = engine.gradient(points, aims)
            value = margins + ((center - points) * slope).sum(1)
            room = np.where(slope > 0, below, above)
            # What costs least: every feature alike in l-infinity, in proportion to what it gains in l2.
            step = unit if np.isinf(nearness.norm) else np.abs(slope) * unit**2
            length = OVERSHOOT * _nearest_zero(value, np.abs(slope), step, room)
            boundary = center - np.sign(slope) * np.minimum(length[:, None] * step, room)
            points = np.nan_to_num(points + share * (boundary - points))
    return best


def _nearest_zero(value: np.ndarray, slope: np.ndarray, step: np.ndarray, room: np.ndarray) -> np.ndarray:
    """How often [P] a step lowers a linear margin `value` [P] to zero, at most LARGEST.

    It lowers it by the sum of slope * min(length * step, room); all [P, N_in] or [N_in], not negative.
    """
    length = np.zeros(len(value))
    rate = (slope * step).sum(1)
    left = np.maximum(value, 0.0)
    for _ in range(NEWTON_STEPS):
        length = np.minimum(length + left / np.maximum(rate, SMALLEST), LARGEST)
        reach = length[:, None] * step
        left = value - (slope * np.minimum(reach, room)).sum(1)
        if not (left > SMALLEST + 1e-6 * np.abs(value)).any():
            break
        left = np.maximum(left, 0.0)
        rate = (slope * np.where(reach < room, step, 0.0)).sum(1)
    return length
