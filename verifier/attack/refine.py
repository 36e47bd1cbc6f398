"""Local search from nearly unsafe points, for the corners of a set that signed steps step over.

Sign steps move every input by the same share of its box; a counterexample in a thin sliver needs the
gradient's own proportions, single coordinates, or luck at a small scale. Each round tries all of
these around every point at several lengths, in one batch, and keeps what lowers the margin most.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from verifier.attack.falsify import Falsifier
    from verifier.run import Run

#: lengths tried, as multiples of a point's current reach
LENGTHS = np.array([2.0, 1.0, 0.5, 0.25, 0.0625])
#: random directions beside the gradient's
RANDOM = 3
#: reach below which a point has converged and starts again elsewhere
CONVERGED = 1e-4
#: numbers one batch of trial points may hold
BATCH_NUMBERS = 4_000_000


def refine(falsifier: Falsifier, run: Run, box: np.ndarray, points: np.ndarray, steps: int) -> object | None:
    """Lower the margins of `points` [P, N_in] in boxes [P] by batched line searches.

    Args:
        steps: rounds; each costs a gradient and about 30 evaluations a point.
    Returns:
        A replayed counterexample, or None.
    """
    group = falsifier.group
    low, high = group.lower[box], group.upper[box]
    half = 0.5 * (high - low)
    most = max(1, BATCH_NUMBERS // (len(LENGTHS) * (4 + RANDOM) * points.shape[1]))
    rows, size = falsifier.margins(box, points)
    order = np.argsort(_worst(falsifier, rows))[:most]
    box, points, low, high, half, rows = box[order], points[order], low[order], high[order], half[order], rows[order]
    reach = np.full(len(points), 0.25)
    for _ in range(steps):
        value = _worst(falsifier, rows)
        found = falsifier.replay(box, points, rows, size[order])
        if found is not None or run.stopped():
            return found
        moves = _directions(falsifier, points, rows, half)
        lengths = reach[:, None] * LENGTHS
        trial = points[:, None, None] + lengths[:, None, :, None] * moves[:, :, None]
        trial = np.clip(trial, low[:, None, None], high[:, None, None]).reshape(len(points), -1, points.shape[1])
        count = trial.shape[1]
        all_rows, all_size = falsifier.margins(np.repeat(box, count), trial.reshape(-1, points.shape[1]))
        values = _worst(falsifier, all_rows).reshape(len(points), count)
        best = values.argmin(axis=1)
        each = np.arange(len(points))
        better = values[each, best] < value
        points = np.where(better[:, None], trial[each, best], points)
        rows = np.where(better[:, None], all_rows.reshape(len(points), count, -1)[each, best], rows)
        size[order] = np.where(better, all_size.reshape(len(points), count)[each, best], size[order])
        used = LENGTHS[best % len(LENGTHS)]
        reach = np.where(better, np.clip(reach * np.maximum(used, 0.25), 0, 0.5), reach / 4)
        reach = np.where(reach < CONVERGED, falsifier.rng.choice([0.5, 0.05, 0.01], len(reach)), reach)
    return falsifier.replay(box, points, rows, size[order])


def _worst(falsifier: Falsifier, rows: np.ndarray) -> np.ndarray:
    """Margin of the clause closest to unsafe, [P]."""
    return falsifier.group.rows.clause_margins(rows).min(axis=1)


def _directions(falsifier: Falsifier, points: np.ndarray, rows: np.ndarray, half: np.ndarray) -> np.ndarray:
    """Moves whose largest entry is one half width, [P, 4 + RANDOM, N_in].

    The sign, the proportions and the single largest entry of the hardest row's gradient, the
    proportions of a soft mean over the clause's rows, and random ones.
    """
    clause = falsifier.group.rows.clause_margins(rows).argmin(axis=1)
    own = falsifier.group.rows.clause[None, :] == clause[:, None]
    masked = np.where(own, rows, -np.inf)
    hardest = falsifier.group.rows.coeffs[masked.argmax(axis=1)]
    spread = np.where(own, rows, np.nan)
    width = np.nan_to_num(np.nanstd(spread, axis=1, keepdims=True)) + 1e-9
    soft = np.where(own, np.exp(np.clip((masked - masked.max(axis=1, keepdims=True)) / width, -50, 0)), 0.0)
    mean = (soft / soft.sum(axis=1, keepdims=True)) @ falsifier.group.rows.coeffs
    both = falsifier.engine.gradient(np.concatenate([points, points]), np.concatenate([hardest, mean]))
    steep = -np.nan_to_num(both) * np.concatenate([half, half])
    first, second = np.split(steep, 2)
    single = np.zeros_like(first)
    top = np.abs(first).argmax(axis=1)
    each = np.arange(len(points))
    single[each, top] = np.sign(first[each, top])
    noise = falsifier.rng.standard_normal((len(points), RANDOM, points.shape[1]))
    noise *= falsifier.rng.random(noise.shape) < falsifier.rng.choice([1.0, 0.3], (len(points), RANDOM, 1))
    stacked = np.concatenate([np.sign(first)[:, None], first[:, None], single[:, None], second[:, None], noise], axis=1)
    largest = np.abs(stacked).max(axis=2, keepdims=True)
    return stacked / np.where(largest > 0, largest, 1.0) * half[:, None]
