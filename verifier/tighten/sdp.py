"""Semidefinite bounds of relu networks: by interior points, or by a first-order dual ascent.

Both only propose multipliers; `quadratic_bound` turns them into a rigorous bound, so an inexact
answer gives a slightly weaker bound.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from verifier.errors import ShapeError, SpecError, UnsupportedOperator
from verifier.graph.ir import Graph
from verifier.outcome import Soundness
from verifier.spec.problem import InputSet
from verifier.tighten.build import build_model
from verifier.tighten.curves import CURVED
from verifier.tighten.intervals import Errors, Interval
from verifier.tighten.lp import checked_coeffs, soundness_of
from verifier.tighten.quadratic import Multipliers, QuadraticModel, eliminate, quadratic_bound, quadratic_model
from verifier.tighten.safe_bound import safe_bound
from verifier.tighten.sdp_ascent import Objective, ascend
from verifier.tighten.sdp_interior import follow_path
from verifier.tighten.solvers import HighsSolver

# The most variables that a method is practical for: its time grows with their cube.
METHODS = {"interior": 1500, "first-order": 4000}
_ASCENT_STEP = 1.0


@dataclass(frozen=True)
class SdpSettings:
    """How to choose multipliers.

    Attributes:
        method: "interior" (accurate, seconds a row for a few hundred variables) or "first-order" (ascent from
            the LP's multipliers).
        accuracy: interior points stop at this relative accuracy; time_limit_s: or at this time, per row.
        steps: of the first-order ascent.
    """

    method: str = "interior"
    accuracy: float = 1e-4
    time_limit_s: float | None = None
    steps: int = 500

    def validate(self) -> None:
        """Raises SpecError for an unknown method or values out of range."""
        if self.method not in METHODS or not self.accuracy > 0 or self.steps < 0:
            raise SpecError(f"SDP settings: expected a method of {tuple(METHODS)} and positive numbers, got {self}")


@dataclass(frozen=True)
class SdpResult:
    """Rigorous lower bounds [S] of coeffs @ outputs; the solver's own values [S] for comparison only."""

    lower: np.ndarray
    claimed: np.ndarray
    seconds: float
    soundness: Soundness
    notes: tuple[str, ...]


def sdp_bound(
    graph: Graph,
    inputs: InputSet,
    coeffs: np.ndarray,
    *,
    intermediate: Mapping[str, Interval] | None = None,
    rounding_error: Errors | None = None,
    settings: SdpSettings | None = None,
) -> SdpResult:
    """Lower bounds of coeffs @ outputs from the semidefinite relaxation with the LP's lines added.

    Arguments and errors as `lp_bound`; of an input set only the box is used.

    Requires: relu networks (linear nodes, Relu, ReduceMax) of at most a few thousand neurons.
    Method: products h (h - z) = 0 for every relu, boxes x^2 <= (l + u) x - l u, the triangle's lines.
    Property: sound, IEEE_FLOAT with `rounding_error`; at its optimum never below the LP's bound, which
        it returns where the multipliers found are worse.
    Raises:
        UnsupportedOperator: other activations.
    Source: Raghunathan, Steinhardt & Liang 2018, arXiv:1811.01057; Dathathri et al. 2020, arXiv:2010.11645.
    """
    start = time.perf_counter()
    settings = settings or SdpSettings()
    settings.validate()
    coeffs = checked_coeffs(graph, coeffs)
    check_operators(graph)
    model = build_model(graph, inputs, intermediate, rounding_error)
    soundness = soundness_of(rounding_error)
    if model is None:
        nothing = np.full(len(coeffs), np.inf)
        notes = ("interval bounds are empty",) * len(coeffs)
        return SdpResult(nothing, nothing, time.perf_counter() - start, soundness, notes)
    if any(np.any(n.curve.deployed_error > 0) for n in model.neurons):
        raise SpecError("rounding_error: a relu is exact in floating point; give errors of linear nodes only")
    form = quadratic_model(model)
    most = METHODS[settings.method]
    if form.size > most:
        other = "method 'first-order'" if form.size <= max(METHODS.values()) else "lp_bound"
        raise ShapeError(f"semidefinite bound: {form.size} variables, at most {most} are practical; use {other}")
    rows = [_row(form, model.cost(row), settings) for row in coeffs]
    lower, claimed = np.array([r[0] for r in rows]), np.array([r[1] for r in rows])
    return SdpResult(lower, claimed, time.perf_counter() - start, soundness, tuple(r[2] for r in rows))


def check_operators(graph: Graph) -> None:
    """Raises UnsupportedOperator for a nonlinear node other than Relu."""
    for node in graph.nodes.values():
        if node.op in CURVED and node.op != "Relu":
            raise UnsupportedOperator(node.op, node.name, "the semidefinite relaxation knows relu only")


def _row(form: QuadraticModel, cost: np.ndarray, settings: SdpSettings) -> tuple[float, float, str]:
    first, linear = _linear_start(form, cost)
    objective = Objective.of(form, cost)
    if settings.method == "interior":
        equations = form.lines.equal.size
        multipliers, claimed, note = follow_path(objective, first, equations, settings.accuracy, settings.time_limit_s)
    else:
        multipliers, claimed = ascend(objective, first, settings.steps, _ASCENT_STEP, settings.time_limit_s)
        note = "ascent"
    return max(quadratic_bound(form, cost, multipliers), linear), claimed, note


def _linear_start(form: QuadraticModel, cost: np.ndarray) -> tuple[Multipliers, float]:
    """The LP's multipliers as multipliers of the form (product = 0), and the LP's own rigorous bound."""
    solution = HighsSolver(form.linear).solve(cost)
    left = cost - form.linear.matrix.T @ solution.duals
    lines = form.lines
    rows = lines.sides * solution.duals[lines.rows]
    boxes, equal = left[lines.boxed], solution.duals[[form.defining[c] for c in lines.equal.tolist()]]
    line = np.maximum(np.concatenate([rows, boxes, -boxes, equal, -equal]), 0.0)
    d = cost - form.linear.matrix.T @ eliminate(form, cost, line)
    shift = 0.5 * np.abs(form.half * d[form.columns])
    start = Multipliers(line, np.zeros(form.post.size), np.concatenate([[shift.sum()], shift]))
    return start, safe_bound(form.linear, cost, solution.duals)
