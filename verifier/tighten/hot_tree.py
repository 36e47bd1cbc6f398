"""Branch and bound on one LP that stays in the solver, with cuts at every subdomain.

Leaves cover the domain because every split is at one point, and each is closed by a rigorous bound (`hot_model.py`).
The planes of `hull.py` that a subdomain's point violates hold on all of the domain, so what one subdomain learns helps
the others; without them, trees of networks with many alike weights are a hundred times as large.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

import numpy as np

from verifier.spec.problem import InputSet
from verifier.tighten.hot_model import Bounded, HotModel
from verifier.tighten.model import LinearModel

#: Rounds of cuts at the root and at other subdomains; a round that gains less than this share of what is missing is
#: the last.
ROOT_ROUNDS, ROUNDS, LEAST_GAIN = 20, 2, 0.03
#: Neurons whose split is tried at most, before one is chosen, and how many are compared.
TRIED, COMPARED = 8, 24


@dataclass(frozen=True)
class TreeResult:
    """Attributes:
    closed: every leaf is proved to exceed the target.
    subproblems: LPs solved.
    lower: a rigorous lower bound of the minimum, min over the leaves of what was proved there.
    point: a point [N_in] of the model that looked below the target, or None; worth evaluating.
    """

    closed: bool
    subproblems: int
    lower: float
    point: np.ndarray | None


def can_branch(model: LinearModel, inputs: InputSet) -> bool:
    """True when every curve of the model has a single kink, and its rows say all there is to say of the inputs."""
    kinks = all(n.curve.piecewise_linear and n.curve.knots.shape[1] == 1 for n in model.neurons)
    return kinks and (inputs.ball is None or inputs.ball.p == 1)


def prove_above(
    model: LinearModel,
    cost: np.ndarray,
    target: float,
    deadline: float,
    *,
    strict: bool = True,
    stop: Callable[[float], bool] = lambda share: False,
) -> TreeResult:
    """Prove min cost @ columns > target (>= where not `strict`) by depth-first splitting.

    Args:
        model: one with `can_branch`.
        cost: float64 [C].
        deadline: time.monotonic() value to stop at.
        stop: asked before every subdomain, with the share of the tree that is closed, each split halving it.
    Property: `closed` only with a proof of every leaf; gives up at a leaf without unstable neurons.
    Source: Tjeng et al. 2019, arXiv:1711.07356; Bunel et al. 2020, JMLR 21(42); splits chosen by what earlier ones
        gained: Achterberg, Koch & Martin 2005, Operations Research Letters 33(1).
    """
    return HotTree(model, cost).prove_above(target, deadline, strict=strict, stop=stop)


@dataclass
class _Open:
    """A subdomain to bound: sides of its split neurons, the bound it inherits, the split that made it."""

    sides: dict[int, int] = field(default_factory=dict)
    bound: float = -np.inf
    split: tuple[int, int] | None = None


class HotTree:
    """Trees of one cost; cuts, and what splits gained, are kept from one to the next.

    Attributes:
        solved: LPs so far.
    """

    def __init__(self, model: LinearModel, cost: np.ndarray):
        self.lp, self.target, self.strict = HotModel(model, cost), -np.inf, True
        self.inputs, self.solved = model.inputs, 0
        self.gained, self.tries = (np.zeros((2, len(self.lp.pre))) for _ in range(2))  # of splits, by side and neuron

    def prove_above(
        self,
        target: float,
        deadline: float,
        *,
        strict: bool = True,
        stop: Callable[[float], bool] = lambda share: False,
    ) -> TreeResult:
        """See the function of that name."""
        self.target, self.strict = target, strict
        stack, lower, share, point = [_Open()], np.inf, 0.0, None
        while stack:
            if stop(share) or time.monotonic() >= deadline:
                break
            node = stack.pop()
            found, bound = self._visit(node, deadline)
            if self._closes(bound):
                lower, share = min(lower, bound), share + 0.5 ** len(node.sides)
                continue
            point = point if found.point is None else found.point[self.inputs]
            children = self._split(node, found, bound, deadline)
            if not children:
                stack.append(_Open(node.sides, bound))
                break
            stack += children
        lower = min([lower, *(node.bound for node in stack)])
        return TreeResult(not stack, self.solved, lower, point if stack else None)

    def lowest(self, deadline: float, stop: Callable[[], bool], look: Callable[[np.ndarray], float]) -> float:
        """A lower bound of the minimum by best-first splitting, as far as it is wanted.

        Args:
            deadline: time.monotonic() value to stop at; stop: asked before every subdomain.
            look: given every subdomain's point [N_in]; what a bound must reach from then on to be closed.
        """
        self.target, self.strict, order = np.inf, False, count()
        heap, closed = [(-np.inf, next(order), _Open())], np.inf
        while heap and not self._closes(heap[0][0]) and not stop() and time.monotonic() < deadline:
            node = heapq.heappop(heap)[2]
            found, bound = self._visit(node, deadline)
            if found.point is not None:
                self.target = look(found.point[self.inputs])
            children = [] if self._closes(bound) else self._split(node, found, bound, deadline)
            if not children:
                closed = min(closed, bound)
            for child in children:
                heapq.heappush(heap, (bound, next(order), child))
        return min(closed, heap[0][0] if heap else np.inf)

    def _visit(self, node: _Open, deadline: float) -> tuple[Bounded, float]:
        """Bound a subdomain; what is known of it then."""
        self.lp.go_to(node.sides)
        found = self._bound(node, deadline)
        bound = max(found.bound, node.bound)
        self._learn(node, bound)
        return found, bound

    def _split(self, node: _Open, found: Bounded, bound: float, deadline: float) -> list[_Open]:
        """Both sides of a neuron, the one of the subdomain's point last; none where no neuron is off its curve."""
        neuron = self._choose(node, found, bound, deadline)
        if neuron < 0:
            return []
        likely = 0 if found.point is None else int(found.point[self.lp.pre[neuron]] >= self.lp.knot[neuron])
        return [_Open({**node.sides, neuron: side}, bound, (neuron, side)) for side in (1 - likely, likely)]

    def _closes(self, bound: float) -> bool:
        # Written positively: NaN closes nothing.
        return bound > self.target or (not self.strict and bound >= self.target)

    def _bound(self, node: _Open, deadline: float) -> Bounded:
        """Of the subdomain gone to, with what its cuts gain."""
        found = self._solve(deadline)
        for _ in range(ROUNDS if node.sides else ROOT_ROUNDS):
            if self._closes(max(found.bound, node.bound)) or time.monotonic() >= deadline:
                break
            if found.point is None or not self.lp.cut(found.point):
                break
            before, found = found, self._solve(deadline)
            if found.bound < before.bound:
                return Bounded(before.bound, found.duals, found.point)
            if found.bound - before.bound < LEAST_GAIN * (self.target - found.bound):
                break
        return found

    def _solve(self, deadline: float) -> Bounded:
        self.solved += 1
        return self.lp.bound(deadline)

    def _learn(self, node: _Open, bound: float) -> float:
        """Remember what a split gained, as far as it was needed."""
        if node.split is None or not np.isfinite(node.bound):
            return 0.0
        neuron, side = node.split
        gain = max(0.0, min(bound, self.target) - node.bound)
        self.gained[side, neuron] += gain
        self.tries[side, neuron] += 1
        return gain

    def _choose(self, node: _Open, found: Bounded, bound: float, deadline: float) -> int:
        """The neuron whose split gains most on both sides, by what it gained before or, if never split, by trying.

        -1 where no neuron is off its curve.
        """
        losses = self.lp.losses(found)
        order = np.argsort(-losses)[:COMPARED]
        order = order[losses[order] > 0]
        if len(order) == 0 or found.point is None or not np.isfinite(bound):
            return int(order[0]) if len(order) else -1
        tried, best, most = 0, -1, -1.0
        usual = self.gained.sum(axis=1) / np.maximum(self.tries.sum(axis=1), 1)
        for neuron in map(int, order):
            gains = [usual[side] for side in (0, 1)]
            known = self.tries[:, neuron] > 0
            if not known.all() and tried < TRIED and time.monotonic() < deadline:
                tried += 1
                gains = [self._try(node, neuron, side, bound, deadline) for side in (0, 1)]
            elif known.all():
                gains = list(self.gained[:, neuron] / self.tries[:, neuron])
            score = max(gains[0], 1e-6) * max(gains[1], 1e-6)
            if score > most:
                best, most = neuron, score
        return best

    def _try(self, node: _Open, neuron: int, side: int, bound: float, deadline: float) -> float:
        """What one side of a split gains without more cuts."""
        child = _Open({**node.sides, neuron: side}, bound, (neuron, side))
        self.lp.go_to(child.sides)
        return self._learn(child, max(self._solve(deadline).bound, bound))
