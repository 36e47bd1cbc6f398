"""Branch and bound on the inputs: bound a batch of boxes, drop what is proved, clip, split the rest.

Works on plain arrays over any BoxEngine. Scores: METHODS section 3 ("sb" plus a share of the last
hidden layer's sensitivity); clipping: Zhou et al. 2025, arXiv:2512.11087.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from verifier.attack.falsify import Falsifier
from verifier.bounds.engine import BoxBounds, BoxEngine
from verifier.run import Run
from verifier.search.input_shape import form_minimum, shrink, shrink_to_halfspace
from verifier.search.pace import Ends, Pace
from verifier.spec.groups import Group
from verifier.spec.problem import InputSet

SENSITIVITY_SHARE = 0.01


@dataclass(frozen=True)
class SplitResult:
    """Outcome of one search: a confirmed counterexample, or what is left open.

    Attributes:
        witness: what the falsifier's `confirm` returned, or None.
        open_count: boxes not closed; 0 with no witness means proved.
        exhausted: True when open boxes are too small to split.
    """

    witness: object | None
    open_count: int
    exhausted: bool = False


class BoxPool:
    """Open boxes, taken worst bound first; memory is a few arrays of their number.

    Rows: lower, upper [P, N_in], owner [P] (index of the group's box), worst [P] (margin bound).
    """

    def __init__(self, group: Group):
        self.lower, self.upper = group.lower.copy(), group.upper.copy()
        self.owner = np.arange(len(group.lower))
        self.worst = np.full(len(group.lower), -np.inf)

    def __len__(self) -> int:
        return len(self.owner)

    def take(self, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Remove and return up to `count` boxes with the lowest bounds."""
        if count >= len(self):
            chosen = np.ones(len(self), dtype=bool)
        else:
            chosen = np.zeros(len(self), dtype=bool)
            chosen[np.argpartition(self.worst, count)[:count]] = True
        taken = self.lower[chosen], self.upper[chosen], self.owner[chosen]
        keep = ~chosen
        self.lower, self.upper = self.lower[keep], self.upper[keep]
        self.owner, self.worst = self.owner[keep], self.worst[keep]
        return taken

    def put(self, lower: np.ndarray, upper: np.ndarray, owner: np.ndarray, worst: np.ndarray) -> None:
        """Add boxes."""
        self.lower = np.concatenate([self.lower, lower])
        self.upper = np.concatenate([self.upper, upper])
        self.owner = np.concatenate([self.owner, owner])
        self.worst = np.concatenate([self.worst, worst])


def split_inputs(engine: BoxEngine, group: Group, falsifier: Falsifier, run: Run) -> SplitResult:
    """Decide a group of boxes by splitting inputs.

    Returns as soon as a counterexample is confirmed, every box is closed, or the run is stopped.
    """
    pool, pace = BoxPool(group), Pace(engine, group, run)
    exhausted = False
    first = True

    def halve(bounds: BoxBounds, low: np.ndarray, high: np.ndarray, row_margins: np.ndarray) -> Ends:
        return bisect(bounds, group, row_margins, low, high)[:2]

    while len(pool):
        if run.stopped():
            return SplitResult(None, len(pool), exhausted)
        lower, upper, owner = pool.take(pace.batch)
        if group.inputs is not None:
            lower, upper, kept = shrink(group.inputs, lower, upper)
            lower, upper, owner = lower[kept], upper[kept], owner[kept]
            if not len(owner):
                continue
        bounds = pace.bound(lower, upper)
        if group.inputs is not None:
            bounds = _inside(bounds, group.inputs, lower, upper)
        run.visited += len(owner)
        margins = bounds.lower - group.limits[owner]
        proved = group.rows.proved(margins)
        clause_worst = group.rows.clause_margins(margins)
        worst = np.where(proved, np.inf, clause_worst).min(axis=1)
        if first and len(pool) == 0:
            run.bound_before = float(clause_worst.min())
            first = False
        is_open = ~np.logical_and.reduce(proved, axis=1)
        if is_open.any():
            lower, upper, owner, worst = lower[is_open], upper[is_open], owner[is_open], worst[is_open]
            bounds = _pick(bounds, is_open)
            witness = _try_minimisers(falsifier, bounds, lower, upper, owner, worst) or falsifier.again(run)
            if witness is not None:
                return SplitResult(witness, len(pool) + len(owner))
            lower, upper, alive = clip(bounds, group, owner, proved[is_open], lower, upper)
            lower, upper, owner, worst = lower[alive], upper[alive], owner[alive], worst[alive]
            bounds = _pick(bounds, alive)
            children = bisect(bounds, group, margins[is_open][alive], lower, upper)
            low, high, parent, stuck = children
            exhausted |= bool(stuck.any())
            if stuck.any():
                return SplitResult(None, len(pool) + len(owner), True)
            pool.put(low, high, owner[parent], worst[parent])
            pace.compare(low, high, owner[parent], halve)
        run.bound_after = float(pool.worst.min()) if len(pool) else None
        run.tick(len(pool), run.bound_after if run.bound_after is not None else np.inf)
    return SplitResult(None, 0)


def _inside(bounds: BoxBounds, inputs: InputSet, lower: np.ndarray, upper: np.ndarray) -> BoxBounds:
    """Bounds raised to what the forms prove over the part of each box inside the input set."""
    value = form_minimum(inputs, bounds.coeffs.astype(np.float64), lower, upper) + bounds.offset
    value = value - 4 * 2.0**-52 * (np.abs(value) + np.abs(bounds.offset))
    return BoxBounds(np.fmax(bounds.lower, value), bounds.coeffs, bounds.offset, bounds.sensitivity)


def _pick(bounds: BoxBounds, mask: np.ndarray) -> BoxBounds:
    return BoxBounds(bounds.lower[mask], bounds.coeffs[mask], bounds.offset[mask], bounds.sensitivity[mask])


def _try_minimisers(
    falsifier: Falsifier, bounds: BoxBounds, lower: np.ndarray, upper: np.ndarray, owner: np.ndarray, worst: np.ndarray
) -> object | None:
    """Evaluate the corner that minimises the weakest row's form in the most promising boxes."""
    chosen = np.argsort(worst)[:32]
    margins = bounds.lower[chosen] - falsifier.group.limits[owner[chosen]]
    row = margins.argmin(axis=1)
    coeffs = bounds.coeffs[chosen, row]
    corner = np.where(coeffs >= 0, lower[chosen], upper[chosen])
    return falsifier.try_points(owner[chosen], corner)


def clip(
    bounds: BoxBounds, group: Group, owner: np.ndarray, proved: np.ndarray, lower: np.ndarray, upper: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shrink boxes to where an unsafe point can still be; returns new ends and which boxes remain.

    A point can satisfy an open clause only if every row's form is <= its limit there; that half-space
    moves one end of each input. Several open clauses: the hull of their shrunken boxes.
    """
    limits = group.limits[owner]
    b, n = lower.shape
    new_low, new_high = np.full((b, n), np.inf), np.full((b, n), -np.inf)
    rows = group.rows
    for clause in range(rows.count):
        low, high = lower.copy(), upper.copy()
        for s in np.flatnonzero(rows.clause == clause):
            shrink_to_halfspace(bounds.coeffs[:, s], limits[:, s] - bounds.offset[:, s], low, high)
        here = (~proved[:, clause] & np.all(low <= high, axis=1))[:, None]
        new_low = np.where(here, np.minimum(new_low, low), new_low)
        new_high = np.where(here, np.maximum(new_high, high), new_high)
    alive = np.logical_and.reduce(new_low <= new_high, axis=1)
    return new_low, new_high, alive


def bisect(
    bounds: BoxBounds, group: Group, margins: np.ndarray, lower: np.ndarray, upper: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Halve each box across its best input.

    Returns:
        ends of the children [2B, N_in], each child's parent [2B], and which boxes [B] cannot be split.
    """
    b = len(lower)
    width = upper - lower
    open_rows = margins <= 0
    weight = np.abs(bounds.coeffs) * open_rows[:, :, None]
    own = weight.max(axis=1, initial=0.0)
    score = (own + SENSITIVITY_SHARE * bounds.sensitivity) * width
    score = np.nan_to_num(score, nan=0.0, posinf=np.finfo(float).max)
    middle = lower + 0.5 * width
    splittable = (middle > lower) & (middle < upper)
    score = np.where(splittable, score + 1e-12 * width, -1.0)
    axis = score.argmax(axis=1)
    rows = np.arange(b)
    stuck = ~splittable[rows, axis]
    low = np.concatenate([lower, lower])
    high = np.concatenate([upper, upper])
    high[rows, axis] = middle[rows, axis]
    low[b + rows, axis] = middle[rows, axis]
    return low, high, np.concatenate([rows, rows]), stuck
