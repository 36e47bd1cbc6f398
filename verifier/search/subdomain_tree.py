"""The tree of subdomains below one box: split the neuron that pays most, and look closer where little is missing.

Works over any DomainEngine on plain arrays.
Source: Wang et al. 2021, arXiv:2103.06624 (beta-CROWN); De Palma et al. 2021, arXiv:2104.06718
(filtered smart branching); Kotha et al. 2023, arXiv:2302.01404 (bounds where the clause can still hold).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from verifier.attack.falsify import Falsifier
from verifier.bounds.engine import DomainBatch, DomainBounds, DomainEngine, FocusedEngine
from verifier.run import Run
from verifier.search.frontier import Frontier
from verifier.search.input_split import SplitResult

if TYPE_CHECKING:
    from verifier.search.team import SharedFalsifier

ROOT_ITERATIONS = 60
CHILD_ITERATIONS = 12
#: For subdomains without anything left to split, whose bound is a linear program's once converged.
LAST_ITERATIONS = 400
#: Rounds of bounding neurons with their clause for one subdomain, and the steps of each.
MOST_ROUNDS, CUT_OFF_ITERATIONS = 50, 6
#: A round that moves the margin by a smaller share is the last; all of them must gain this share to be worthwhile.
LEAST_GAIN, WORTHWHILE_GAIN = 0.04, 0.05
#: Share of a margin that must be left of it before the next closer look.
PROGRESS = 0.7
#: Factors on the margin that is near enough for one, after a success and after a failure.
FARTHER, NEARER = 1.2, 0.9
#: Seconds of the first brief search before a closer look; later ones take this share of what the looks took.
BRIEF_S, BRIEF_SHARE = 0.1, 0.3
#: Branches within branches.
MOST_BRANCHES = 12


@dataclass
class _Branch:
    """A part of the tree that shares bounds: subdomains open, and those to be closed one by one first."""

    domains: DomainEngine
    frontier: Frontier
    single: list[Any]
    margin: float

    def __len__(self) -> int:
        return len(self.frontier) + len(self.single)

    @property
    def clauses(self) -> np.ndarray:
        """Clauses that some subdomain leaves open."""
        return np.unique(np.concatenate([self.frontier.clauses, *(one.clauses for one in self.single)]))

    @property
    def worst(self) -> float:
        """Lowest margin, inf when empty."""
        return min([self.frontier.worst, *(float(one.margins[0]) for one in self.single)])


class Tree:
    """The search: branches of subdomains, each below a subdomain of the one before, the last one first.

    A subdomain whose margin is near enough to zero is closed on its own: by a brief search; else by bounding
    its neurons where its clause can still be satisfied (INVPROP), round after round while that gains; else its
    children become a branch with those bounds. How near is near enough is learned: failures raise `near`,
    successes lower it.

    Args:
        looks: off leaves that to plain splitting, as does an engine without bounds of single subdomains.
    """

    def __init__(
        self,
        domains: DomainEngine,
        falsifier: Falsifier | SharedFalsifier,
        index: int,
        run: Run,
        *,
        looks: bool = True,
    ):
        self.falsifier, self.index, self.run = falsifier, index, run
        self._root = domains
        self.branches = [_Branch(domains, Frontier(domains), [], -np.inf)]
        own = domains.focus(None) if looks else None
        self.near = np.inf if own is None else -np.inf
        #: by depth; in use while a branch of that depth is, whose end frees it
        self._own: dict[int, FocusedEngine] = {} if own is None else {1: own}
        self._look_s = BRIEF_S
        self.looks = self.closed_by_looks = 0

    def __len__(self) -> int:
        return sum(len(b) for b in self.branches)

    @property
    def can_look(self) -> bool:
        """Whether subdomains are closed one by one."""
        return bool(self._own)

    @property
    def worst(self) -> float:
        """Lowest margin of an open subdomain, inf when there is none."""
        return min((b.worst for b in self.branches), default=np.inf)

    def open(self, clauses: np.ndarray) -> SplitResult | None:
        """Bound the clauses on the unsplit box; those left open start the tree."""
        base = self.branches[0]
        step = base.domains.batch_size  # may change with every call
        for begin in range(0, len(clauses), step):
            if self.run.stopped():
                return SplitResult(None, len(clauses))
            part = clauses[begin : begin + step]
            bounds = base.domains.bound(base.domains.initial(part), ROOT_ITERATIONS, self.run.stopped)
            self.run.visited += len(part)
            witness = _try_minimisers(self.falsifier, bounds, self.index)
            if witness is not None:
                return SplitResult(witness, len(clauses))
            self._put(base, bounds)
        self.run.bound_after = self.worst if len(self) else None
        self.run.say("slopes", f"{len(self)} of {len(clauses)} clauses open, worst margin {self.worst:.6g}")
        return None

    @property
    def clauses(self) -> np.ndarray:
        """Clauses that some subdomain leaves open."""
        return np.unique(np.concatenate([b.clauses for b in self.branches]))

    def search(self, until: float = np.inf) -> SplitResult | None:
        """Split until everything is closed or decided; None where the run or the time `until` is over before."""
        while self.branches:
            branch = self.branches[-1]
            if self.run.stopped() or time.monotonic() > until:
                return None
            if branch.single:
                result = self._close(branch)
            elif len(branch.frontier):
                result = self._expand(branch.domains, branch.frontier, partial(self._put, branch))
            else:
                self.branches.pop()
                continue
            if result is not None:
                return result
            self.run.bound_after = self.worst
            self.run.tick(len(self), self.run.bound_after)
        return SplitResult(None, 0)

    @property
    def threads(self) -> int:
        """Threads that could look at subdomains at the same time."""
        return self._own[1].threads if self._own else 1

    def side_by_side(self, count: int, falsifier: SharedFalsifier) -> list[Tree]:
        """This tree, which can look, and others without subdomains, `count` in all, to search at the same time.

        Each has its share of the threads, a run of its own, and what was learned about looks.
        """
        threads = max(1, self.threads // count)
        root = cast("FocusedEngine", self._root)
        engines = [root.alone(threads) for _ in range(count - 1)]
        self.falsifier, self.run = falsifier, self.run.limited(np.inf)
        for domains in (*(b.domains for b in self.branches), *self._own.values()):
            cast("FocusedEngine", domains).use_threads(threads)
        others = [Tree(engine, falsifier, self.index, self.run.limited(np.inf)) for engine in engines]
        for tree in others:
            tree.near = self.near
        return [self, *others]

    def give(self) -> DomainBatch | None:
        """Half of the subdomains open on the whole box, to a tree of the same root; None with fewer than two."""
        if not self.branches or self.branches[0].domains is not self._root:
            return None
        base = self.branches[0]
        if len(base.frontier) >= 2:
            return base.frontier.take(len(base.frontier) // 2)
        return base.single.pop(0) if len(base) >= 2 and base.single else None

    def receive(self, batch: DomainBatch) -> None:
        """Take over subdomains of the whole box from a tree of the same root."""
        if not self.branches:
            self.branches = [_Branch(self._root, Frontier(self._root), [], -np.inf)]
        self._keep(self.branches[0], batch)

    def _put(self, branch: _Branch, bounds: DomainBounds) -> None:
        """Keep what is open."""
        self._keep(branch, bounds.batch.select(~bounds.closed))

    def _keep(self, branch: _Branch, left: DomainBatch) -> None:
        """Keep open subdomains; what is near enough, and nearer than the branch itself was, is closed on its own."""
        near = left.margins >= max(self.near, PROGRESS * branch.margin)
        if len(self.branches) > MOST_BRANCHES:
            near = np.zeros(len(left), dtype=bool)
        branch.frontier.put(left.select(~near))
        nearest_last = np.flatnonzero(near)[left.margins[near].argsort()]
        branch.single.extend(left.select(np.array([k])) for k in nearest_last)

    def _close(self, branch: _Branch) -> SplitResult | None:
        """Close one subdomain, or leave what remains of it to the branch or to a new one."""
        one = branch.single.pop()
        if float(one.margins[0]) < self.near:  # learned since it was put there
            branch.frontier.put(one)
            return None
        brief = Frontier(branch.domains)
        brief.put(one)
        result = self._search_briefly(branch.domains, brief)
        if result is not None or len(brief) == 0:
            return result
        if self.run.stopped():
            branch.frontier.put(one)
            return None
        return self._look(branch, one)

    def _look(self, branch: _Branch, one: DomainBatch) -> SplitResult | None:
        """A closer look: closes the subdomain, starts a branch below it, or leaves it to its own branch."""
        first, level, begin = float(one.margins[0]), len(self.branches), time.monotonic()
        own = branch.domains.focus(self._own.get(level))
        assert own is not None, "only engines that can focus have single subdomains"
        self._own[level] = own
        with self.run.stage("cut off"):
            bounds = self._look_closer(own, one)
        self._look_s = 0.5 * (self._look_s + time.monotonic() - begin)
        if isinstance(bounds, SplitResult):
            return bounds
        closed = bool(bounds.closed[0])
        margin = 0.0 if closed else float(bounds.batch.margins[0])
        success = margin > (1 - WORTHWHILE_GAIN) * first
        self._learn(first, success)
        self.looks += 1
        self.closed_by_looks += closed
        if not success:
            branch.frontier.put(one)
        elif not closed:
            inner = _Branch(own, Frontier(own), [], margin)
            inner.frontier.put(bounds.batch)
            self.branches.append(inner)
        return None

    def _search_briefly(self, domains: DomainEngine, brief: Frontier) -> SplitResult | None:
        """Plain splitting for a share of what a closer look takes."""
        end = time.monotonic() + BRIEF_SHARE * self._look_s
        while len(brief) and time.monotonic() < end and not self.run.stopped():
            result = self._expand(domains, brief, lambda found: brief.put(found.batch.select(~found.closed)))
            if result is not None:
                return result
        return None

    def _look_closer(self, own: FocusedEngine, one: DomainBatch) -> DomainBounds | SplitResult:
        """Tighten `own` for one subdomain round after round, as long as its margin moves."""
        batch = one
        for _ in range(MOST_ROUNDS):
            before = float(batch.margins[0])
            bounds = own.cut_off(batch, CUT_OFF_ITERATIONS, self.run.stopped)
            self.run.visited += 1
            witness = _try_minimisers(self.falsifier, bounds, self.index)
            if witness is not None:
                return SplitResult(witness, len(self))
            batch = bounds.batch
            if bounds.closed[0] or self.run.stopped() or float(batch.margins[0]) < (1 - LEAST_GAIN) * before:
                break
        return bounds

    def _learn(self, margin: float, success: bool) -> None:
        """After a closer look from this margin, look from farther away, or only from nearer."""
        if success:
            self.near = min(self.near, FARTHER * margin)
        else:
            self.near = NEARER * (margin if np.isinf(self.near) else self.near)

    def _expand(
        self, domains: DomainEngine, frontier: Frontier, keep: Callable[[DomainBounds], None]
    ) -> SplitResult | None:
        """Bound the children of the frontier's lowest subdomains and keep what is open."""
        batch = frontier.take(max(1, domains.batch_size // 2))
        stuck = batch.stuck
        if stuck.any():
            # Every relaxation is exact there, so only the multipliers can still improve.
            last = domains.bound(batch.select(stuck), LAST_ITERATIONS, self.run.stopped)
            batch = batch.select(~stuck)
            left = int((~last.closed).sum())
            if left:
                return SplitResult(None, len(self) + len(batch) + left, exhausted=True)
            if len(batch) == 0:
                return None
        bounds = domains.bound(domains.branch(batch), CHILD_ITERATIONS, self.run.stopped)
        self.run.visited += len(bounds.batch)
        witness = _try_minimisers(self.falsifier, bounds, self.index) or self.falsifier.again(self.run)
        if witness is not None:
            return SplitResult(witness, len(self) + len(bounds.batch))
        if self.run.stopped():
            frontier.put(batch)
        else:
            keep(bounds)
        return None


def _try_minimisers(falsifier: Falsifier | SharedFalsifier, bounds: DomainBounds, index: int) -> object | None:
    """Evaluate where the open subdomains' bounds are smallest."""
    open_points = bounds.minimiser[~bounds.closed]
    if len(open_points) == 0:
        return None
    points = open_points[bounds.row_margins[~bounds.closed].max(axis=1).argsort()[:32]]
    return falsifier.try_points(np.full(len(points), index), points)
