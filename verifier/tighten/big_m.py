"""The mixed-integer program of a piecewise linear network, solved by a MIP solver as a guide.

A MIP solver's tree rests on floating-point tolerances at every node and hands out no proof, so
its bound is an estimate here; its best point is worth having, because the network's value
there is a true upper bound of the minimum.
"""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass

import numpy as np

from verifier.errors import SpecError
from verifier.tighten.model import LinearModel, Neurons, RowBuffer
from verifier.tighten.solvers import highs_program, quiet_highs


@dataclass(frozen=True)
class MipAnswer:
    """What a MIP solver said: `point` [N_in] or None, its own `lower` (unproved), `status`, `seconds`."""

    point: np.ndarray | None
    lower: float
    status: str
    seconds: float


@dataclass(frozen=True)
class MixedIntegerModel:
    """A LinearModel whose columns `binary` are 0 or 1 (bool [C])."""

    linear: LinearModel
    binary: np.ndarray


def mixed_integer_model(model: LinearModel) -> MixedIntegerModel | None:
    """Add one binary per straight piece of every unstable neuron; None where a curve is not piecewise linear.

    With pieces [e_p, e_p+1], lines s_p z + t_p and sum q = 1:
    sum q_p e_p <= z <= sum q_p e_p+1 and -below_p (1 - q_p) <= h - s_p z - t_p <= above_p (1 - q_p),
    `above` and `below` being the largest deviations of f from the line over the whole interval.

    Source: Tjeng, Xiao & Tedrake 2019, arXiv:1711.07356 for relu.
    """
    if not all(n.curve.piecewise_linear for n in model.neurons):
        return None
    rows = RowBuffer()
    rows.append(model.matrix, model.row_lower, model.row_upper)
    count = model.column_count
    for neurons in model.neurons:
        count = _add_pieces(model, neurons, rows, count)
    matrix, row_lower, row_upper = rows.finish(count)
    added = count - model.column_count
    linear = LinearModel(
        matrix=matrix,
        row_lower=row_lower,
        row_upper=row_upper,
        col_lower=np.concatenate([model.col_lower, np.zeros(added)]),
        col_upper=np.concatenate([model.col_upper, np.ones(added)]),
        relaxation_rows=np.zeros(matrix.shape[0], dtype=bool),
        definitions=model.definitions,
        neurons=(),
        inputs=model.inputs,
        outputs=model.outputs,
        node_columns=model.node_columns,
    )
    return MixedIntegerModel(linear, np.arange(count) >= model.column_count)


def _add_pieces(model: LinearModel, neurons: Neurons, rows: RowBuffer, first: int) -> int:
    """Rows of one block of neurons, binaries numbered from `first`; returns the next free column."""
    low, high = model.col_lower[neurons.pre], model.col_upper[neurons.pre]
    ends = neurons.curve.segment_ends(low, high)
    values = neurons.curve.value(ends)
    size, pieces = ends.shape[0], ends.shape[1] - 1
    width = np.diff(ends, axis=1)
    slope = np.divide(np.diff(values, axis=1), width, out=np.zeros_like(width), where=width > 0)
    offset = values[:, :-1] - slope * ends[:, :-1]
    choice = first + np.arange(size * pieces).reshape(size, pieces)
    one, infinite = np.ones(size), np.full(size, np.inf)
    picks = [(choice[:, p], one) for p in range(pieces)]
    rows.append_terms(picks, one, one)
    starts = [(choice[:, p], -ends[:, p]) for p in range(pieces)]
    stops = [(choice[:, p], -ends[:, p + 1]) for p in range(pieces)]
    rows.append_terms([(neurons.pre, one), *starts], np.zeros(size), infinite)
    rows.append_terms([(neurons.pre, one), *stops], -infinite, np.zeros(size))
    for p in range(pieces):
        gap = values - slope[:, p : p + 1] * ends - offset[:, p : p + 1]
        above, below = np.maximum(gap.max(axis=1), 0.0), np.maximum(-gap.min(axis=1), 0.0)
        line = [(neurons.post, one), (neurons.pre, -slope[:, p])]
        rows.append_terms([*line, (choice[:, p], above)], -infinite, offset[:, p] + above)
        rows.append_terms([*line, (choice[:, p], -below)], offset[:, p] - below, infinite)
    return first + size * pieces


def solve_mip(
    mixed: MixedIntegerModel, cost: np.ndarray, time_limit_s: float | None, solver: str = "highs"
) -> MipAnswer:
    """Minimise cost @ columns, `cost` [C of the linear model], by "highs" or a MIP solver of cvxpy.

    Raises:
        SpecError: cvxpy has no such solver.
    """
    start = time.perf_counter()
    padded = np.pad(cost, (0, mixed.linear.column_count - cost.size))
    point, lower, status = (_highs if solver == "highs" else _cvxpy)(mixed, padded, time_limit_s, solver)
    if point is not None:
        point = np.asarray(point)[mixed.linear.inputs]
    return MipAnswer(point, lower, status, time.perf_counter() - start)


def _highs(mixed: MixedIntegerModel, cost: np.ndarray, time_limit_s: float | None, solver: str):
    import highspy

    program = highs_program(mixed.linear, highspy)
    program.col_cost_ = cost
    kinds = (highspy.HighsVarType.kContinuous, highspy.HighsVarType.kInteger)
    program.integrality_ = [kinds[int(b)] for b in mixed.binary]
    highs = quiet_highs()
    highs.setOptionValue("time_limit", np.inf if time_limit_s is None else max(time_limit_s, 0.0))
    highs.passModel(program)
    highs.run()
    info, status = highs.getInfo(), highs.getModelStatus()
    found = highs.getSolution()
    infeasible = status == highspy.HighsModelStatus.kInfeasible
    point = np.array(found.col_value) if found.value_valid and info.primal_solution_status == 2 else None
    lower = np.inf if infeasible else float(info.mip_dual_bound)
    return point, lower, highs.modelStatusToString(status)


def _cvxpy(mixed: MixedIntegerModel, cost: np.ndarray, time_limit_s: float | None, solver: str):
    import cvxpy

    if solver not in cvxpy.installed_solvers():
        raise SpecError(f"solver: cvxpy has {cvxpy.installed_solvers()}, got '{solver}'")
    linear = mixed.linear
    matrix = linear.matrix.copy()
    matrix.sum_duplicates()
    free, binary = np.flatnonzero(~mixed.binary), np.flatnonzero(mixed.binary)
    x = cvxpy.Variable(free.size)
    q = cvxpy.Variable(max(binary.size, 1), boolean=True)
    rows = matrix[:, free] @ x + (matrix[:, binary] @ q if binary.size else 0.0)
    below, above = np.isfinite(linear.row_lower), np.isfinite(linear.row_upper)
    limits = [x >= linear.col_lower[free], x <= linear.col_upper[free]]
    limits += [rows[below] >= linear.row_lower[below], rows[above] <= linear.row_upper[above]]
    program = cvxpy.Problem(cvxpy.Minimize(cost[free] @ x), limits)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the status says as much
            program.solve(solver=solver)
    except cvxpy.error.SolverError as error:
        return None, -np.inf, f"failed: {error}"
    if x.value is None:
        return None, np.inf if "infeasible" in program.status else -np.inf, program.status
    point = np.zeros(linear.column_count)
    point[free] = x.value
    return point, float(program.value), program.status
