"""Branch and bound on the inputs: bound a batch of boxes, drop what is proved, clip, split the rest.

Works on plain arrays over any BoxEngine. Scores: METHODS section 3 ("sb" plus a share of the last
hidden layer's sensitivity); clipping: Zhou et al. 2025, arXiv:2512.11087.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from verifier.attack.falsify import Falsifier
from verifier.bounds.engine import BoxBounds, BoxEngine
from verifier.run import Run
from verifier.search.clip import clip
from verifier.search.input_shape import form_minimum, shrink
from verifier.search.pace import Pace, bound_rows
from verifier.spec.groups import Group
from verifier.spec.problem import InputSet

SENSITIVITY_SHARE = 0.1
#: Power of an input's width, as a share of the whole, by which splits prefer the inputs that were split less,
#: where bounds are curved.
BALANCE = 0.5
#: The most boxes of a batch, the most promising ones, in which the bounds' minimisers are tried as counterexamples.
MOST_TRIED = 32
#: Bytes of open boxes above which those nearest to a proof come first.
POOL_BYTES = 1 << 28
#: Boxes bounded at once where none is split.
TOGETHER = 64


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
    """Open boxes, taken worst bound first; nearest to a proof first while more than `limit_bytes` are held.

    The former raises the bound of the whole set fastest, the latter keeps the number of boxes from growing
    much further. Rows: lower, upper [P, N_in], owner [P] (index of the group's box), is_open [P, C] (the clauses that
    no larger box has refuted), worst [P] (margin bound).
    """

    def __init__(self, group: Group, limit_bytes: int | None = None):
        self.limit_bytes = POOL_BYTES if limit_bytes is None else limit_bytes
        self.lower, self.upper = group.lower.copy(), group.upper.copy()
        self.owner = np.arange(len(group.lower))
        self.is_open = np.ones((len(group.lower), group.rows.count), dtype=bool)
        self.worst = np.full(len(group.lower), -np.inf)

    def __len__(self) -> int:
        return len(self.owner)

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return sum(a.nbytes for a in (self.lower, self.upper, self.owner, self.is_open, self.worst))

    def take(self, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Remove and return up to `count` boxes."""
        if count >= len(self):
            chosen = np.ones(len(self), dtype=bool)
        else:
            chosen = np.zeros(len(self), dtype=bool)
            crowded = self.nbytes > self.limit_bytes
            chosen[np.argpartition(-self.worst if crowded else self.worst, count)[:count]] = True
        taken = self.lower[chosen], self.upper[chosen], self.owner[chosen], self.is_open[chosen]
        keep = ~chosen
        self.lower, self.upper, self.is_open = self.lower[keep], self.upper[keep], self.is_open[keep]
        self.owner, self.worst = self.owner[keep], self.worst[keep]
        return taken

    def put(
        self, lower: np.ndarray, upper: np.ndarray, owner: np.ndarray, is_open: np.ndarray, worst: np.ndarray
    ) -> None:
        """Add boxes."""
        self.lower = np.concatenate([self.lower, lower])
        self.upper = np.concatenate([self.upper, upper])
        self.owner = np.concatenate([self.owner, owner])
        self.is_open = np.concatenate([self.is_open, is_open])
        self.worst = np.concatenate([self.worst, worst])


