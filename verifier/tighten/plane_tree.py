"""Trees over ascents with planes (`plane_ascent.py`): a subdomain starts from its parent's parameters."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from verifier.spec.problem import Clause
from verifier.tighten.model import LinearModel
from verifier.tighten.neuron_tree import NeuronTree, Sides, Visit
from verifier.tighten.plane_ascent import Climbed, Parameters, PlaneAscent, Subdomain

#: Passes at most at the root, at other subdomains, and for a glance; Adam's first step there and below the root, where
#: parameters come from the parent.
ROOT_STEPS, STEPS, GLANCE_STEPS = 150, 40, 8
ROOT_RATE, RATE = 0.1, 0.05


def plane_tree(model: LinearModel, clause: Clause, threads: int = 1) -> NeuronTree:
    """A tree that refutes a clause where its bounds get above 0; the model must have `covers`."""
    return NeuronTree(Ascents(model, clause, threads))


class Ascents:
    """Subdomains bounded by ascents; see `neuron_tree.Bounder`.

    Property: bounds above the target are rigorous, others are estimates.
    """

    def __init__(self, model: LinearModel, clause: Clause, threads: int = 1):
        self.model, self.ascent = model, PlaneAscent(model, clause, threads)
        self.neurons = len(self.ascent.pre)
        self._start = np.cumsum([0, *(len(n.pre) for n in model.neurons)])

    def visit(self, sides: Sides, state: Parameters | None, known: float, target: float, deadline: float) -> Visit:
        """Ascent and, where it ends above the target, proof."""
        at = self._subdomain(sides)
        if at is None:
            return Visit(np.inf, np.zeros(self.neurons), np.zeros(self.neurons, dtype=np.int64), None, None)
        steps, rate = (ROOT_STEPS, ROOT_RATE) if state is None else (STEPS, RATE)
        (found,) = self.ascent.climb([at], state or self.ascent.start(), steps, rate)
        bound = self.ascent.prove(at, found.parameters) if found.bound > target else found.bound
        likely = (found.point[self.ascent.pre] >= 0).astype(np.int64)
        return Visit(bound, self._losses(at, found), likely, found.point[self.model.inputs], found.parameters)

    def glances(self, every: Sequence[Sides], state: Parameters, target: float, deadline: float) -> list[float]:
        """A few passes from the parent's parameters, side by side."""
        places = [self._subdomain(sides) for sides in every]
        found = self.ascent.climb([at for at in places if at is not None], state, GLANCE_STEPS, RATE)
        bounds = iter([one.bound for one in found])
        return [np.inf if at is None else next(bounds) for at in places]

    def _subdomain(self, sides: Sides) -> Subdomain | None:
        """None where a neuron cannot be on its side; what is stable is on one."""
        low, high = self.model.col_lower.copy(), self.model.col_upper.copy()
        every = np.full(self.neurons, -1, np.int8)
        every[list(sides)] = list(sides.values())
        for neurons, start in zip(self.model.neurons, self._start, strict=False):
            side = every[start : start + len(neurons.pre)]
            split = np.flatnonzero(side >= 0)
            if split.size == 0:
                continue
            pre, post, upper = neurons.pre[split], neurons.post[split], side[split] > 0
            low[pre] = np.where(upper, np.maximum(low[pre], 0.0), low[pre])
            high[pre] = np.where(upper, high[pre], np.minimum(high[pre], 0.0))
            if np.any(low[pre] > high[pre]):
                return None
            least, most = neurons.curve.at(split).range(low[pre], high[pre])
            low[post], high[post] = np.maximum(low[post], least), np.minimum(high[post], most)
        pre = self.ascent.pre
        every[(every < 0) & (low[pre] >= 0)] = 1
        every[(every < 0) & (high[pre] <= 0)] = 0
        return Subdomain(low, high, every)

    def _losses(self, at: Subdomain, found: Climbed) -> np.ndarray:
        """[K], each open neuron's pull times its distance from its function at the mean of the minimisers."""
        ascent = self.ascent
        z = np.clip(found.point[ascent.pre], at.low[ascent.pre], at.high[ascent.pre])
        value = np.maximum(ascent.slopes[:, 0] * z, ascent.slopes[:, 1] * z)
        losses = np.abs(found.pull * (found.point[ascent.post] - value))
        return np.where(at.sides < 0, losses, 0.0)
