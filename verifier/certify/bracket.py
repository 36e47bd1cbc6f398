"""The search for one radius: attack, bound, decide the goal or optimise, split, shrink; keeps both ends."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from verifier.bounds.native_engine import NativeEngine
from verifier.certify.closest import Closest, attack, attack_within
from verifier.certify.descents import descents
from verifier.certify.leaves import Ball, Leaves, Slopes, tighten
from verifier.certify.linearised import linearised
from verifier.certify.minimisers import minimisers
from verifier.certify.one_query import decidable, decided
from verifier.certify.threat import Nearness
from verifier.certify.victim import Classifier, Rows
from verifier.outcome import StopReason, Verdict
from verifier.run import Run

#: Share of the remaining time that one radius may take before the ball shrinks.
STAGE_SHARE = 0.45
#: Share of the time for the attacks that come first.
ATTACK_SHARE = 0.3
#: Most rounds of descents at a time, the share of the distance that one must leave at most for another, and seconds for
#: the bounds that lead one.
DESCENTS, GAIN, LEADS_S = 6, 0.7, 0.2
#: Seconds after which a query of the goal gives way to whatever else there is, and the most of a later one; how long a
#: proof is expected to take: a search with little patience turns to tighter bounds sooner, which often decides in a
#: fraction of what more splits would take.
TRIAL_S, QUERY_S, PATIENCE_S = 5.0, 135.0, 0.25
#: How many times as long a later query of the same ball must have.
AGAIN = 2.0
#: Seconds of a query after which it looks beyond its ball, then whenever it took LOOK_GROWTH times as long, and for how
#: large a share of its time so far.
LOOK_S, LOOK_GROWTH, LOOK_SHARE = 0.6, 3.0, 1 / 6
#: Most radii tried with plain bounds, and the ratio of the ends at which they stop.
PLAIN_BALLS, PLAIN_RATIO = 6, 1.1
#: Most radii tried where the program's numbers overflow.
MOST_BALLS = 60
#: First radius where no counterexample and no valid range suggest one, as a share of the input's size.
BLIND_START = 0.1


@dataclass(frozen=True)
class Limits:
    """See RadiusSettings."""

    gap_rel: float
    effort: str
    attack_effort: int
    seed: int
    radii: tuple[float, ...] = ()


class Bracket:
    """Both ends of one input's radius.

    Attributes:
        lower: proved; proved_by: "bounds", "slopes" or "search"; closest: holds the upper end.
        subdomains, balls, attack_seconds: what it cost.
    """

    def __init__(
        self, classifier: Classifier, nearness: Nearness, rows: Rows, center: np.ndarray, run: Run, limits: Limits
    ):
        self.classifier, self.nearness, self.center = classifier, nearness, center
        self.run, self.limits = run, limits
        self.closest = Closest(classifier, nearness, rows, center)
        self.margins, self.rows = rows, classifier.engine.tensor(rows.coeffs)
        self.lower, self.proved_by = 0.0, ""
        self.subdomains, self.balls, self.attack_seconds = 0, 0, 0.0
        self._decidable = limits.effort == "search" and decidable(classifier, nearness.input_set(center, 0.0))
        self._slopes: Slopes | None = None
        #: The smallest ball enclosed so far that is not proved: its bounds hold on every smaller one.
        self._failed: Ball | None = None
        self._tree_failed = False
        self._first: Ball | None = None
        self._rng = np.random.default_rng(limits.seed)

    def solve(self) -> StopReason:
        """Work until the ends meet, nothing more can be proved, or the run stops."""
        run = self.run
        if self.nearness.largest(self.center) == 0:
            self.lower, self.proved_by = math.inf, "bounds"
            return StopReason.WHOLE_RANGE
        left_open, seconds = math.inf, min(STAGE_SHARE * run.remaining(), TRIAL_S)
        if self._decidable:
            self._attack_briefly()
            left_open = self._trial(seconds)
        # After descents these attacks found nothing nearer, on 30 inputs of two networks.
        descended = self._decidable and self.closest.best is not None
        if not self._done() and (not descended or self.limits.attack_effort > 1):
            brief = run.limited(ATTACK_SHARE * run.remaining())
            self.attack_seconds += attack(self.closest, self.limits.attack_effort, self.limits.seed, brief.stopped)
        with torch.no_grad():
            self._plain_bounds()
            if self._decidable:
                again = min(STAGE_SHARE * run.remaining(), QUERY_S) >= AGAIN * seconds
                self._queries(math.inf if again else left_open)
            while not self._done() and not run.stopped() and self.limits.effort != "bounds":
                if not self._one_tree():
                    break
        if math.isinf(self.closest.distance) and self.lower >= self.nearness.largest(self.center):
            self.lower = math.inf
            return StopReason.WHOLE_RANGE
        if self._done():
            return StopReason.GAP_REACHED
        if run.cancelled():
            return StopReason.INTERRUPTED
        return StopReason.TIME_LIMIT if run.remaining() <= 0 else StopReason.NO_PROGRESS

    @property
    def goal(self) -> float:
        """The radius that, once proved, ends the search."""
        upper = self.closest.distance
        if self.limits.radii:
            return max((r for r in self.limits.radii if r < upper), default=0.0)
        if self.nearness.norm == 0 and math.isfinite(upper):
            return max(0.0, min(upper - 1, math.ceil(upper * (1 - self.limits.gap_rel))))
        if math.isfinite(upper):
            return upper * (1 - self.limits.gap_rel) * (1 + 2.0**-40)
        far = self.nearness.largest(self.center)
        return far if math.isfinite(far) else math.inf

    def _done(self) -> bool:
        return self.lower >= self.goal

    def _target(self) -> float:
        """The next radius to try: the goal, or a step between what is proved and what failed."""
        goal = self.goal
        if math.isinf(goal):
            size = float(self.nearness.distance(self.center, np.zeros_like(self.center)[None])[0])
            goal = 2 * self.lower if self.lower > 0 else BLIND_START * (size or 1.0)
        failed = self._failed.radius if self._failed is not None else math.inf
        if goal < failed:
            return goal
        return self._between(self.lower, failed)

    def _between(self, low: float, high: float) -> float:
        """A radius strictly between two: the largest one asked for, else the geometric mean where it makes sense."""
        if self.limits.radii:
            return max((r for r in self.limits.radii if low < r < high), default=low)
        if self.nearness.norm == 0:
            return float(max(low + 1, math.floor((low + high) / 2))) if high - low > 1 else low
        return math.sqrt(low * high) if low > 0.02 * high else 0.2 * high

    def _prove(self, radius: float, by: str) -> None:
        if radius > self.lower:
            self.lower, self.proved_by = radius, by

    def _ball(self, radius: float) -> Ball:
        if self._first is not None and self._first.radius == radius:
            return self._first
        known = None
        if self._failed is not None and radius <= self._failed.radius:
            known = self._failed.found.box
        self.balls += 1
        return Ball(self.classifier.engine, self.nearness, self.center, radius, known)

    def _fail(self, ball: Ball) -> None:
        if self._failed is None or ball.radius < self._failed.radius:
            self._failed = ball

    def _plain_bounds(self) -> None:
        """Fixed point of 'bounds on the ball of R prove the radius g(R)', from above and below."""
        for _ in range(PLAIN_BALLS):
            radius = self._target()
            if self._done() or self.run.stopped() or not radius > self.lower:
                return
            if self._failed is not None and self._failed.radius < PLAIN_RATIO * self.lower:
                return
            ball = self._ball(radius)
            self._first = self._first or ball
            _, form = ball.rows(self.rows)
            proved = ball.certified(form)
            self._prove(proved, "bounds")
            if proved < radius:
                self._fail(ball)
            coeffs = form.coeffs[0].double().cpu().numpy()
            self.closest.propose(minimisers(coeffs, ball.inputs), "bounds")

    def _attack_briefly(self) -> None:
        """The quickest attacks: `linearised` before anything is known, then `descents` while a round gains much."""
        began = time.monotonic()
        if self.closest.best is None:
            found = linearised(self._native, self.nearness, self.center, self.margins.coeffs)
            self.closest.propose(found, "linearised")
        for _ in range(DESCENTS):
            if not self._descend():
                break
        self.attack_seconds += time.monotonic() - began

    def _descend(self) -> bool:
        """One round of descents; whether it came much nearer and the goal is not proved."""
        before = self.closest.distance
        leads = self._leads() if math.isfinite(before) else None
        if self._done():
            return False
        known = None if self.closest.best is None else self.closest.best.x
        found = descents(self._native, self.nearness, self.center, self.margins.coeffs, self._rng, known, leads)
        self.closest.propose(found, "descents")
        return self.closest.distance < GAIN * before

    def _leads(self) -> np.ndarray:
        """Where the goal's ball has the least bounds of every margin, [S, N_in]; these may prove it."""
        radius = self.goal
        ball = self.nearness.input_set(self.center, radius)
        with self.classifier.until(min(self.run.deadline, time.monotonic() + LEADS_S)):
            found = self._native.bound_boxes(ball.lower[None], ball.upper[None], self.margins.coeffs)
        if bool((found.lower > 0).all()):
            self._prove(radius, "bounds")
        points = np.nan_to_num(minimisers(found.coeffs[0], ball))
        self.closest.propose(points, "bounds")
        return points

    @property
    def _native(self) -> NativeEngine:
        assert self.classifier.native is not None, "only balls that the native engine decides"
        return self.classifier.native

    def _one_query(self, radius: float, seconds: float, *, looks: bool = True) -> bool:
        """Decide a ball within some seconds; False where it was left open and nothing nearer was found.

        Args:
            looks: see `_looks`.
        """
        if not (self._decidable and 0 < radius < math.inf):
            return False
        before = self.lower, self.closest.distance
        brief = self.run.limited(seconds, PATIENCE_S)
        if looks:
            brief.cancelled = self._looks(radius, brief)
        verdict = decided(
            self.classifier, self.nearness.input_set(self.center, radius), self.margins, brief,
            lambda point: self.closest.propose(point[None], "search"),
        )  # fmt: skip
        self.balls += 1
        self.subdomains += brief.visited
        if verdict is Verdict.UNSAT:
            self._prove(radius, "search")
        if verdict is Verdict.SAT:
            self._attack_briefly()
        return (self.lower, self.closest.distance) != before

    def _looks(self, radius: float, query: Run) -> Callable[[], bool]:
        """What a query of a ball asks whether to stop: now and then it looks between the ball and the counterexample.

        A ball there may hold a nearer one where the query's holds none, and bounds lead to it soon. A goal below it is
        easier to prove, and one just below the true radius takes very long.
        """
        before, due, asker = self.closest.distance, LOOK_S, threading.get_ident()

        def stop() -> bool:
            nonlocal due
            spent = time.monotonic() - query.began
            # The query's own threads ask as well; one look at a time is enough.
            if spent >= due and threading.get_ident() == asker and not self.run.stopped():
                due = LOOK_GROWTH * spent
                self._one_query(math.sqrt(radius * self.closest.distance), LOOK_SHARE * spent, looks=False)
            return self.run.cancelled() or self.lower >= radius or self.closest.distance < before

        return self.run.cancelled if self.limits.radii or math.isinf(before) else stop

    def _trial(self, seconds: float) -> float:
        """Decide the goal, within some seconds; the radius left open, inf where it is proved."""
        while not self._done():
            radius = self.goal
            if not self._one_query(radius, seconds):
                return radius
        return math.inf

    def _queries(self, left_open: float) -> None:
        """Decide the goal; where it is left open, smaller balls, until they are too close to what is proved."""
        while not self._done() and not self.run.stopped() and self.balls < MOST_BALLS:
            radius = self.goal if self.goal < left_open else self._smaller(left_open)
            if radius is None:
                return
            if not self._one_query(radius, min(STAGE_SHARE * self.run.remaining(), QUERY_S)):
                left_open = radius

    def _one_tree(self) -> bool:
        """Branch and bound from the goal downwards; False when nothing more can be gained."""
        self._failed = None if not self._tree_failed else self._failed
        radius = self._target()
        if not radius > self.lower:
            return False
        before = (self.lower, self.closest.distance)
        ball = self._ball(radius)
        if ball.overflows:
            self._tree_failed = True
            self._fail(ball)
            return self.balls < MOST_BALLS
        value, form = ball.rows(self.rows)
        self._prove(ball.certified(form), "bounds")
        open_rows = (~(value > 0)).nonzero().squeeze(1)
        if len(open_rows):
            tighten(ball, self.run)
            value, form = ball.rows(self.rows)
            self._prove(ball.certified(form), "slopes")
            open_rows = (~(value > 0)).nonzero().squeeze(1)
        if len(open_rows) and math.isinf(self.closest.distance):
            # Nothing bounds the radius from above yet, so this ball may be far too large.
            attack_within(self.closest, radius, self.limits.seed + self.balls)
            if self.goal < radius:
                return True
        leaves = Leaves(ball, self.rows, open_rows, self._slopes)
        self.closest.propose(leaves.plant(self.run.stopped), "search")
        self._slopes = leaves.slopes or self._slopes
        self._prove(leaves.certified(), "slopes")
        if self.limits.effort == "search":
            self._search(leaves)
        elif len(leaves):
            self._tree_failed = True
            self._fail(leaves.ball)
            if self.lower * PLAIN_RATIO > self._failed.radius:  # type: ignore[union-attr]
                return False
        self.subdomains += leaves.visited
        return (self.lower, self.closest.distance) != before

    def _search(self, leaves: Leaves) -> None:
        stage = self.run.limited(STAGE_SHARE * self.run.remaining())
        while len(leaves) and not self.run.stopped():
            if self.goal < leaves.radius:
                # A closer counterexample: only a smaller ball is left to prove.
                if self.lower >= self.goal:
                    return
                self._shrink(leaves, self.goal)
                continue
            if stage.stopped() or leaves.exhausted:
                smaller = self._give_way(leaves)
                if smaller is not None:
                    self._shrink(leaves, smaller)
                    stage = self.run.limited(STAGE_SHARE * self.run.remaining())
                    continue
                if leaves.exhausted:
                    return
                stage = self.run  # too little between the ends to shrink: the rest of the time goes here
            points = leaves.grow(self.run.stopped)
            self.closest.propose(points, "search")
        self._prove(leaves.certified(), "search")

    def _give_way(self, leaves: Leaves) -> float | None:
        """The smaller radius to go on with after this one was too hard; None where the ends are too close."""
        self._prove(leaves.certified(), "search")
        self._tree_failed = True
        self._fail(leaves.ball)
        return self._smaller(leaves.radius)

    def _smaller(self, radius: float) -> float | None:
        """The radius to go on with where one was too hard; None where the ends are too close."""
        smaller = self._between(self.lower, radius)
        close = radius < (1 + 0.1 * self.limits.gap_rel) * self.lower
        return None if close or not self.lower < smaller < radius else smaller

    def _shrink(self, leaves: Leaves, radius: float) -> None:
        known = leaves.ball.found.box
        self.balls += 1
        ball = Ball(self.classifier.engine, self.nearness, self.center, radius, known)
        self.closest.propose(leaves.shrink(ball, self.run.stopped), "search")
