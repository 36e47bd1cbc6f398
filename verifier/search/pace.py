"""How many boxes to bound at once, and how hard to try on each: chosen from what was measured."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from verifier.bounds.engine import BoxBounds, BoxEngine
from verifier.run import Run
from verifier.spec.groups import Group

#: (bounds, group, row margins, lower, upper) -> ends of two children per box, first halves first, and more
Halve = Callable[[BoxBounds, Group, np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, ...]]

#: Seconds that one call should take at least, and at most.
BRISK_S, PATIENT_S = 0.05, 1.0
#: Boxes, at least, on which the two kinds of bounds are compared; fewer where that many take longer than this,
#: found by bounding so many times more of them.
SAMPLE, AFFORDABLE_S, GROWTH = 4, 0.5, 4


class Pace:
    """Bounds batches of boxes with backward passes for every open neuron, or with forward forms alone.

    Forward forms are looser but can be hundreds of times cheaper, so that splitting a box in two many
    times over buys more than bounding it well once. Which pays is compared on a few open boxes, again
    whenever ten times as many have been visited.

    Args:
        halve: the search's way to split.
    Attributes:
        batch: boxes to bound at the next call.
        refine: whether backward passes are worth their time here.
    """

    def __init__(self, engine: BoxEngine, run: Run, halve: Halve, batch: int = 1):
        self.engine, self.run, self.halve = engine, run, halve
        self.batch, self.refine = batch, True
        self._compare_at = 0
        self._throughput = 0.0

    def bound(self, group: Group, lower: np.ndarray, upper: np.ndarray) -> BoxBounds:
        """Bounds of the group's rows over boxes [B, N_in]."""
        begin = time.monotonic()
        bounds = bound_rows(self.engine, group, lower, upper, refine=self.refine)
        self._adapt(len(lower), time.monotonic() - begin)
        return bounds

    def _adapt(self, count: int, seconds: float) -> None:
        """Twice the boxes where that raises the throughput or costs no time, half where calls get long."""
        throughput = count / max(seconds, 1e-9)
        limit = min(PATIENT_S, 0.05 * max(self.run.remaining(), 0.0))
        if seconds > limit:
            self.batch = max(1, int(count * limit / seconds))
        elif count >= self.batch and (seconds < BRISK_S or throughput > 1.2 * self._throughput):
            self.batch = min(2 * self.batch, 1 << 14)
            self._throughput = throughput

    def compare(self, group: Group, lower: np.ndarray, upper: np.ndarray, owner: np.ndarray) -> None:
        """Decide between the two kinds of bounds on a sample of these open boxes, if it is time to."""
        if self.run.visited < self._compare_at or len(owner) == 0:
            return
        self._compare_at = 10 * max(self.run.visited, 100)
        chosen = np.linspace(0, len(owner) - 1, min(max(SAMPLE, self.batch // 8), len(owner))).astype(int)
        sample = _Sample(self.engine, group, lower[chosen], upper[chosen], group.limits[owner[chosen]])
        quick_s, quick, bounds = sample.bound(refine=False)
        halves = sample.halves(self.halve, bounds)
        gain = float((halves.bound(refine=False)[1].reshape(2, -1).min(axis=0) - quick).mean())
        full_s, full, _ = sample.first(1).bound(refine=True)
        while len(full) < len(chosen) and full_s * len(full) < AFFORDABLE_S:  # calls may cost more than boxes
            full_s, full, _ = sample.first(GROWTH * len(full)).bound(refine=True)
        deficit = float((full - quick[: len(full)]).mean())
        splits = deficit / gain if gain > 0 else np.inf if deficit > 0 else 0.0
        self.refine = not 2.0 ** min(splits, 60.0) * quick_s <= full_s
        self._throughput = 0.0
        kind = "backward passes" if self.refine else "forward forms"
        self.run.say("pace", f"{kind}: {full_s:.2g} s a box against {quick_s:.2g} s, worth about {splits:.1f} splits")


@dataclass(frozen=True)
class _Sample:
    """Some boxes [B, N_in] and their limits [B, S]."""

    engine: BoxEngine
    group: Group
    lower: np.ndarray
    upper: np.ndarray
    limits: np.ndarray

    def first(self, count: int) -> _Sample:
        """As many of them."""
        return replace(self, lower=self.lower[:count], upper=self.upper[:count], limits=self.limits[:count])

    def halves(self, halve: Halve, bounds: BoxBounds) -> _Sample:
        """The children of all, first halves first."""
        low, high, *_ = halve(bounds, self.group, bounds.lower - self.limits, self.lower, self.upper)
        return replace(self, lower=low, upper=high, limits=np.concatenate([self.limits, self.limits]))

    def bound(self, *, refine: bool) -> tuple[float, np.ndarray, BoxBounds]:
        """Seconds for each box, how far each is from proved ([B], 0 when it is) and the bounds."""
        begin = time.monotonic()
        bounds = bound_rows(self.engine, self.group, self.lower, self.upper, refine=refine)
        seconds = (time.monotonic() - begin) / len(self.lower)
        margins = self.group.rows.clause_margins(bounds.lower - self.limits).min(axis=1)
        return seconds, np.nan_to_num(np.minimum(margins, 0.0), nan=-1e300, neginf=-1e300), bounds


def bound_rows(engine: BoxEngine, group: Group, lower: np.ndarray, upper: np.ndarray, *, refine: bool) -> BoxBounds:
    """Bounds of a group's rows, those that occur in several clauses bounded once."""
    distinct, number = group.rows.distinct
    bounds = engine.bound_boxes(lower, upper, distinct, refine=refine)
    if len(distinct) == len(number):
        return bounds
    pick = (slice(None), number)
    return replace(bounds, lower=bounds.lower[pick], coeffs=bounds.coeffs[pick], offset=bounds.offset[pick])
