"""One LP that stays in the solver while a tree is searched: a subdomain changes a few bounds, a cut adds a row.

Splitting a neuron at its kink fixes the sides of its pre-activation and makes its line an equality, a few dual simplex
steps away from the parent. No tolerance of the solver enters an answer: a bound is `safe_bound` (or an infeasibility
proof) on the model with the subdomain's own column bounds, from the multipliers the solver proposed.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from verifier.tighten.hull import cuts, envelopes
from verifier.tighten.model import LinearModel
from verifier.tighten.safe_bound import proves_infeasible, safe_bound, usable_duals
from verifier.tighten.solvers import HighsSolver

#: A cut that so many solves did not need goes, once there are more than MOST_CUTS a neuron.
IDLE, MOST_CUTS = 8, 2


@dataclass(frozen=True)
class Bounded:
    """A subdomain's rigorous bound, +inf where it is proved empty; multipliers [R]; the solver's point [C] or None."""

    bound: float
    duals: np.ndarray
    point: np.ndarray | None


class HotModel:
    """A model whose curves have one kink each, minimised for one cost, [C].

    Attributes:
        pre, post: int [K], columns of all neurons. knot: [K], where they bend.
    """

    def __init__(self, model: LinearModel, cost: np.ndarray):
        self.model, self.cost, self._own = model, cost, model.row_count
        self.pre, self.post = (_joined([getattr(n, side) for n in model.neurons]) for side in ("pre", "post"))
        self.knot = np.concatenate([n.curve.knots[:, 0] for n in model.neurons]) if model.neurons else np.zeros(0)
        self._solver, self._layers = HighsSolver(model), envelopes(model)
        self._low, self._high = model.col_lower.copy(), model.col_upper.copy()
        self._at_knot = self._values(self.knot)
        self._slope = np.stack([self._slopes(side) for side in (-1.0, 1.0)], axis=1)
        self._rows = self._relaxation_rows()
        self._sides: dict[int, int] = {}
        self._idle = np.zeros(0, dtype=np.int64)  # solves since each cut was last needed

    def bound(self, deadline: float) -> Bounded:
        """Of the subdomain gone to."""
        model = replace(self.model, col_lower=self._low, col_upper=self._high)
        left = None if deadline == np.inf else max(deadline - time.monotonic(), 0.01)
        found = self._solver.solve(self.cost, left)
        if found.infeasible:
            for ray in (found.duals, -found.duals):
                if proves_infeasible(model, ray):
                    return Bounded(np.inf, found.duals, None)
            return Bounded(-np.inf, found.duals, None)
        duals = usable_duals(model, found.duals)
        self._idle = np.where(duals[self._own :] != 0, 0, self._idle + 1)
        return Bounded(safe_bound(model, self.cost, duals), duals, found.point)

    def cut(self, point: np.ndarray) -> bool:
        """Add the planes that a point violates; False where there are none."""
        rows = cuts(self._layers, self.model, point)
        if rows.count == 0:
            return False
        if len(self._idle) > MOST_CUTS * len(self.pre):
            self._drop(self._own + np.flatnonzero(self._idle > IDLE))
        block, lower, upper = rows.finish(self.model.column_count)
        self.model = self.model.with_rows(block, lower, upper)
        self._solver.add_rows(block, lower, upper)
        self._idle = np.append(self._idle, np.zeros(rows.count, dtype=np.int64))
        return True

    def _drop(self, rows: np.ndarray) -> None:
        if rows.size:
            self.model = self.model.without_rows(rows)
            self._solver.delete_rows(rows)
            self._idle = np.delete(self._idle, rows - self._own)

    def go_to(self, sides: Mapping[int, int]) -> None:
        """The subdomain where these neurons are on these sides of their kinks, 0 or 1, and the others on either."""
        for neuron in [n for n, side in self._sides.items() if sides.get(n) != side]:
            pre, post = self.pre[neuron], self.post[neuron]
            self._columns(pre, self.model.col_lower[pre], self.model.col_upper[pre])
            self._solver.change_column(int(post), self.model.col_lower[post], self.model.col_upper[post])
            for row, _ in self._rows[neuron]:
                self._solver.change_row(row, self.model.row_lower[row], self.model.row_upper[row])
            del self._sides[neuron]
        for neuron, side in sides.items():
            if neuron not in self._sides:
                self._set(neuron, side)
                self._sides[neuron] = side

    def losses(self, at: Bounded) -> np.ndarray:
        """What each neuron's relaxation costs the bound: its distance from its curve times its multiplier, [K].

        0 where the subdomain decides it. Without a point, the widths.
        """
        low, high = self._low[self.pre], self._high[self.pre]
        undecided = (low < self.knot) & (self.knot < high)
        undecided[list(self._sides)] = False
        if at.point is None:
            return np.where(undecided, high - low, 0.0)
        gap = np.abs(at.point[self.post] - self._values(np.clip(at.point[self.pre], low, high)))
        duals = at.duals.copy()
        duals[self._own :] = 0.0  # the pull on a neuron, before what holds it
        duals = np.pad(duals, (0, self.model.row_count - duals.size))
        weight = np.abs((self.cost - self.model.matrix.T @ duals)[self.post]) + 1e-6
        return np.where(undecided & (gap >= 1e-10), gap * weight, 0.0)

    def _set(self, neuron: int, side: int) -> None:
        pre, post, knot = self.pre[neuron], self.post[neuron], self.knot[neuron]
        low, high = self.model.col_lower[pre], self.model.col_upper[pre]
        low, high = (max(low, knot), high) if side else (low, min(high, knot))
        self._columns(pre, low, high)
        slope = self._slope[neuron, side]
        ends = self._at_knot[neuron] + slope * (np.array([low, high]) - knot)
        pad = 1e-9 * (1.0 + np.abs(ends).max())
        # Only the solver is told: the bound keeps the proved range of `post`, deployed rounding included.
        post_low = max(ends.min() - pad, self.model.col_lower[post])
        post_high = max(min(ends.max() + pad, self.model.col_upper[post]), post_low)
        self._solver.change_column(int(post), post_low, post_high)
        offset = self._at_knot[neuron] - slope * knot
        for row, its_slope in self._rows[neuron]:
            if abs(its_slope - slope) <= 1e-9 * (1.0 + abs(slope)):
                # Only guides the solver: rows that follow from curves have no part in the bound.
                self._solver.change_row(row, offset, offset)

    def _columns(self, column: int, low: float, high: float) -> None:
        self._low[column], self._high[column] = low, max(low, high)
        self._solver.change_column(int(column), low, max(low, high))

    def _values(self, z: np.ndarray) -> np.ndarray:
        parts, start = [], 0
        for neurons in self.model.neurons:
            part = z[start : start + neurons.pre.size]
            parts.append(neurons.curve.value(part[:, None])[:, 0])
            start += neurons.pre.size
        return np.concatenate(parts) if parts else np.zeros(0)

    def _slopes(self, step: float) -> np.ndarray:
        """The slopes left (-1) or right (1) of the kinks."""
        return (self._values(self.knot + step) - self._at_knot) * step

    def _relaxation_rows(self) -> list[list[tuple[int, float]]]:
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
