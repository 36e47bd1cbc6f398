"""The dual function of the semidefinite relaxation in plain arrays, and its ascent by supergradients."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

from verifier.tighten.quadratic import Multipliers, QuadraticModel, eliminate

# Up to here a full symmetric eigendecomposition is as fast as Lanczos and more robust.
_DENSE = 600
_MEAN, _SQUARE = 0.9, 0.999


@dataclass(frozen=True)
class Objective:
    """value(line, product) and the form's matrix as linear functions of the multipliers, not rigorous.

    value = constant + line_value @ line + product_value @ product - kappa_0 - sum max(kappa_j, 0);
    first row of the matrix: half of gradient + line_gradient @ line + product_gradient @ product;
    lower block: sym(left^T diag(product) right) + diag(kappa).
    A product is (at_middle[0] + left v)(at_middle[1] + right v), at_middle [2, K].
    """

    constant: float
    gradient: np.ndarray
    line_value: np.ndarray
    line_gradient: np.ndarray
    product_value: np.ndarray
    product_gradient: np.ndarray
    at_middle: np.ndarray
    left: np.ndarray
    right: np.ndarray

    @classmethod
    def of(cls, form: QuadraticModel, cost: np.ndarray) -> Objective:
        """The objective of minimising `cost` [C] over the form's model."""
        model, middle, half = form.linear, form.middle, form.half
        duals = eliminate(form, cost, np.zeros(form.lines.size))
        held = np.where(duals > 0, model.row_lower, np.where(duals < 0, model.row_upper, 0.0))
        d = (cost - model.matrix.T @ duals)[form.columns]
        unit = np.eye(form.size)[form.post]
        factor = unit - form.weight
        first, second = middle[form.post], factor @ middle - form.offset
        return cls(
            constant=float(np.where(duals != 0, duals * held, 0.0).sum() + d @ middle),
            gradient=half * d,
            line_value=form.lines.limits - form.lines.coeffs @ middle,
            line_gradient=-(form.lines.coeffs * half).T,
            product_value=first * second,
            product_gradient=((unit * second[:, None] + first[:, None] * factor) * half).T,
            at_middle=np.stack([first, second]),
            left=unit * half,
            right=factor * half,
        )

    def value_and_gradient(self, at: Multipliers, guess: np.ndarray | None) -> tuple[float, Multipliers, np.ndarray]:
        """The dual function at `at`, a supergradient, and the eigenvector behind it [n + 1]."""
        size = self.gradient.size
        slope = self.gradient + self.line_gradient @ at.line + self.product_gradient @ at.product
        smallest, w = self._smallest(at, slope, guess)
        value = self.constant + self.line_value @ at.line + self.product_value @ at.product
        value += -at.shift[0] - np.maximum(at.shift[1:], 0.0).sum() + (size + 1) * min(0.0, smallest)
        weight = (size + 1.0) if smallest < 0 else 0.0
        cross = weight * w[0] * w[1:]
        flat = np.where(at.shift[1:] > 0, -1.0, 0.0)
        return (
            value,
            Multipliers(
                line=self.line_value + self.line_gradient.T @ cross,
                product=self.product_value
                + self.product_gradient.T @ cross
                + weight * (self.left @ w[1:]) * (self.right @ w[1:]),
                shift=np.concatenate([[-1.0], flat]) + weight * w * w,
            ),
            w,
        )

    def _smallest(self, at: Multipliers, slope: np.ndarray, guess: np.ndarray | None) -> tuple[float, np.ndarray]:
        size = slope.size + 1
        if size > _DENSE:
            try:
                values, vectors = eigsh(self._operator(at, slope), k=1, which="SA", v0=guess, tol=1e-4, maxiter=2000)
                return float(values[0]), vectors[:, 0]
            except ArpackNoConvergence:
                pass  # fall through to the dense decomposition, which always ends
        matrix = np.zeros((size, size))
        half = self.left.T @ (at.product[:, None] * self.right)
        matrix[1:, 1:] = 0.5 * (half + half.T)
        matrix[0, 1:] = matrix[1:, 0] = 0.5 * slope
        matrix[np.diag_indices(size)] += at.shift
        values, vectors = np.linalg.eigh(matrix)
        return float(values[0]), vectors[:, 0]

    def _operator(self, at: Multipliers, slope: np.ndarray) -> LinearOperator:
        def product(v: np.ndarray) -> np.ndarray:
            v = v.reshape(-1)
            tail = v[1:]
            body = 0.5 * (self.left.T @ (at.product * (self.right @ tail)))
            body += 0.5 * (self.right.T @ (at.product * (self.left @ tail))) + 0.5 * slope * v[0]
            return at.shift * v + np.concatenate([[0.5 * slope @ tail], body])

        return LinearOperator((slope.size + 1,) * 2, matvec=product, dtype=np.float64)


def ascend(
    objective: Objective, start: Multipliers, steps: int, step_rel: float, time_limit_s: float | None
) -> tuple[Multipliers, float]:
    """The best multipliers met on Adam's way up from `start`, and the (unproved) value there.

    step_rel: first step relative to the mean of `start.shift`.

    Source: Dathathri et al. 2020, arXiv:2010.11645.
    """
    stop = np.inf if time_limit_s is None else time.perf_counter() + time_limit_s
    point = [start.line, start.product, start.shift]
    means, squares = [np.zeros_like(p) for p in point], [np.zeros_like(p) for p in point]
    typical = max(float(np.abs(start.shift[1:]).mean()), 1e-6)
    best, best_value, guess = start, -np.inf, None
    for step in range(1, steps + 1):
        at = Multipliers(*point)
        value, gradient, guess = objective.value_and_gradient(at, guess)
        if value > best_value:
            best, best_value = at, value
        if time.perf_counter() >= stop:
            break
        rate = step_rel * typical * (0.5 * (1.0 + np.cos(np.pi * (step - 1) / steps)) + 1e-3)
        for k, g in enumerate((gradient.line, gradient.product, gradient.shift)):
            means[k] = _MEAN * means[k] + (1 - _MEAN) * g
            squares[k] = _SQUARE * squares[k] + (1 - _SQUARE) * g * g
            root = np.sqrt(squares[k] / (1 - _SQUARE**step)) + 1e-12
            point[k] = point[k] + rate * means[k] / (1 - _MEAN**step) / root
        point[0] = np.maximum(point[0], 0.0)
        point[2] = np.concatenate([point[2][:1], np.maximum(point[2][1:], 0.0)])
    return best, best_value
