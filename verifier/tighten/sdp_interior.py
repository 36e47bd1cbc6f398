"""The semidefinite relaxation's dual by a primal-dual interior point method, for about a thousand columns at most.

    maximise  b.y  over S = M(y) >= 0 and y_i >= 0 for some i;  its dual:  X >= 0, x >= 0, b_i + <A_i, X> + x_i = 0.

M is a sum of rank-two terms A_i = sym(p_i q_i^T): a line touches its first row only, a product is one affine form
of [1, v] times another, a shift is one diagonal entry. So the matrix of the Newton system, <A_i, X A_j S^-1>, is
a few dense products, and tens of steps of a second or less find what first-order methods, which see one of the
many eigenvectors at zero at a time, do not. y stays strictly feasible, so every iterate is a bound.
Source: Helmberg, Rendl, Vanderbei & Wolkowicz 1996, SIAM J. Optim. 6 (the HKM direction); Mehrotra 1992, SIAM J.
Optim. 2 (predictor and corrector); the relaxation: Raghunathan, Steinhardt & Liang 2018, arXiv:1811.01057.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve, cholesky, eigvalsh, solve_triangular

from verifier.tighten.quadratic import Multipliers
from verifier.tighten.sdp_ascent import Objective

#: Steps at most, and the share of the way to the boundary that one goes.
_MOST, _NEAR = 60, 0.95


@dataclass(frozen=True)
class _Program:
    """value = constant + b.y, M(y) = fixed + sum_i y_i sym(p_i q_i^T); y holds lines, products, kappa.

    kappa_0 stands for itself less sum product * corner, which makes a product's matrix one rank-two term. Both
    sides of an equation share one multiplier of any sign: two that could grow together would have no centre.

    Attributes:
        p, q: [m, n + 1]; fixed: [n + 1, n + 1]; positive: bool [m]; lines: of y; equal: the last of them are equations.
    """

    constant: float
    b: np.ndarray
    p: np.ndarray
    q: np.ndarray
    fixed: np.ndarray
    positive: np.ndarray
    lines: int
    equal: int

    @classmethod
    def of(cls, objective: Objective, equal: int) -> _Program:
        """The program in the multipliers of `objective`, whose last 2 `equal` lines are both sides of equations."""
        size, lines = objective.gradient.size + 1, objective.line_value.size - equal
        unit = np.eye(size)
        # the objective's products are (first + left.v)(second + right.v); only the sum of cross terms is stored
        first, second = objective.at_middle
        p = np.concatenate([np.tile(unit[0], (lines, 1)), np.column_stack([first, objective.left]), unit])
        line = np.column_stack([np.zeros(lines), objective.line_gradient.T[:lines]])
        q = np.concatenate([line, np.column_stack([second, objective.right]), unit])
        fixed = np.zeros((size, size))
        fixed[0, 1:] = fixed[1:, 0] = 0.5 * objective.gradient
        products = len(first)
        b = np.concatenate(
            [objective.line_value[:lines], objective.product_value - first * second, np.full(size, -1.0)]
        )
        sides = np.concatenate([np.ones(lines - equal), np.zeros(equal + products + 1), np.ones(size - 1)])
        return cls(objective.constant, b, p, q, fixed, sides.astype(bool), lines, equal)

    def matrix(self, y: np.ndarray, *, fixed: bool = True) -> np.ndarray:
        """M(y), or only its part that is linear in y."""
        half = self.p.T @ (y[:, None] * self.q)
        return 0.5 * (half + half.T) + (self.fixed if fixed else 0.0)

    def inner(self, matrix: np.ndarray) -> np.ndarray:
        """<A_i, matrix> for a symmetric matrix [n + 1, n + 1], [m]."""
        return ((self.p @ matrix) * self.q).sum(axis=1)

    def start(self, at: Multipliers) -> np.ndarray:
        """A strictly feasible y near `at`, whose products are taken as zero."""
        above, below = at.line[: self.lines], at.line[self.lines :]
        line = above + 0.01 * max(float(above.mean()) if above.size else 0.0, 1e-3)
        if self.equal:
            line[-self.equal :] = above[-self.equal :] - below
        y = np.concatenate([line, np.zeros(len(self.b) - self.lines - len(self.fixed)), np.zeros(len(self.fixed))])
        slope = self.matrix(y)[0, 1:]
        typical = max(float(np.abs(slope).mean()), 1e-6)
        shift = np.abs(slope) + 0.1 * typical
        y[-len(shift) :] = shift
        y[-len(shift) - 1] = float((slope**2 / shift).sum()) + typical
        return y

    def multipliers(self, y: np.ndarray) -> Multipliers:
        """y in the objective's terms."""
        products = len(self.b) - self.lines - len(self.fixed)
        line, product, shift = (part.copy() for part in np.split(y, [self.lines, self.lines + products]))
        if self.equal:
            free = line[-self.equal :].copy()
            line[-self.equal :] = np.maximum(free, 0.0)
            line = np.concatenate([line, np.maximum(-free, 0.0)])
        shift[0] += float(product @ (self.p[:, 0] * self.q[:, 0])[self.lines : self.lines + products])
        return Multipliers(line, product, shift)


