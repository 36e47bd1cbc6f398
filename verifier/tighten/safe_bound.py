"""The only place where a number becomes a bound: Lagrangian duality evaluated with rounding terms.

For any multipliers y, with d = c - A^T y,

    min c.x  >=  sum_i (y_i > 0 ? y_i row_lower_i : y_i row_upper_i)
               + sum over single columns of min_{l <= x <= u} d_j x
               + sum over neurons of min_{l <= z <= u} d_pre z + d_post f(z),

so a solver's answer, however inexact, only decides how tight the bound is. Rows that follow
from the curves get y = 0: minimising over the curve itself is at least as strong as any of its
enclosing lines (Dvijotham et al. 2018, arXiv:1803.06567), and the columns' residuals are taken
by interval arithmetic (Neumaier & Shcherbina 2004, Math. Program. 99).
"""

from __future__ import annotations

import numpy as np

from verifier.errors import ShapeError
from verifier.tighten.model import LinearModel
from verifier.tighten.rounding import WIDEN, dot_error, sum_down


def safe_bound(model: LinearModel, cost: np.ndarray, duals: np.ndarray) -> float:
    """A lower bound of min cost @ columns over the model, valid for every `duals`.

    Args:
        cost: float64 [C].
        duals: float64 [R], y > 0 pulls on row_lower and y < 0 on row_upper; entries that are not
            finite, sit on relaxation rows or pull on an infinite side count as 0.
    Returns:
        The bound; -inf where overflow leaves nothing (never NaN).
    Raises:
        ShapeError: lengths do not fit.
    """
    if cost.shape != (model.column_count,) or duals.shape != (model.row_count,):
        expected = ((model.column_count,), (model.row_count,))
        raise ShapeError(f"safe bound: expected cost and duals {expected} (C, R), got {cost.shape}, {duals.shape}")
    duals = usable_duals(model, duals)
    with np.errstate(over="ignore", invalid="ignore"):
        limits = np.where(duals > 0, model.row_lower, np.where(duals < 0, model.row_upper, 0.0))
        row_terms = duals * limits
        residual, doubt = residual_interval(model, cost, duals)
        terms = [row_terms, *(neuron_terms(model, neurons, residual, doubt) for neurons in model.neurons)]
        single = model.unpaired
        low, high = model.col_lower[single], model.col_upper[single]
        d, e = residual[single], doubt[single] * np.maximum(np.abs(low), np.abs(high)) * WIDEN
        terms.append(np.minimum(d * low, d * high))
        terms.append(-e)
        every = np.concatenate(terms)
        # Each entry is one product of stored numbers: its own rounding is one more term of the sum.
        bound = float(sum_down(every) - dot_error(np.abs(every).sum(), every.size))
    return bound if np.isfinite(bound) else -np.inf


def usable_duals(model: LinearModel, duals: np.ndarray) -> np.ndarray:
    """`duals` with every entry that could not be used rigorously set to 0."""
    wrong = ~np.isfinite(duals) | model.relaxation_rows
    wrong |= (duals > 0) & ~np.isfinite(model.row_lower)
    wrong |= (duals < 0) & ~np.isfinite(model.row_upper)
    return np.where(wrong, 0.0, duals)


def proves_infeasible(model: LinearModel, ray: np.ndarray) -> bool:
    """True when the multipliers `ray` prove that no point satisfies the model (a Farkas proof)."""
    return safe_bound(model, np.zeros(model.column_count), ray) > 0.0


def residual_interval(model: LinearModel, cost: np.ndarray, duals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """d = cost - A^T y as computed, and a bound on its error, [C] each."""
    turned, magnitudes, longest = model.transposed
    value, magnitude = cost - turned @ duals, np.abs(cost) + magnitudes @ np.abs(duals)
    return value, np.where(magnitude > 0, dot_error(magnitude, longest + 1), 0.0)


def neuron_terms(model: LinearModel, neurons, residual: np.ndarray, doubt: np.ndarray) -> np.ndarray:
    """A lower bound of min d_pre z + d_post f(z) over each neuron's interval, [K]."""
    pre, post = neurons.pre, neurons.post
    low, high = model.col_lower[pre], model.col_upper[pre]
    joint = neurons.curve.minimum(residual[pre], residual[post], low, high)
    pre_size = np.maximum(np.abs(low), np.abs(high))
    post_size = np.maximum(np.abs(model.col_lower[post]), np.abs(model.col_upper[post]))
    return joint - (doubt[pre] * pre_size + doubt[post] * post_size) * WIDEN
