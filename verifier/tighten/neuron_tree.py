"""Branch and bound on neurons with one kink, over anything that bounds a subdomain.

Leaves cover the domain because every split is at one point, and each is closed by a rigorous bound.
Source: Bunel et al. 2020, JMLR 21(42); splits chosen by what earlier ones gained, tried where nothing is known:
Achterberg, Koch & Martin 2005, Operations Research Letters 33(1).
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any, Protocol

import numpy as np

#: Neurons whose split is tried at most, before one is chosen, and how many are compared.
TRIED, COMPARED = 8, 24

Sides = Mapping[int, int]


@dataclass(frozen=True)
class Visit:
    """A subdomain that was bounded.

    Attributes:
        bound: rigorous lower bound, +inf where it is empty.
        losses: [K], what the relaxation of each neuron costs it; 0 where the neuron is decided.
        likely: [K], the side (0, 1) of every neuron's kink that its minimiser is on.
        point: the minimiser's inputs [N_in], worth evaluating, or None.
        state: what its children start from.
    """

    bound: float
    losses: np.ndarray
    likely: np.ndarray
    point: np.ndarray | None
    state: Any


class Bounder(Protocol):
    """Bounds subdomains in which some neurons are on known sides, 0 or 1, of their kinks."""

    neurons: int

    def visit(self, siblings: Sequence[Sides], state: Any, known: float, target: float, deadline: float) -> list[Visit]:
        """The best bounds worth their time. state: their parent's, None at the root; known: a bound of it; target: the
        bound that would do."""

    def glances(self, every: Sequence[Sides], state: Any, target: float, deadline: float) -> list[float]:
        """Quick estimates of the bounds of subdomains whose parent has this state."""


@dataclass(frozen=True)
class TreeResult:
    """Attributes:
    closed: every leaf is proved to exceed the target.
    subproblems: bounds computed, glances included.
    lower: a rigorous lower bound of the minimum, min over the leaves of what was proved there.
    point: a point [N_in] of the subdomain that looked below the target, or None; worth evaluating.
    """

    closed: bool
    subproblems: int
    lower: float
    point: np.ndarray | None


@dataclass(frozen=True)
class Progress:
    """How far a tree is.

    Attributes:
        visited: subdomains so far, glances not counted.
        share: of the tree that is closed, each split halving it.
        expected: subdomains of the whole tree, going by what the first split gained; 1 before it.
    """

    visited: int = 0
    share: float = 0.0
    expected: float = 1.0


@dataclass
class _Open:
    """A subdomain to bound: sides of its split neurons, the bound it inherits, the split that made it."""

    sides: dict[int, int] = field(default_factory=dict)
    bound: float = -np.inf
    split: tuple[int, int] | None = None


@dataclass
class _Siblings:
    """Subdomains of one split, the likely one last, and their parent's state."""

    nodes: list[_Open] = field(default_factory=lambda: [_Open()])
    state: Any = None


