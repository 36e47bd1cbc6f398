"""Dual bounds without a solver: Wong-Kolter's closed form, CROWN's slopes, and Lagrangian ascent.

All three only choose multipliers of the rows that define a model's columns; `safe_bound` turns
them into a bound. So they are one relaxation family at three prices, and the optimum over all
multipliers is the LP's bound.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from verifier.errors import SpecError
from verifier.graph.ir import Graph
from verifier.outcome import Soundness
from verifier.spec.problem import InputSet
from verifier.tighten.build import build_model
from verifier.tighten.enclosure import hull_slopes_at_middle
from verifier.tighten.intervals import Errors, Interval, Maps, propagate
from verifier.tighten.lp import checked_coeffs, soundness_of
from verifier.tighten.model import LinearModel
from verifier.tighten.safe_bound import safe_bound, usable_duals

METHODS = ("wong-kolter", "crown", "lagrangian")
_ADAM_MEAN, _ADAM_SQUARE = 0.9, 0.99


@dataclass(frozen=True)
class DualSettings:
    """How to choose multipliers.

    Attributes:
        method: "wong-kolter" (parallel lines), "crown" (adaptive lines), or "lagrangian" (ascent from CROWN).
        steps: of the ascent; step_rel: first step relative to the size of the multipliers.
        layerwise: bound every pre-activation by the same closed form before its activation is relaxed,
            as the papers do; off uses interval and given bounds only.
        time_limit_s: of the ascent on all rows together; the others take one pass.
        cancelled: asked at every step of the ascent.
    """

    method: str = "wong-kolter"
    steps: int = 300
    step_rel: float = 0.05
    layerwise: bool = True
    time_limit_s: float | None = None
    cancelled: Callable[[], bool] = lambda: False

    def validate(self) -> None:
        """Raises SpecError for an unknown method or values out of range."""
        if self.method not in METHODS or self.steps < 0 or not self.step_rel > 0:
            raise SpecError(f"dual settings: expected a method of {METHODS}, steps >= 0, step_rel > 0, got {self}")


@dataclass(frozen=True)
class DualResult:
    """Rigorous lower bounds [S] of coeffs @ outputs, wall time, and what they hold for."""

    lower: np.ndarray
    seconds: float
    soundness: Soundness


def dual_bound(
    graph: Graph,
    inputs: InputSet,
    coeffs: np.ndarray,
    *,
    intermediate: Mapping[str, Interval] | None = None,
    rounding_error: Errors | None = None,
    settings: DualSettings | None = None,
) -> DualResult:
    """Lower bounds of coeffs @ outputs from multipliers chosen without a solver.

    Arguments, requirements and errors as `lp_bound`. Input sets beyond boxes use their box, and
    multipliers of their rows only in the ascent.

    Property: sound, IEEE_FLOAT with `rounding_error`; never above the LP over the same
        intermediate bounds; wong-kolter and crown are incomparable, lagrangian >= crown.
    Source: Wong & Kolter 2018, arXiv:1711.00851; Zhang et al. 2018, arXiv:1811.00866; Dvijotham et al.
        2018, arXiv:1803.06567.
    """
    start = time.perf_counter()
    settings = settings or DualSettings()
    settings.validate()
    coeffs = checked_coeffs(graph, coeffs)
    known: Mapping[str, Interval] | None = intermediate
    if settings.layerwise:
        parallel = settings.method == "wong-kolter"
        known = layerwise_bounds(graph, inputs, intermediate, rounding_error, parallel=parallel)
    model = None if known is None and settings.layerwise else build_model(graph, inputs, known, rounding_error)
    if model is None:
        lower = np.full(len(coeffs), np.inf)
    else:
        limit = np.inf if settings.time_limit_s is None else settings.time_limit_s
        lower = np.empty(len(coeffs))
        for s, row in enumerate(coeffs):
            now = time.perf_counter()
            stop = now + (start + limit - now) / (len(coeffs) - s)
            lower[s] = _row_bound(model, model.cost(row), settings, stop)
    return DualResult(lower, time.perf_counter() - start, soundness_of(rounding_error))


def layerwise_bounds(
    graph: Graph,
    inputs: InputSet,
    intermediate: Mapping[str, Interval] | None = None,
    rounding_error: Errors | None = None,
    *,
    parallel: bool = False,
) -> dict[str, Interval] | None:
    """Bounds of every node that an activation reads, each from the closed form over the network before it.

    Returns:
        `intermediate` with those nodes added or intersected; None when no point of interest exists.
    """
    known = dict(intermediate or {})
    readers = {n.inputs[0] for n in graph.nodes.values() if n.op in Maps.activations}
    for name in (n for n in graph.nodes if n in readers and graph[n].op not in ("Input", "Constant")):
        part = replace(graph, outputs=(name,), output_names=()).pruned()
        errors = {k: v for k, v in (rounding_error or {}).items() if k in part.nodes}
        maps = Maps(part, errors)
        bounds, model = propagate(maps, inputs, known), build_model(part, inputs, known, maps=maps)
        if bounds is None or model is None:
            return None
        if not model.neurons:
            continue
        lower, upper = bounds[name][0].copy(), bounds[name][1].copy()
        for i, column in enumerate(model.outputs):
            for sign in (1.0, -1.0):
                cost = np.zeros(model.column_count)
                cost[column] = sign
                bound = safe_bound(model, cost, backward_multipliers(model, cost, parallel=parallel))
                if sign > 0:
                    lower[i] = max(lower[i], bound)
                else:
                    upper[i] = min(upper[i], -bound)
        if np.any(lower > upper):
            return None
        known[name] = (lower, upper)
    return known


def backward_multipliers(model: LinearModel, cost: np.ndarray, *, parallel: bool) -> np.ndarray:
    """Multipliers [R] that a backward pass with fixed lines would use, for `cost` [C].

    Defining rows are visited last to first. Each gets what cancels its column's coefficient, so
    that the objective moves onto earlier columns; a pre-activation keeps -slope * d_post, which
    its neuron's own minimum pairs with d_post f.

    parallel: one slope per neuron, the chord's (Fast-Lin, Wong-Kolter); otherwise the hull
        edge at the middle of the interval, on the side the coefficient's sign asks for (CROWN's choice).
    """
    chosen = [line_slopes(model, neurons, parallel) for neurons in model.neurons]
    duals, d = np.zeros(model.row_count), cost.copy()
    slope_below, slope_above = np.zeros(d.size), np.zeros(d.size)
    partner = np.zeros(d.size, dtype=np.int64)
    for neurons, (below, above) in zip(model.neurons, chosen, strict=True):
        slope_below[neurons.pre], slope_above[neurons.pre] = below, above
        partner[neurons.pre] = neurons.post
    for start, stop in reversed(model.definitions):
        rows = model.matrix[start:stop]
        own = rows.indices[rows.indptr[:-1]]
        ahead = d[partner[own]]
        slope = np.where(ahead > 0, slope_below[own], slope_above[own])
        duals[start:stop] = d[own] + np.where(partner[own] > 0, slope * ahead, 0.0)
        d -= rows.T @ duals[start:stop]
    return duals


def line_slopes(model: LinearModel, neurons, parallel: bool) -> tuple[np.ndarray, np.ndarray]:
    low, high = model.col_lower[neurons.pre], model.col_upper[neurons.pre]
    if not parallel:
        return hull_slopes_at_middle(neurons.curve, low, high)
    ends = np.stack([low, high], axis=1)
    rise, width = np.diff(neurons.curve.value(ends), axis=1)[:, 0], high - low
    chord = np.divide(rise, width, out=np.zeros_like(width), where=width > 0)
    return chord, chord


def _row_bound(model: LinearModel, cost: np.ndarray, settings: DualSettings, stop: float) -> float:
    duals = backward_multipliers(model, cost, parallel=settings.method == "wong-kolter")
    best = max(safe_bound(model, cost, duals), safe_bound(model, cost, np.zeros(model.row_count)))
    if settings.method != "lagrangian":
        return best
    return max(best, safe_bound(model, cost, _ascend(model, cost, duals, settings, stop)))


def _ascend(model: LinearModel, cost: np.ndarray, duals: np.ndarray, settings: DualSettings, stop: float) -> np.ndarray:
    """Multipliers after Adam steps along supergradients; the best by value met on the way.

    The Lagrangian is concave in the multipliers; rhs - A x* at its minimiser x* is a supergradient.
    """
    best, best_value = duals, -np.inf
    mean, square = np.zeros_like(duals), np.zeros_like(duals)
    size = float(np.mean(np.abs(duals[duals != 0]))) if np.any(duals) else 1.0
    for step in range(1, settings.steps + 1):
        value, gradient = _lagrangian(model, cost, duals)
        if value > best_value:
            best, best_value = duals, value
        if time.perf_counter() >= stop or settings.cancelled():
            break
        mean = _ADAM_MEAN * mean + (1 - _ADAM_MEAN) * gradient
        square = _ADAM_SQUARE * square + (1 - _ADAM_SQUARE) * gradient**2
        direction = mean / (1 - _ADAM_MEAN**step) / (np.sqrt(square / (1 - _ADAM_SQUARE**step)) + 1e-12)
        rate = settings.step_rel * size * (1.0 - (step - 1) / settings.steps)
        duals = usable_duals(model, duals + rate * direction)
    return best


def _lagrangian(model: LinearModel, cost: np.ndarray, duals: np.ndarray) -> tuple[float, np.ndarray]:
    """Value (not rigorous) and supergradient [R] of the Lagrangian."""
    d = cost - model.matrix.T @ duals
    x = np.where(d > 0, model.col_lower, model.col_upper)
    for neurons in model.neurons:
        low, high = model.col_lower[neurons.pre], model.col_upper[neurons.pre]
        x[neurons.pre] = neurons.curve.minimiser(d[neurons.pre], d[neurons.post], low, high)
        x[neurons.post] = neurons.curve.value(x[neurons.pre][:, None])[:, 0]
    held = np.where(duals > 0, model.row_lower, model.row_upper)
    # At 0 a two-sided row pulls to whichever side the point leaves it on; a one-sided one if violated.
    activity = model.matrix @ x
    at_zero = np.clip(activity, model.row_lower, model.row_upper)
    held = np.where((duals != 0) & np.isfinite(held), held, at_zero)
    gradient = np.where(model.relaxation_rows, 0.0, held - activity)
    return float(d @ x + np.where(duals != 0, duals * held, 0.0).sum()), gradient