def follow_path(
    objective: Objective, start: Multipliers, equal: int, accuracy: float, time_limit_s: float | None
) -> tuple[Multipliers, float, str]:
    """Multipliers near the optimum, the (unproved) value there, and how it ended.

    Args:
        equal: equations, whose sides are the last 2 `equal` lines of the objective.
        accuracy: stop when the distance to the optimum is at most this share of the value's size.
    """
    stop = np.inf if time_limit_s is None else time.perf_counter() + time_limit_s
    program = _Program.of(objective, equal)
    y, x, outer = program.start(start), np.ones(int(program.positive.sum())), np.eye(len(program.fixed))
    own, note = program.positive, "step limit"
    for _ in range(_MOST):
        slack = program.matrix(y)
        value = program.constant + float(program.b @ y)
        gap = float((outer * slack).sum() + x @ y[own])
        missing = program.b + program.inner(outer)
        missing[own] += x
        if gap <= accuracy * max(abs(value), 1e-3) and np.abs(missing).max() <= accuracy:
            note = "optimal"
            break
        if time.perf_counter() >= stop:
            note = "time limit"
            break
        try:
            step = _Step(program, y, x, outer, slack)
        except LinAlgError:  # as far as float64 goes
            note = "numerical limit"
            break
        dy, dx, change = step.towards(0.0)
        reach = step.reach(dy, dx, change)
        after = float(((outer + reach[0] * change) * (slack + reach[1] * program.matrix(dy, fixed=False))).sum())
        after += float((x + reach[0] * dx) @ (y + reach[1] * dy)[own])
        centre = (max(after, 0.0) / gap) ** 2 * gap / step.order
        dy, dx, change = step.towards(centre, (dy, dx, change))
        primal, dual = step.reach(dy, dx, change)
        y, x, outer = y + dual * dy, x + primal * dx, outer + primal * change
    return program.multipliers(y), program.constant + float(program.b @ y), note


class _Step:
    """The Newton system at one point, for several right-hand sides."""

    def __init__(self, program: _Program, y: np.ndarray, x: np.ndarray, outer: np.ndarray, slack: np.ndarray):
        self._program, self._y, self._x, self._outer = program, y[program.positive], x, outer
        self.order = len(slack) + len(x)
        self._roots = cholesky(outer, lower=True), cholesky(slack, lower=True)
        self._inverse = cho_solve((self._roots[1], True), np.eye(len(slack)))
        p, q = program.p, program.q
        px, qx, pz, qz = p @ outer, q @ outer, p @ self._inverse, q @ self._inverse
        cross = (qx @ p.T) * (pz @ q.T)
        system = 0.25 * (cross + cross.T + (qx @ q.T) * (pz @ p.T) + (px @ p.T) * (qz @ q.T))
        diagonal = np.diagonal(system).copy()
        diagonal[program.positive] += x / self._y
        system[np.diag_indices(len(y))] = diagonal * (1.0 + 1e-13)
        self._system = cho_factor(system, lower=True)

    def towards(self, centre: float, before: tuple[np.ndarray, ...] | None = None) -> tuple[np.ndarray, ...]:
        """(dy, dx, dX) to the point of the central path where every product is `centre`.

        before: a first answer, whose second-order terms are made up for.
        """
        program, own = self._program, self._program.positive
        wanted = centre * self._inverse
        product = np.full(len(self._x), centre)
        if before is not None:
            dy, dx, change = before
            second = change @ program.matrix(dy, fixed=False) @ self._inverse
            wanted = wanted - 0.5 * (second + second.T)
            product -= dx * dy[own]
        right = program.b + program.inner(wanted)
        right[own] += product / self._y
        dy = cho_solve(self._system, right)
        turned = self._outer @ program.matrix(dy, fixed=False) @ self._inverse
        change = wanted - self._outer - 0.5 * (turned + turned.T)
        return dy, (product - self._x * dy[own]) / self._y - self._x, change

    def reach(self, dy: np.ndarray, dx: np.ndarray, change: np.ndarray) -> tuple[float, float]:
        """How far X and x, and how far y can go, at most 1."""
        dual = min(
            _rate(self._roots[1], self._program.matrix(dy, fixed=False)), _least(dy[self._program.positive] / self._y)
        )
        primal = min(_rate(self._roots[0], change), _least(dx / self._x))
        return min(1.0, -_NEAR / min(primal, -1e-12)), min(1.0, -_NEAR / min(dual, -1e-12))


def _rate(root: np.ndarray, change: np.ndarray) -> float:
    """The smallest eigenvalue of root^-1 change root^-T."""
    half = solve_triangular(root, change, lower=True)
    return float(eigvalsh(solve_triangular(root, half.T, lower=True), subset_by_index=(0, 0))[0])


def _least(rates: np.ndarray) -> float:
    return float(rates.min(initial=0.0))
