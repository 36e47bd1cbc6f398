"""How many boxes to bound at once, and how hard to try on each: chosen from what was measured."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from verifier.bounds.engine import BoxBounds, BoxEngine
from verifier.run import Run
from verifier.spec.groups import Group

Ends = tuple[np.ndarray, np.ndarray]
#: (bounds, lower, upper, row margins) -> ends of two children per box, first halves first
Halve = Callable[[BoxBounds, np.ndarray, np.ndarray, np.ndarray], Ends]

#: Seconds that one call should take at least, and at most.
BRISK_S, PATIENT_S = 0.05, 1.0
#: Boxes, at least, on which the two kinds of bounds are compared; only one where it takes longer than this.
SAMPLE, AFFORDABLE_S = 4, 0.1


class Pace:
    """Bounds batches of boxes with backward passes for every open neuron, or with forward forms alone.

    Forward forms are looser but can be hundreds of times cheaper, so that splitting a box in two many
    times over buys more than bounding it well once. Which pays is compared on a few open boxes, again
    whenever ten times as many have been visited.

    Attributes:
        batch: boxes to bound at the next call.
        refine: whether backward passes are worth their time here.
    """

    def __init__(self, engine: BoxEngine, group: Group, run: Run, batch: int = 1):
        self.engine, self.group, self.run = engine, group, run
        self.batch, self.refine = batch, True
        self._compare_at = 0
        self._throughput = 0.0

    def bound(self, lower: np.ndarray, upper: np.ndarray) -> BoxBounds:
        """Bounds of the group's rows over boxes [B, N_in]."""
        begin = time.monotonic()
        bounds = self.engine.bound_boxes(lower, upper, self.group.rows.coeffs, refine=self.refine)
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

    def compare(self, lower: np.ndarray, upper: np.ndarray, owner: np.ndarray, halve: Halve) -> None:
        """Decide between the two kinds of bounds on a sample of these open boxes, if it is time to."""
        if self.run.visited < self._compare_at or len(owner) == 0:
            return
        self._compare_at = 10 * max(self.run.visited, 100)
        chosen = np.linspace(0, len(owner) - 1, min(max(SAMPLE, self.batch // 8), len(owner))).astype(int)
        low, high, limits = lower[chosen], upper[chosen], self.group.limits[owner[chosen]]
        quick_s, quick, bounds = self._margins(low, high, limits, refine=False)
        first_low, first_high = halve(bounds, low, high, bounds.lower - limits)
        _, halves, _ = self._margins(first_low, first_high, np.concatenate([limits, limits]), refine=False)
        gain = float((halves.reshape(2, -1).min(axis=0) - quick).mean())
        full_s, full, _ = self._margins(low[:1], high[:1], limits[:1], refine=True)
        if full_s < AFFORDABLE_S:  # then all of the sample, where calls cost more than boxes
            full_s, full, _ = self._margins(low, high, limits, refine=True)
        deficit = float((full - quick[: len(full)]).mean())
        splits = deficit / gain if gain > 0 else np.inf if deficit > 0 else 0.0
        self.refine = not 2.0 ** min(splits, 60.0) * quick_s <= full_s
        self._throughput = 0.0
        kind = "backward passes" if self.refine else "forward forms"
        self.run.say("pace", f"{kind}: {full_s:.2g} s a box against {quick_s:.2g} s, worth about {splits:.1f} splits")

    def _margins(
        self, lower: np.ndarray, upper: np.ndarray, limits: np.ndarray, *, refine: bool
    ) -> tuple[float, np.ndarray, BoxBounds]:
        """Seconds for each box, how far each is from proved ([B], 0 when it is) and the bounds."""
        begin = time.monotonic()
        bounds = self.engine.bound_boxes(lower, upper, self.group.rows.coeffs, refine=refine)
        seconds = (time.monotonic() - begin) / len(lower)
        margins = self.group.rows.clause_margins(bounds.lower - limits).min(axis=1)
        return seconds, np.nan_to_num(np.minimum(margins, 0.0), nan=-1e300, neginf=-1e300), bounds
