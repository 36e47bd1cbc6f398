"""Trees over ascents with planes (`plane_ascent.py`): a subdomain starts from its parent's parameters."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from verifier.spec.problem import Clause
from verifier.tighten.model import LinearModel, Neurons
from verifier.tighten.neuron_tree import NeuronTree, Sides, Visit
from verifier.tighten.plane_ascent import Climbed, Parameters, PlaneAscent, Subdomain

#: Passes at most at the root, at other subdomains, and for a glance; Adam's first step there and below the root, where
#: parameters come from the parent.
ROOT_STEPS, STEPS, GLANCE_STEPS = 150, 40, 8
ROOT_RATE, RATE = 0.1, 0.05

#: Where no point is.
EMPTY = Visit(np.inf, np.zeros(0), np.zeros(0, dtype=np.int64), None, None)


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
        self._ends = np.concatenate([_ends(model, neurons) for neurons in model.neurons], axis=2)
        low, high = model.col_lower[self.ascent.pre], model.col_upper[self.ascent.pre]
        self._stable = np.select([low >= 0, high <= 0], [1, 0], -1).astype(np.int8)

    def least(self, steps: int) -> float:
        """A rigorous lower bound of the weighted rows less their limits over the whole box."""
        at = self._subdomain({})
        assert at is not None, "nothing is split"
        (found,) = self.ascent.climb([at], self.ascent.start(), steps, ROOT_RATE)
        return self.ascent.prove(at, found.parameters)

    def visit(
        self, siblings: Sequence[Sides], state: Parameters | None, known: float, target: float, deadline: float
    ) -> list[Visit]:
        """Ascents side by side and, where one ends above the target, proof."""
        steps, rate = (ROOT_STEPS, ROOT_RATE) if state is None else (STEPS, RATE)
        places = [self._subdomain(sides) for sides in siblings]
        found = iter(self._climb(places, state or self.ascent.start(), steps, rate))
        return [EMPTY if at is None else self._visited(at, next(found), target) for at in places]

    def glances(self, every: Sequence[Sides], state: Parameters, target: float, deadline: float) -> list[float]:
        """A few passes from the parent's parameters, side by side."""
        places = [self._subdomain(sides) for sides in every]
        found = iter(self._climb(places, state, GLANCE_STEPS, RATE))
        return [np.inf if at is None else next(found).bound for at in places]

    def _climb(self, places: list[Subdomain | None], start: Parameters, steps: int, rate: float) -> list[Climbed]:
        return self.ascent.climb([at for at in places if at is not None], start, steps, rate)

    def _visited(self, at: Subdomain, found: Climbed, target: float) -> Visit:
        bound = self.ascent.prove(at, found.parameters) if found.bound > target else found.bound
        likely = (found.point[self.ascent.pre] >= 0).astype(np.int64)
        return Visit(bound, self._losses(at, found), likely, found.point[self.model.inputs], found.parameters)

    def _subdomain(self, sides: Sides) -> Subdomain | None:
        """None where a neuron cannot be on its side; what is stable is on one."""
        low, high, every = self.model.col_lower.copy(), self.model.col_upper.copy(), self._stable.copy()
        split, side = np.array(list(sides), dtype=np.int64), np.array(list(sides.values()), dtype=np.int64)
        ends = self._ends[side, :, split]  # [splits, 4]
        low[self.ascent.pre[split]], high[self.ascent.pre[split]] = ends[:, 0], ends[:, 1]
        low[self.ascent.post[split]], high[self.ascent.post[split]] = ends[:, 2], ends[:, 3]
        every[split] = side
        return None if np.any(ends[:, 0] > ends[:, 1]) else Subdomain(low, high, every)

    def _losses(self, at: Subdomain, found: Climbed) -> np.ndarray:
        """[K], each open neuron's pull times its distance from its function at the mean of the minimisers."""
        ascent = self.ascent
        z = np.clip(found.point[ascent.pre], at.low[ascent.pre], at.high[ascent.pre])
        value = np.maximum(ascent.slopes[:, 0] * z, ascent.slopes[:, 1] * z)
        losses = np.abs(found.pull * (found.point[ascent.post] - value))
        return np.where(at.sides < 0, losses, 0.0)


def _ends(model: LinearModel, neurons: Neurons) -> np.ndarray:
    """Bounds of z and of f(z) where z <= 0 and where z >= 0, rounded outward: [2, 4, K]."""
    found = []
    for upper in (False, True):
        low, high = model.col_lower[neurons.pre], model.col_upper[neurons.pre]
        low, high = (np.maximum(low, 0.0), high) if upper else (low, np.minimum(high, 0.0))
        least, most = neurons.curve.range(low, np.maximum(low, high))
        least, most = np.maximum(least, model.col_lower[neurons.post]), np.minimum(most, model.col_upper[neurons.post])
        found.append(np.stack([low, high, least, most]))
    return np.stack(found)