class NeuronTree:
    """Trees of one bounder; what splits gained is kept from one to the next.

    Attributes:
        solved: bounds so far.
    """

    def __init__(self, bounder: Bounder):
        self.bounder, self.target, self.strict, self.solved = bounder, -np.inf, True, 0
        self.gained, self.tries = (np.zeros((2, bounder.neurons)) for _ in range(2))  # of splits, by side and neuron

    def prove_above(
        self,
        target: float,
        deadline: float,
        *,
        strict: bool = True,
        stop: Callable[[Progress], bool] = lambda progress: False,
    ) -> TreeResult:
        """Prove that the minimum is above the target (>= where not `strict`) by depth-first splitting.

        Args:
            deadline: time.monotonic() value to stop at.
            stop: asked before every subdomain.
        Property: `closed` only with a proof of every leaf; gives up at a leaf without unstable neurons.
        """
        self.target, self.strict = target, strict
        stack, at, point = [_Siblings()], Progress(), None
        lower, stuck = np.inf, False
        while stack and not stuck and not stop(at) and time.monotonic() < deadline:
            siblings = stack.pop()
            at = replace(at, visited=at.visited + len(siblings.nodes))
            for node, found, bound in self._visit(siblings, deadline):
                if self._closes(bound):
                    lower, at = min(lower, bound), replace(at, share=at.share + 0.5 ** len(node.sides))
                    continue
                point = point if found.point is None else found.point
                children = self._split(node, found, bound, deadline)
                if children is None:
                    lower, stuck = min(lower, bound), True
                    continue
                if not node.sides:
                    at = replace(at, expected=self._expected(bound, children.nodes[0].split))
                stack.append(children)
        closed = not stack and not stuck
        lower = min([lower, *(node.bound for siblings in stack for node in siblings.nodes)])
        return TreeResult(closed, self.solved, lower, None if closed else point)

    def lowest(self, deadline: float, stop: Callable[[], bool], look: Callable[[np.ndarray], float]) -> float:
        """A lower bound of the minimum by best-first splitting, as far as it is wanted.

        Args:
            deadline: time.monotonic() value to stop at; stop: asked before every subdomain.
            look: given every subdomain's point [N_in]; what a bound must reach from then on to be closed.
        """
        self.target, self.strict, order = np.inf, False, count()
        heap, closed = [(-np.inf, next(order), _Siblings())], np.inf
        while heap and not self._closes(heap[0][0]) and not stop() and time.monotonic() < deadline:
            for node, found, bound in self._visit(heapq.heappop(heap)[2], deadline):
                if found.point is not None:
                    self.target = look(found.point)
                children = None if self._closes(bound) else self._split(node, found, bound, deadline)
                if children is None:
                    closed = min(closed, bound)
                else:
                    heapq.heappush(heap, (bound, next(order), children))
        return min(closed, heap[0][0] if heap else np.inf)

    def _visit(self, siblings: _Siblings, deadline: float) -> list[tuple[_Open, Visit, float]]:
        """Bound subdomains; what is known of them then."""
        nodes = siblings.nodes
        self.solved += len(nodes)
        every = [node.sides for node in nodes]
        visits = self.bounder.visit(every, siblings.state, nodes[0].bound, self.target, deadline)
        found = [(node, visit, max(visit.bound, node.bound)) for node, visit in zip(nodes, visits, strict=True)]
        for node, _, bound in found:
            self._learn(node, bound)
        return found

    def _split(self, node: _Open, found: Visit, bound: float, deadline: float) -> _Siblings | None:
        """Both sides of a neuron; None where no neuron is off its curve."""
        neuron = self._choose(node, found, bound, deadline)
        if neuron < 0:
            return None
        likely = int(found.likely[neuron])
        nodes = [_Open({**node.sides, neuron: side}, bound, (neuron, side)) for side in (1 - likely, likely)]
        return _Siblings(nodes, found.state)

    def _closes(self, bound: float) -> bool:
        # Written positively: NaN closes nothing.
        return bound > self.target or (not self.strict and bound >= self.target)

    def _expected(self, bound: float, split: tuple[int, int] | None) -> float:
        """Subdomains of a tree in which every split gains what this one does, g and h, where m is missing.

        It solves t(m) = 1 + t(m - g) + t(m - h), which grows as x^m with x^-g + x^-h = 1.

        Source: Le Bodic & Nemhauser 2017, Mathematical Programming 166.
        """
        assert split is not None
        tries = np.maximum(self.tries[:, split[0]], 1)
        gains = np.maximum(self.gained[:, split[0]] / tries / max(self.target - bound, 1e-300), 1e-6)
        low, high = 0.0, 1.0 / gains.min()  # log2 of x^m
        for _ in range(60):
            middle = 0.5 * (low + high)
            if np.exp2(-gains * middle).sum() > 1:
                low = middle
            else:
                high = middle
        return float(np.exp2(min(high, 1000.0)))

    def _learn(self, node: _Open, bound: float) -> None:
        """Remember what a split gained, as far as it was needed."""
        if node.split is None or not np.isfinite(node.bound):
            return
        neuron, side = node.split
        gain = max(0.0, min(bound, self.target) - node.bound)
        self.gained[side, neuron] += gain
        self.tries[side, neuron] += 1

    def _choose(self, node: _Open, found: Visit, bound: float, deadline: float) -> int:
        """The neuron whose split gains most on both sides, by what it gained before or, if never split, by trying.

        -1 where no neuron is off its curve.
        """
        losses = found.losses
        order = np.argsort(-losses)[:COMPARED]
        order = order[losses[order] > 0]
        if len(order) == 0 or found.point is None or not np.isfinite(bound):
            return int(order[0]) if len(order) else -1
        unknown = [n for n in map(int, order) if not (self.tries[:, n] > 0).all()][:TRIED]
        if unknown and time.monotonic() < deadline:
            self._try(node, found, unknown, bound, deadline)
        usual = self.gained.sum(axis=1) / np.maximum(self.tries.sum(axis=1), 1)
        gains = np.where(self.tries > 0, self.gained / np.maximum(self.tries, 1), usual[:, None])[:, order]
        return int(order[np.maximum(gains, 1e-6).prod(axis=0).argmax()])

    def _try(self, node: _Open, found: Visit, neurons: list[int], bound: float, deadline: float) -> None:
        """Learn what splits seem to gain."""
        children = [_Open({**node.sides, n: side}, bound, (n, side)) for n in neurons for side in (0, 1)]
        self.solved += len(children)
        every = self.bounder.glances([c.sides for c in children], found.state, self.target, deadline)
        for child, glance in zip(children, every, strict=True):
            self._learn(child, max(glance, bound))
