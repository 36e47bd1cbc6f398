"""Counterexamples to a specification: projected gradient descent on its clauses, replayed exactly.

Needs only `evaluate` and `gradient` of an engine, so it runs on the native engine without torch.
Source: Madry et al. 2018, arXiv:1706.06083; one target clause per restart, decaying sign steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np

from verifier.attack.guided.seeds import seeds
from verifier.attack.refine import refine
from verifier.bounds.engine import BoxEngine
from verifier.run import Run
from verifier.spec.groups import Group
from verifier.spec.representable import towards_ball

#: confirm(case index, point) -> a replayed counterexample, or None
Confirm = Callable[[int, np.ndarray], object | None]

#: Share of the time since a search began that goes into attacking again.
AGAIN_SHARE = 0.1
#: What the first such round is taken to cost; later ones are taken to cost as much as the last.
FIRST_ROUND_S = 0.02

#: Starts of a descent at least, and points of the first evaluation of many.
FEWEST_STARTS, FIRST_POINTS = 4, 16

#: Rounds a box of descents that bounds lead, the starts of each and their steps.
GUIDED_ROUNDS, GUIDED_STARTS, GUIDED_STEPS = 30, 32, 20

#: Engine outputs carry round-off, so points this close to unsafe (relative to the outputs) are replayed too.
NEAR_UNSAFE = 1e-5


@dataclass
class Falsifier:
    """Searches one group's boxes for an unsafe point.

    Attributes:
        confirm: replays a candidate exactly; only its word counts.
        replay_budget: candidates still worth replaying when replays keep failing.
        point_s: what evaluating a point took last.
    """

    engine: BoxEngine
    group: Group
    confirm: Confirm
    rng: np.random.Generator
    replay_budget: int = 200
    rounds: int = 0
    spent_s: float = 0.0
    round_s: float = FIRST_ROUND_S
    point_s: float = 0.0
    since: float = field(default_factory=time.monotonic)

    def on(self, group: Group) -> Falsifier:
        """The same falsifier for other boxes."""
        return replace(self, group=group)

    def margins(self, box: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Row margins [P, S] of points [P, N_in] in boxes [P], and the outputs' size for the tolerance [P]."""
        begin = time.monotonic()
        outputs = self.engine.evaluate(points)
        self.point_s = (time.monotonic() - begin) / max(1, len(points))
        rows = outputs @ self.group.rows.coeffs.T - self.group.limits[box]
        return np.nan_to_num(rows, nan=np.inf), 1.0 + np.abs(outputs).max(axis=1, initial=0.0)

    def try_points(self, box: np.ndarray, points: np.ndarray) -> object | None:
        """Replay the points that look unsafe, the most unsafe first."""
        if len(points) == 0:
            return None
        rows, size = self.margins(box, points)
        return self.replay(box, points, rows, size)

    def replay(self, box: np.ndarray, points: np.ndarray, rows: np.ndarray, size: np.ndarray) -> object | None:
        """The first confirmed of the points whose row margins [P, S] look unsafe, the most unsafe first."""
        worst = self.group.rows.clause_margins(rows).min(axis=1)
        order = np.argsort(worst)
        for i in order[: 8 if self.replay_budget > 0 else 0]:
            if not worst[i] <= NEAR_UNSAFE * size[i]:
                break
            self.replay_budget -= 1
            found = self.confirm(int(self.group.case[box[i]]), points[i])
            if found is not None:
                return found
        return None

    def again(self, run: Run) -> object | None:
        """Another, longer round of descent, unless attacks already had their share of the time.

        Called often by whoever proves: what resists proof for long is worth attacking again.
        """
        begin = time.monotonic()
        if self.spent_s + self.round_s > AGAIN_SHARE * (begin - self.since):
            return None
        self.rounds += 1
        brief = run.limited(AGAIN_SHARE * min(run.remaining(), 600.0))
        found = self.pgd(brief, 48, 20 * (1 + self.rounds % 5))
        self.round_s = time.monotonic() - begin
        self.spent_s += self.round_s
        return found

    def sample(self, run: Run, count: int) -> object | None:
        """Centres, random corners and random points of every box, about `count` in all."""
        g = self.group
        per_box = max(1, count // max(1, len(g.lower)))
        for begin in range(0, len(g.lower), 4096):
            box = np.arange(begin, min(begin + 4096, len(g.lower)))
            box = np.repeat(box, per_box)
            t = self.rng.random((len(box), g.lower.shape[1]))
            kind = np.arange(len(box)) % per_box
            t[kind == 0] = 0.5
            corner = (kind % 3 == 1) & (kind > 0)
            t[corner] = np.round(t[corner])
            for part in _growing(len(box)):
                points = self._drawn_in(_place(t[part], g.lower[box[part]], g.upper[box[part]]))
                found = self.try_points(box[part], points)
                if found is not None or run.stopped():
                    return found
        return None

    def pgd(
        self, run: Run, restarts: int, steps: int, boxes: np.ndarray | None = None, *, polish: bool = True
    ) -> object | None:
        """Sign-gradient descent from random starts, then (`polish`) line searches from the nearest points met.

        Each start aims at one clause of its box.

        Args:
            boxes: the boxes to attack, default all (the lowest margins of a first look are kept
                when there are more boxes than starts).
        """
        g = self.group
        if boxes is None:
            boxes = np.arange(len(g.lower))
        # A step costs about three evaluations a point; on large networks the time holds only a few starts.
        restarts = int(min(restarts, max(FEWEST_STARTS, run.remaining() / (3 * steps * self.point_s + 1e-9))))
        if len(boxes) > restarts:
            boxes = self._promising(boxes, restarts)
        box = np.repeat(boxes, max(1, restarts // len(boxes)))
        low, high = g.lower[box], g.upper[box]
        points = self._drawn_in(_place(self.rng.random(low.shape), low, high))
        rows, _ = self.margins(box, points)
        found, nearest, least = self._descend(run, box, points, self._targets(rows), steps)
        if found is not None or run.stopped() or not polish:
            return found
        # about four times the evaluations so far, spent on the most promising quarter
        few = np.argsort(least)[: max(4, len(box) // 4)]
        return refine(self, run, box[few], nearest[few], steps // 2)

    def guided(self, run: Run, rounds: int = GUIDED_ROUNDS) -> object | None:
        """Descent from where the bounds of the most promising subdomains are smallest, box after box.

        Costs bounds of the whole network, so it is for what random starts do not find.
        """
        if self.group.inputs is not None:  # the minimisers lie in the box, not in the set
            return None
        for index in range(len(self.group.lower)):
            share = run.limited(run.remaining() / (len(self.group.lower) - index))
            for points, clause in islice(seeds(self.engine, self.group.only(index), share, GUIDED_STARTS), rounds):
                found, _, _ = self._descend(share, np.full(len(points), index), points, clause, GUIDED_STEPS)
                if found is not None or run.stopped():
                    return found
        return None

    def _descend(
        self, run: Run, box: np.ndarray, points: np.ndarray, target: np.ndarray, steps: int
    ) -> tuple[object | None, np.ndarray, np.ndarray]:
        """Sign-gradient descent of the target clauses [P] from points [P, N_in].

        Returns:
            A counterexample or None; the point met that is nearest to unsafe [P, N_in] and its margin [P].
        """
        g = self.group
        low, high = g.lower[box], g.upper[box]
        half = 0.5 * (high - low)
        rows, size = self.margins(box, points)
        momentum = np.zeros_like(points)
        nearest, least = points, np.full(len(points), np.inf)
        for step in range(steps):
            worst = g.rows.clause_margins(rows).min(axis=1)
            nearest = np.where((worst < least)[:, None], points, nearest)
            least = np.minimum(worst, least)
            found = self.replay(box, points, rows, size)
            if found is not None or run.stopped():
                return found, nearest, least
            weights = self._aim(rows, target)
            gradient = self.engine.gradient(points, weights)
            scale = np.abs(gradient).max(axis=1, keepdims=True)
            gradient = gradient / np.where(scale > 0, scale, 1.0)
            dead = scale[:, 0] == 0
            if dead.any():
                gradient[dead] = self.rng.standard_normal((int(dead.sum()), points.shape[1]))
            momentum = 0.75 * momentum + gradient
            length = 0.5 * (1 - step / steps) ** 1.5 + 0.002
            points = self._drawn_in(np.clip(points - length * half * np.sign(momentum), low, high))
            rows, size = self.margins(box, points)
        return self.replay(box, points, rows, size), nearest, least

    def _drawn_in(self, points: np.ndarray) -> np.ndarray:
        """Points [P, N_in] moved towards the center of the set's l1 or l2 ball, a little inside for later rounding."""
        ball = None if self.group.inputs is None else self.group.inputs.ball
        return points if ball is None or ball.p not in (1, 2) else towards_ball(ball, points, 1e-6)

    def _promising(self, boxes: np.ndarray, count: int) -> np.ndarray:
        """The boxes whose centres are closest to unsafe."""
        g = self.group
        worst = np.concatenate(
            [
                g.rows.clause_margins(self.margins(part, 0.5 * (g.lower[part] + g.upper[part]))[0]).min(axis=1)
                for part in np.array_split(boxes, -(-len(boxes) // 4096))
            ]
        )
        return boxes[np.argsort(worst)[:count]]

    def _targets(self, rows: np.ndarray) -> np.ndarray:
        """One clause per start: in each box the clauses in turn, the most nearly unsafe first."""
        order = np.argsort(self.group.rows.clause_margins(rows), axis=1)
        turn = np.arange(len(rows)) % self.group.rows.count
        # Half of the starts chase the clause they are closest to.
        turn = np.where(self.rng.random(len(rows)) < 0.5, 0, turn)
        return order[np.arange(len(rows)), turn]

    def _aim(self, rows: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Output weights of the target clause's most violated-to-be row, [P, N_out]."""
        own = self.group.rows.clause[None, :] == target[:, None]
        hardest = np.where(own, rows, -np.inf).argmax(axis=1)
        return self.group.rows.coeffs[hardest]


def _place(t: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """Points at fractions t of the boxes, never outside."""
    return np.clip(lower + t * (upper - lower), lower, upper)


def _growing(count: int) -> Iterator[slice]:
    """Consecutive parts of `count` points, each four times as long as the one before: what they cost shows early."""
    begin, size = 0, FIRST_POINTS
    while begin < count:
        yield slice(begin, begin + size)
        begin, size = begin + size, 4 * size
