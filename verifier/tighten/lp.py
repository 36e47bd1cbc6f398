"""Linear programming bounds of outputs and of intermediate neurons."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from verifier.errors import ShapeError, SpecError
from verifier.graph.ir import Graph
from verifier.outcome import Soundness
from verifier.spec.problem import InputSet
from verifier.tighten.build import build_model
from verifier.tighten.input_rows import l2_cut
from verifier.tighten.intervals import Errors, Interval, Maps, propagate
from verifier.tighten.model import LinearModel
from verifier.tighten.safe_bound import proves_infeasible, safe_bound, usable_duals
from verifier.tighten.solvers import make_solver

# Rounds of half-spaces cut around an l2 ball for one objective.
_L2_ROUNDS = 20


@dataclass(frozen=True)
class TightenResult:
    """Lower bounds of specification rows.

    Attributes:
        lower: float64 [S]; +inf where the multipliers prove that no input exists, -inf at worst.
        duals: float64 [S, R], the multipliers that prove them, over the rows of `model`.
        model: what the multipliers refer to; None when interval bounds already found the set empty.
        seconds: wall time.
        soundness: what the bounds hold for.
        notes: per row, how the solver ended.
    """

    lower: np.ndarray
    duals: np.ndarray
    model: LinearModel | None
    seconds: float
    soundness: Soundness
    notes: tuple[str, ...]


def lp_bound(
    graph: Graph,
    inputs: InputSet,
    coeffs: np.ndarray,
    *,
    intermediate: Mapping[str, Interval] | None = None,
    rounding_error: Errors | None = None,
    time_limit_s: float | None = None,
    solver: str = "highs",
) -> TightenResult:
    """Lower bounds of coeffs @ outputs by linear programming over all layers at once.

    Args:
        coeffs: float64 [S, N_out] (or [N_out] for one row).
        intermediate: node name -> (lower, upper) of that node's values, as in `build_model`.
            They must be valid in the arithmetic the result is meant for.
        rounding_error: node name -> |deployed - exact|, as in `build_model`.
        time_limit_s: for all rows together; rows it does not reach get the bound of zero multipliers.
        solver: "highs", or the cvxpy name of a solver.
    Requires: elementwise activations with known curvature, linear nodes, ReduceMax.
    Method: triangle relaxation (convex hull of every piecewise linear activation; enclosing lines of
        curved ones), exact l1 balls and half-spaces, l2 balls by cutting planes.
    Property: sound, IEEE_FLOAT with `rounding_error` and REAL_ARITHMETIC without; at least as tight as
        any bound that relaxes one neuron at a time, up to the solver's accuracy.
    Raises:
        UnsupportedOperator, ShapeError, NetworkError, SpecError.
    Source: Ehlers 2017, arXiv:1705.01320; Salman et al. 2019, arXiv:1902.08722.
    """
    start = time.perf_counter()
    coeffs = checked_coeffs(graph, coeffs)
    soundness = soundness_of(rounding_error)
    model = build_model(graph, inputs, intermediate, rounding_error)
    if model is None:
        lower = np.full(len(coeffs), np.inf)
        notes = ("interval bounds are empty",) * len(coeffs)
        return TightenResult(lower, np.zeros((len(coeffs), 0)), None, time.perf_counter() - start, soundness, notes)
    session = LpSession(model, inputs, solver)
    lower = np.empty(len(coeffs))
    endings: list[str] = []
    duals: list[np.ndarray] = []
    for s, row in enumerate(coeffs):
        left = None if time_limit_s is None else time_limit_s - (time.perf_counter() - start)
        answer = session.bound(model.cost(row), left)
        lower[s] = answer.bound
        endings.append(answer.status)
        duals.append(answer.duals)
    rows = session.model.row_count
    padded = np.stack([np.pad(d, (0, rows - d.size)) for d in duals]) if duals else np.zeros((0, rows))
    return TightenResult(lower, padded, session.model, time.perf_counter() - start, soundness, tuple(endings))


@dataclass(frozen=True)
class Answer:
    """One objective's rigorous bound, its multipliers [R], and the solver's point [C] or None."""

    bound: float
    duals: np.ndarray
    point: np.ndarray | None
    status: str


class LpSession:
    """One model and its solver, for several objectives; cuts around an l2 ball are kept between them."""

    def __init__(self, model: LinearModel, inputs: InputSet, solver: str = "highs"):
        self.model = model
        self._ball = inputs.ball if inputs.ball is not None and inputs.ball.p == 2 else None
        self._solver_name = solver
        self._solver = make_solver(model, solver)

    def bound(self, cost: np.ndarray, time_limit_s: float | None = None) -> Answer:
        """A rigorous lower bound of min cost @ columns, with `cost` [C]; +inf for a proved empty model."""
        stop = None if time_limit_s is None else time.perf_counter() + time_limit_s
        answer = self._once(cost, stop)
        for _ in range(_L2_ROUNDS):
            if answer.point is None or not self._cut(answer.point):
                break
            answer = self._better(answer, self._once(cost, stop))
        return answer

    def _once(self, cost: np.ndarray, stop: float | None) -> Answer:
        nothing = np.zeros(self.model.row_count)
        left = None if stop is None else stop - time.perf_counter()
        if left is not None and left <= 0.0:
            return Answer(safe_bound(self.model, cost, nothing), nothing, None, "no time left")
        found = self._solver.solve(cost, left)
        if found.infeasible:
            for ray in (found.duals, -found.duals):
                if proves_infeasible(self.model, ray):
                    return Answer(np.inf, usable_duals(self.model, ray), None, "infeasible")
            return Answer(safe_bound(self.model, cost, nothing), nothing, None, "infeasible, but not proved so")
        duals = usable_duals(self.model, found.duals)
        bound = safe_bound(self.model, cost, duals)
        if found.status != "Optimal":  # whatever is at hand may be worse than nothing
            plain = safe_bound(self.model, cost, nothing)
            if plain > bound:
                bound, duals = plain, nothing
        return Answer(bound, duals, found.point, found.status)

    def _better(self, old: Answer, new: Answer) -> Answer:
        return new if new.bound >= old.bound else replace(new, bound=old.bound, duals=old.duals)

    def _cut(self, point: np.ndarray) -> bool:
        """Add a half-space that cuts `point` off; False when the point is in the ball."""
        if self._ball is None:
            return False
        cut = l2_cut(self._ball, self.model.inputs, point[self.model.inputs], self.model.column_count)
        if cut is None:
            return False
        self.model = self.model.with_rows(cut[0], np.array([-np.inf]), np.array([cut[1]]))
        self._solver = make_solver(self.model, self._solver_name)
        return True


def tighten_intermediate(
    graph: Graph,
    inputs: InputSet,
    neurons: Mapping[str, np.ndarray],
    *,
    intermediate: Mapping[str, Interval] | None = None,
    rounding_error: Errors | None = None,
    time_limit_s: float | None = None,
) -> dict[str, Interval] | None:
    """LP bounds of chosen neurons, each over the network up to it; tightened layers serve later ones.

    Args:
        neurons: node name -> flat positions whose bounds are wanted; nodes in any order.
        intermediate, rounding_error, time_limit_s: as in `lp_bound`.
    Returns:
        `intermediate` with the named nodes' bounds intersected with what the LPs gave (whole
        nodes, float64 [size]); None when an empty input set was proved.
    Raises:
        ShapeError: unknown node or position.
    """
    stop = np.inf if time_limit_s is None else time.perf_counter() + time_limit_s
    unknown = set(neurons) - set(graph.nodes)
    if unknown:
        raise ShapeError(f"tighten_intermediate: the network has no nodes {sorted(unknown)}")
    known = dict(intermediate or {})
    for name in graph.nodes:
        if name not in neurons:
            continue
        part = replace(graph, outputs=(name,), output_names=()).pruned()
        errors = {k: v for k, v in (rounding_error or {}).items() if k in part.nodes}
        given = {k: v for k, v in known.items() if k in part.nodes}
        tightened = _tighten_node(part, inputs, np.asarray(neurons[name], dtype=np.int64), (given, errors), stop)
        if tightened is None:
            return None
        known[name] = tightened
    return known


def _tighten_node(part: Graph, inputs: InputSet, positions: np.ndarray, context, stop: float) -> Interval | None:
    given, errors = context
    name = part.outputs[0]
    maps = Maps(part, errors)
    bounds = propagate(maps, inputs, given)
    model = build_model(part, inputs, given, maps=maps)
    if bounds is None or model is None:
        return None
    lower, upper = bounds[name][0].copy(), bounds[name][1].copy()
    if positions.size and (positions.min() < 0 or positions.max() >= lower.size):
        raise ShapeError(f"tighten_intermediate: positions of node '{name}' must be in 0..{lower.size - 1}")
    session = LpSession(model, inputs)
    for position in positions:
        for sign in (1.0, -1.0):
            left = None if stop == np.inf else stop - time.perf_counter()
            if left is not None and left <= 0.0:
                return lower, upper
            cost = np.zeros(model.column_count)
            cost[model.outputs[position]] = sign
            bound = session.bound(cost, left).bound
            if bound == np.inf:
                return None
            if sign > 0:
                lower[position] = max(lower[position], bound)
            else:
                upper[position] = min(upper[position], -bound)
    return (lower, upper) if np.all(lower <= upper) else None


def checked_coeffs(graph: Graph, coeffs: np.ndarray) -> np.ndarray:
    """`coeffs` as float64 [S, N_out].

    Raises:
        ShapeError: another width.  SpecError: NaN or infinite entries.
    """
    coeffs = np.atleast_2d(np.asarray(coeffs, dtype=np.float64))
    if coeffs.ndim != 2 or coeffs.shape[1] != graph.output_size:
        raise ShapeError(f"coeffs: expected [S, {graph.output_size}] (S, N_out), got {list(coeffs.shape)}")
    if not np.all(np.isfinite(coeffs)):
        raise SpecError("coeffs: expected finite numbers")
    return coeffs


def soundness_of(rounding_error: Errors | None) -> Soundness:
    """IEEE_FLOAT when the deployed rounding was given, REAL_ARITHMETIC otherwise."""
    return Soundness.REAL_ARITHMETIC if rounding_error is None else Soundness.IEEE_FLOAT