def split_inputs(engine: BoxEngine, group: Group, falsifier: Falsifier, run: Run) -> SplitResult:
    """Decide a group of boxes by splitting inputs.

    Returns as soon as a counterexample is confirmed, every box is closed, or the run is stopped.
    """
    pool, pace = BoxPool(group), Pace(engine, run, bisect)
    exhausted = False
    first = True

    while len(pool):
        if run.stopped():
            return SplitResult(None, len(pool), exhausted)
        lower, upper, owner, is_open = pool.take(pace.batch)
        if group.inputs is not None:
            lower, upper, kept = shrink(group.inputs, lower, upper)
            lower, upper, owner, is_open = lower[kept], upper[kept], owner[kept], is_open[kept]
            if not len(owner):
                continue
        asked = np.logical_or.reduce(is_open, axis=0)
        part = group.asking(asked)
        bounds = pace.bound(part, lower, upper)
        if group.inputs is not None:
            bounds = _inside(bounds, group.inputs, lower, upper)
        run.visited += len(owner)
        margins = bounds.lower - part.limits[owner]
        proved = part.rows.proved(margins) | ~is_open[:, asked]
        clause_worst = part.rows.clause_margins(margins)
        worst = np.where(proved, np.inf, clause_worst).min(axis=1)
        if first and len(pool) == 0:
            run.bound_before = float(clause_worst.min())
            first = False
        left = ~np.logical_and.reduce(proved, axis=1)
        if left.any():
            lower, upper, owner, worst, margins = lower[left], upper[left], owner[left], worst[left], margins[left]
            bounds, proved = bounds.pick(left), proved[left]
            few = np.argsort(worst)[:MOST_TRIED]
            witness = _try_minimisers(
                falsifier, bounds.pick(few), margins[few], (lower[few], upper[few]), owner[few]
            ) or falsifier.again(run)
            if witness is not None:
                return SplitResult(witness, len(pool) + len(owner))
            lower, upper, here = clip(bounds, part.rows, part.limits[owner], proved, lower, upper)
            alive = np.logical_or.reduce(here, axis=1)
            lower, upper, owner, worst, here = lower[alive], upper[alive], owner[alive], worst[alive], here[alive]
            low, high, parent, stuck = bisect(bounds.pick(alive), part, margins[alive], lower, upper)
            exhausted |= bool(stuck.any())
            if stuck.any():
                return SplitResult(None, len(pool) + len(owner), True)
            is_open = np.zeros((len(owner), group.rows.count), dtype=bool)
            is_open[:, asked] = here
            pool.put(low, high, owner[parent], is_open[parent], worst[parent])
            pace.compare(part, low, high, owner[parent])
        run.bound_after = float(pool.worst.min()) if len(pool) else None
        run.tick(len(pool), run.bound_after if run.bound_after is not None else np.inf)
    return SplitResult(None, 0)


def bound_set(engine: BoxEngine, group: Group, falsifier: Falsifier, run: Run) -> SplitResult:
    """Bounds of every box of a group as it is, and a look at where they are smallest."""
    left, most = 0, np.inf
    for begin in range(0, len(group.lower), TOGETHER):
        if run.stopped():
            return SplitResult(None, left + len(group.lower) - begin)
        part = slice(begin, begin + TOGETHER)
        lower, upper = group.lower[part], group.upper[part]
        bounds = bound_rows(engine, group, lower, upper, refine=True)
        if group.inputs is not None:
            bounds = _inside(bounds, group.inputs, lower, upper)
        run.visited += len(lower)
        margins = bounds.lower - group.limits[part]
        most = min(most, float(group.rows.clause_margins(margins).min()))
        run.bound_before = run.bound_after = most
        is_open = ~np.logical_and.reduce(group.rows.proved(margins), axis=1)
        if is_open.any():
            ends, owner = (lower[is_open], upper[is_open]), begin + np.flatnonzero(is_open)
            witness = _try_minimisers(falsifier, bounds.pick(is_open), margins[is_open], ends, owner)
            if witness is not None:
                return SplitResult(witness, int(is_open.sum()))
        left += int(is_open.sum())
    return SplitResult(None, left)


def _inside(bounds: BoxBounds, inputs: InputSet, lower: np.ndarray, upper: np.ndarray) -> BoxBounds:
    """Bounds raised to what the forms prove over the part of each box inside the input set."""
    value = form_minimum(inputs, bounds.coeffs.astype(np.float64), lower, upper) + bounds.offset
    value = value - 4 * 2.0**-52 * (np.abs(value) + np.abs(bounds.offset))
    return replace(bounds, lower=np.fmax(bounds.lower, value))


def _try_minimisers(
    falsifier: Falsifier, bounds: BoxBounds, margins: np.ndarray, ends: tuple[np.ndarray, np.ndarray], owner: np.ndarray
) -> object | None:
    """Evaluate the corner of each box that minimises its weakest row's form; margins of the rows [B, S]."""
    coeffs = bounds.coeffs[np.arange(len(owner)), margins.argmin(axis=1)]
    return falsifier.try_points(owner, np.where(coeffs >= 0, *ends))


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
    if bounds.curved:
        score = score * (width / np.maximum(group.widths, np.finfo(float).tiny)) ** BALANCE
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
