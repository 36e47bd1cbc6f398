"""Trees over one LP that stays in the solver, with cuts at every subdomain.

The planes of `hull.py` that a subdomain's point violates hold on all of the domain, so what one subdomain learns helps
the others; without them, trees of networks with many alike weights are a hundred times as large.
Source: Tjeng et al. 2019, arXiv:1711.07356; Anderson et al. 2020, arXiv:1811.01988.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from verifier.spec.problem import InputSet
from verifier.tighten.hot_model import Bounded, HotModel
from verifier.tighten.model import LinearModel
from verifier.tighten.neuron_tree import NeuronTree, Sides, Visit

#: Rounds of cuts at the root and at other subdomains; a round that gains less than this share of what is missing is
#: the last.
ROOT_ROUNDS, ROUNDS, LEAST_GAIN = 20, 2, 0.03


def can_branch(model: LinearModel, inputs: InputSet) -> bool:
    """True when every curve of the model has a single kink, and its rows say all there is to say of the inputs."""
    kinks = all(n.curve.piecewise_linear and n.curve.knots.shape[1] == 1 for n in model.neurons)
    return kinks and (inputs.ball is None or inputs.ball.p == 1)


def hot_tree(model: LinearModel, cost: np.ndarray) -> NeuronTree:
    """A tree of linear programs that minimise `cost` [C] over a model with `can_branch`."""
    return NeuronTree(Programs(model, cost))


class Programs:
    """Subdomains bounded by linear programs; see `neuron_tree.Bounder`."""

    def __init__(self, model: LinearModel, cost: np.ndarray):
        self.lp = HotModel(model, cost)
        self.inputs, self.neurons = model.inputs, len(self.lp.pre)

    def visit(
        self, siblings: Sequence[Sides], state: None, known: float, target: float, deadline: float
    ) -> list[Visit]:
        """With what their cuts gain."""
        return [self._visited(sides, known, target, deadline) for sides in siblings]

    def _visited(self, sides: Sides, known: float, target: float, deadline: float) -> Visit:
        self.lp.go_to(sides)
        found = self._cut(self.lp.bound(deadline), bool(sides), known, target, deadline)
        if found.point is None:
            return Visit(found.bound, self.lp.losses(found), np.zeros(self.neurons, dtype=np.int64), None, None)
        likely = found.point[self.lp.pre] >= self.lp.knot
        return Visit(found.bound, self.lp.losses(found), likely.astype(np.int64), found.point[self.inputs], None)

    def glances(self, every: Sequence[Sides], state: None, target: float, deadline: float) -> list[float]:
        """Without more cuts."""
        found = []
        for sides in every:
            self.lp.go_to(sides)
            found.append(self.lp.bound(deadline).bound)
        return found

    def _cut(self, found: Bounded, below: bool, known: float, target: float, deadline: float) -> Bounded:
        """The subdomain gone to, round after round."""
        for _ in range(ROUNDS if below else ROOT_ROUNDS):
            if max(found.bound, known) > target or time.monotonic() >= deadline:
                break
            if found.point is None or not self.lp.cut(found.point):
                break
            before, found = found, self.lp.bound(deadline)
            if found.bound < before.bound:
                return Bounded(before.bound, found.duals, found.point)
            if found.bound - before.bound < LEAST_GAIN * (target - found.bound):
                break
        return found
