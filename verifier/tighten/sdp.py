"""Semidefinite bounds of relu networks: by SCS through cvxpy, or by a first-order dual ascent.

Both only propose multipliers; `quadratic_bound` turns them into a rigorous bound, so an inexact
answer gives a slightly weaker bound, and a diverged one an error.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from verifier.errors import ShapeError, SolverError, SpecError, UnsupportedOperator
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
from verifier.tighten.solvers import HighsSolver

METHODS = ("scs", "first-order")
# Dense eigenvalue problems beyond this size take hours.
_LARGEST = 4000
_ASCENT_STEP, _POLISH_STEP = 1.0, 0.1


@dataclass(frozen=True)
class SdpSettings:
    """How to choose multipliers.

    Attributes:
        method: "scs" (accurate, small networks) or "first-order" (ascent from the LP's multipliers).
        per_layer: one semidefinite block per layer instead of one for the whole network; smaller, same value.
        accuracy: SCS stops at this relative accuracy; max_iterations, time_limit_s: or at these, per row.
        steps: of the first-order ascent, which also polishes SCS's answer: a loosely solved program
            loses size times its negative eigenvalue, and most of that comes back in a few hundred steps.
    """

    method: str = "scs"
    per_layer: bool = False
    accuracy: float = 1e-4
    max_iterations: int = 20_000
    time_limit_s: float | None = None
    steps: int = 500

    def validate(self) -> None:
        """Raises SpecError for an unknown method or values out of range."""
        if self.method not in METHODS or not self.accuracy > 0 or self.max_iterations < 1 or self.steps < 0:
            raise SpecError(f"SDP settings: expected a method of {METHODS} and positive numbers, got {self}")


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
        UnsupportedOperator: other activations.  SolverError: SCS diverged.
    Source: Raghunathan, Steinhardt & Liang 2018, arXiv:1811.01057; Dathathri et al. 2020, arXiv:2010.11645;
        per-layer blocks after Batten et al. 2021, IJCAI.
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
    if form.size > _LARGEST:
        raise ShapeError(f"semidefinite bound: {form.size} variables, at most {_LARGEST} are practical; use lp_bound")
    rows = [_row(form, model.cost(row), settings) for row in coeffs]
    lower, claimed = np.array([r[0] for r in rows]), np.array([r[1] for r in rows])
    return SdpResult(lower, claimed, time.perf_counter() - start, soundness, tuple(r[2] for r in rows))


def check_operators(graph: Graph) -> None:
    """Raises UnsupportedOperator for a nonlinear node other than Relu."""
    for node in graph.nodes.values():
        if node.op in CURVED and node.op != "Relu":
            raise UnsupportedOperator(node.op, node.name, "the semidefinite relaxation knows relu only")


def _row(form: QuadraticModel, cost: np.ndarray, settings: SdpSettings) -> tuple[float, float, str]:
    model = form.linear
    first, linear = _linear_start(form, cost)
    objective = Objective.of(form, cost)
    if settings.method == "scs":
        multipliers, claimed, note = _solve_scs(form, objective, settings)
        polished, _ = ascend(objective, multipliers, settings.steps, _POLISH_STEP, settings.time_limit_s)
        bound = max(quadratic_bound(form, cost, m) for m in (multipliers, polished))
        plain = safe_bound(model, cost, np.zeros(model.row_count))
        if not bound >= plain - abs(plain):
            raise SolverError(
                f"SCS ended with '{note}', but its multipliers prove only {bound:.6g} where interval bounds give "
                f"{plain:.6g}; raise max_iterations or use method 'first-order'"
            )
    else:
        multipliers, claimed = ascend(objective, first, settings.steps, _ASCENT_STEP, settings.time_limit_s)
        bound, note = quadratic_bound(form, cost, multipliers), "ascent"
    return max(bound, linear), claimed, note


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


def _solve_scs(form: QuadraticModel, objective: Objective, settings: SdpSettings) -> tuple[Multipliers, float, str]:
    """Maximise the dual function with the matrix held positive semidefinite, blockwise if asked."""
    import cvxpy

    line = cvxpy.Variable(form.lines.size, nonneg=True) if form.lines.size else None
    product = cvxpy.Variable(form.post.size) if form.post.size else None
    corner, shift = cvxpy.Variable(), cvxpy.Variable(form.size, nonneg=True)
    value, gradient = objective.constant, objective.gradient
    square = cvxpy.diag(shift)
    if line is not None:
        value = value + objective.line_value @ line
        gradient = gradient + objective.line_gradient @ line
    if product is not None:
        value = value + objective.product_value @ product
        gradient = gradient + objective.product_gradient @ product
        half = objective.left.T @ cvxpy.diag(product) @ objective.right
        square = square + 0.5 * (half + half.T)
    column = cvxpy.reshape(0.5 * gradient, (form.size, 1), order="C")
    matrix = cvxpy.bmat([[cvxpy.reshape(corner, (1, 1), order="C"), column.T], [column, square]])
    limits = _semidefinite(cvxpy, matrix, form, per_layer=settings.per_layer)
    program = cvxpy.Problem(cvxpy.Maximize(value - corner - cvxpy.sum(shift)), limits)
    options = {"eps_abs": settings.accuracy, "eps_rel": settings.accuracy, "max_iters": settings.max_iterations}
    if settings.time_limit_s is not None:
        options["time_limit_secs"] = settings.time_limit_s
    try:
        with warnings.catch_warnings():
            # An inaccurate answer is judged by the bound rebuilt from it, not by a warning.
            warnings.simplefilter("ignore", UserWarning)
            program.solve(solver="SCS", **options)
    except cvxpy.error.SolverError as error:
        raise SolverError(f"SCS failed: {error}; use method 'first-order'") from error
    if program.status not in ("optimal", "optimal_inaccurate") or shift.value is None:
        raise SolverError(f"SCS ended with '{program.status}'; tighten intermediate bounds or use method 'first-order'")
    found = Multipliers(
        np.zeros(0) if line is None else np.asarray(line.value),
        np.zeros(0) if product is None else np.asarray(product.value),
        np.concatenate([np.reshape(np.asarray(corner.value), 1), np.asarray(shift.value)]),
    )
    return found, float(program.value), program.status


def _semidefinite(cvxpy, matrix, form: QuadraticModel, *, per_layer: bool) -> list:
    """matrix >= 0, or matrix = sum of semidefinite blocks on [1, clique], which implies it."""
    if not per_layer or len(form.cliques) < 2:
        return [matrix >> 0]
    covered = np.unique(np.concatenate(form.cliques))
    cliques = [*form.cliques, *([j] for j in np.setdiff1d(np.arange(form.size), covered))]
    total = 0
    for clique in cliques:
        index = np.concatenate([[0], 1 + np.asarray(clique)])
        place = np.zeros((index.size, form.size + 1))
        place[np.arange(index.size), index] = 1.0
        block = cvxpy.Variable((index.size, index.size), PSD=True)
        total = total + place.T @ block @ place
    return [matrix == total]
