"""Branch and bound on one LP that stays in the solver: a child changes three bounds and starts from its parent's basis.

Rebuilding a model per subdomain (`milp.py`) tightens its intervals but costs a cold solve. Here splitting a
neuron at its kink fixes the sides of its pre-activation and makes its line an equality, a few dual
simplex steps away. No tolerance of the solver enters an answer: each leaf is closed by `safe_bound`
(or an infeasibility proof) on the model with the leaf's own column bounds, from the multipliers the
solver proposed, and the leaves cover the domain because every split is at one point.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from verifier.tighten.model import LinearModel
from verifier.tighten.safe_bound import proves_infeasible, safe_bound, usable_duals
from verifier.tighten.solvers import HighsSolver


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


def can_branch(model: LinearModel) -> bool:
    """True when every curve of the model has a single kink."""
    return all(n.curve.piecewise_linear and n.curve.knots.shape[1] == 1 for n in model.neurons)


def prove_above(
    model: LinearModel,
    cost: np.ndarray,
    target: float,
    deadline: float,
    *,
    strict: bool = True,
    cancelled: Callable[[], bool] = bool,
) -> TreeResult:
    """Prove min cost @ columns > target (>= where not `strict`) by depth-first splitting.

    Args:
        model: one with `can_branch`.
        cost: float64 [C].
        deadline: time.monotonic() value to stop at; cancelled: asked before every LP.
    Property: `closed` only with a proof of every leaf; gives up at a leaf without unstable neurons.
    Source: Tjeng et al. 2019, arXiv:1711.07356; Bunel et al. 2020, JMLR 21(42).
    """
    return _HotTree(model, cost, target, strict).run(deadline, cancelled)


class _HotTree:
    def __init__(self, model: LinearModel, cost: np.ndarray, target: float, strict: bool):
        self.model, self.cost, self.target, self.strict = model, cost, target, strict
        self.solver = HighsSolver(model)
        self.pre = _joined([n.pre for n in model.neurons])
        self.post = _joined([n.post for n in model.neurons])
        self.low, self.high = model.col_lower.copy(), model.col_upper.copy()
        self.knot = np.concatenate([n.curve.knots[:, 0] for n in model.neurons]) if model.neurons else np.zeros(0)
        self.at_knot = self._values(self.knot)
        self.slope = np.stack([self._slope(side) for side in (0, 1)], axis=1) if model.neurons else np.zeros((0, 2))
        self.rows = self._rows()
        self.sides: dict[int, int] = {}

    def run(self, deadline: float, cancelled: Callable[[], bool]) -> TreeResult:
        """Depth first; a leaf is (sides of split neurons, bound it inherits)."""
        stack: list[tuple[dict[int, int], float]] = [({}, -np.inf)]
        lower, solved, point = np.inf, 0, None
        while stack:
            if cancelled() or time.monotonic() >= deadline:
                lower = min(lower, *(bound for _, bound in stack))
                return TreeResult(False, solved, lower, point)
            sides, inherited = stack.pop()
            self._go_to(sides)
            solved += 1
            bound, duals, x = self._bound(deadline)
            bound = max(bound, inherited)
            if self._closes(bound):
                lower = min(lower, bound)
                continue
            neuron = self._widest(sides) if x is None else self._choose(sides, duals, x)
            if neuron < 0:
                lower = min(lower, bound, *(b for _, b in stack)) if stack else min(lower, bound)
                return TreeResult(False, solved, lower, None if x is None else x[self.model.inputs])
            point = x[self.model.inputs] if x is not None else point
            likely = int(x[self.pre[neuron]] >= self.knot[neuron]) if x is not None else 0
            # The last one pushed is looked at first.
            stack += [({**sides, neuron: 1 - likely}, bound), ({**sides, neuron: likely}, bound)]
        return TreeResult(True, solved, lower, None)

    def _closes(self, bound: float) -> bool:
        # Written positively: NaN closes nothing.
        return bound > self.target or (not self.strict and bound >= self.target)

    def _bound(self, deadline: float) -> tuple[float, np.ndarray, np.ndarray | None]:
        model = replace(self.model, col_lower=self.low, col_upper=self.high)
        left = None if deadline == np.inf else max(deadline - time.monotonic(), 0.01)
        found = self.solver.solve(self.cost, left)
        if found.infeasible:
            for ray in (found.duals, -found.duals):
                if proves_infeasible(model, ray):
                    return np.inf, found.duals, None
            return -np.inf, found.duals, None
        duals = usable_duals(model, found.duals)
        return safe_bound(model, self.cost, duals), duals, found.point

    def _choose(self, sides: dict[int, int], duals: np.ndarray, x: np.ndarray) -> int:
        """The neuron furthest from its curve at the LP's point, times its multiplier; -1 if none is off it."""
        z = np.clip(x[self.pre], self.low[self.pre], self.high[self.pre])
        gap = np.abs(x[self.post] - self._values(z))
        weight = np.abs((self.cost - self.model.matrix.T @ duals)[self.post]) + 1e-6
        score = gap * weight
        score[(self.low[self.pre] >= self.knot) | (self.high[self.pre] <= self.knot) | (gap < 1e-10)] = 0.0
        score[list(sides)] = 0.0
        best = int(score.argmax()) if score.size else -1
        return best if best >= 0 and score[best] > 0.0 else -1

    def _widest(self, sides: dict[int, int]) -> int:
        """The widest undecided neuron, where the solver gave no point to judge by; -1 if none is left."""
        low, high = self.low[self.pre], self.high[self.pre]
        width = np.where((low < self.knot) & (self.knot < high), high - low, 0.0)
        width[list(sides)] = 0.0
        best = int(width.argmax()) if width.size else -1
        return best if best >= 0 and width[best] > 0.0 else -1

    def _go_to(self, sides: dict[int, int]) -> None:
        """Change the solver's bounds from the last leaf's to this one's."""
        for neuron in [n for n, side in self.sides.items() if sides.get(n) != side]:
            pre, post = self.pre[neuron], self.post[neuron]
            self._columns(pre, self.model.col_lower[pre], self.model.col_upper[pre])
            self.solver.change_column(int(post), self.model.col_lower[post], self.model.col_upper[post])
            for row, _ in self.rows[neuron]:
                self._row(row, self.model.row_lower[row], self.model.row_upper[row])
            del self.sides[neuron]
        for neuron, side in sides.items():
            if neuron not in self.sides:
                self._set(neuron, side)
                self.sides[neuron] = side

    def _set(self, neuron: int, side: int) -> None:
        pre, post, knot = self.pre[neuron], self.post[neuron], self.knot[neuron]
        low, high = self.model.col_lower[pre], self.model.col_upper[pre]
        low, high = (max(low, knot), high) if side else (low, min(high, knot))
        self._columns(pre, low, high)
        slope = self.slope[neuron, side]
        ends = self.at_knot[neuron] + slope * (np.array([low, high]) - knot)
        pad = 1e-9 * (1.0 + np.abs(ends).max())
        # Only the solver is told: the bound keeps the proved range of `post`, deployed rounding included.
        post_low = max(ends.min() - pad, self.model.col_lower[post])
        self.solver.change_column(int(post), post_low, max(min(ends.max() + pad, self.model.col_upper[post]), post_low))
        offset = self.at_knot[neuron] - slope * knot
        for row, its_slope in self.rows[neuron]:
            if its_slope == slope:
                # Only guides the solver: rows that follow from curves have no part in the bound.
                self._row(row, offset, offset)

    def _columns(self, column: int, low: float, high: float) -> None:
        self.low[column], self.high[column] = low, max(low, high)
        self.solver.change_column(int(column), low, max(low, high))

    def _row(self, row: int, low: float, high: float) -> None:
        self.solver.change_row(int(row), low, high)

    def _values(self, z: np.ndarray) -> np.ndarray:
        parts, start = [], 0
        for neurons in self.model.neurons:
            part = z[start : start + neurons.pre.size]
            parts.append(neurons.curve.value(part[:, None])[:, 0])
            start += neurons.pre.size
        return np.concatenate(parts) if parts else np.zeros(0)

    def _slope(self, side: int) -> np.ndarray:
        """The slope left (0) or right (1) of the kink."""
        step = 1.0 if side else -1.0
        return (self._values(self.knot + step) - self.at_knot) * step

    def _rows(self) -> list[list[tuple[int, float]]]:
        """(relaxation row, its line's slope) of every neuron."""
        of_post = {int(c): i for i, c in enumerate(self.post)}
        found: list[list[tuple[int, float]]] = [[] for _ in self.post]
        matrix = self.model.matrix
        for row in np.flatnonzero(self.model.relaxation_rows):
            start = matrix.indptr[row]
            found[of_post[int(matrix.indices[start])]].append((int(row), -float(matrix.data[start + 1])))
        return found


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts).astype(np.int64) if parts else np.zeros(0, dtype=np.int64)
