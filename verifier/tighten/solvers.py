"""Two ways to solve a LinearModel: HiGHS directly, or any solver through cvxpy.

A solver only supplies multipliers and a point to look at; nothing it returns is believed.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from verifier.errors import SpecError
from verifier.tighten.model import LinearModel
from verifier.tighten.start_basis import StartBasis


@dataclass(frozen=True)
class Solution:
    """What a solver said.

    Attributes:
        duals: float64 [R], y > 0 on rows held at row_lower; a Farkas ray where `infeasible`.
        point: float64 [C] or None.
        infeasible: the solver claims that no point exists.
        status: the solver's own word for how it ended.
    """

    duals: np.ndarray
    point: np.ndarray | None
    infeasible: bool
    status: str


class Solver(ABC):
    """Minimises linear costs over one model."""

    @abstractmethod
    def solve(self, cost: np.ndarray, time_limit_s: float | None = None) -> Solution:
        """Minimise cost @ columns, [C]; a time-out gives the multipliers at hand."""


class HighsSolver(Solver):
    """HiGHS, one instance per model: a new cost starts from CROWN's basis, new bounds from the last one."""

    _highs: Any  # the package's type stubs lack the ray functions

    def __init__(self, model: LinearModel):
        import highspy

        self._row_count, self._highspy = model.row_count, highspy
        self._highs = quiet_highs()
        self._highs.passModel(highs_program(model, highspy))
        self._start, self._cost = StartBasis(model), np.full(model.column_count, np.nan)
        status = highspy.HighsBasisStatus
        self._status = np.array([status.kBasic, status.kLower, status.kUpper])  # by BASIC, LOWER, UPPER

    def solve(self, cost, time_limit_s=None):
        highs = self._highs
        if not np.array_equal(cost, self._cost):
            self._begin(np.array(cost, dtype=np.float64))
        limit = np.inf if time_limit_s is None else highs.getRunTime() + max(time_limit_s, 0.0)
        highs.setOptionValue("time_limit", limit)
        highs.run()
        status = highs.getModelStatus()
        if status == self._highspy.HighsModelStatus.kInfeasible:
            return Solution(self._ray(), None, True, "infeasible")
        found = highs.getSolution()
        duals = np.array(found.row_dual) if found.dual_valid else np.zeros(self._row_count)
        point = np.array(found.col_value) if found.value_valid else None
        return Solution(duals, point, False, highs.modelStatusToString(status))

    def _begin(self, cost: np.ndarray) -> None:
        """Minimise another cost, from the basis of its backward pass."""
        self._cost = cost
        self._highs.changeColsCost(cost.size, np.arange(cost.size, dtype=np.int32), cost)
        basis = self._highspy.HighsBasis()
        columns, rows = self._start.of(cost)
        basis.col_status, basis.row_status = (self._status[at].tolist() for at in (columns, rows))
        basis.valid = True
        self._highs.setBasis(basis)

    def change_column(self, column: int, lower: float, upper: float) -> None:
        """Other bounds of one column, for the solves to come."""
        self._highs.changeColBounds(column, lower, upper)

    def change_row(self, row: int, lower: float, upper: float) -> None:
        """Other bounds of one row, for the solves to come."""
        self._highs.changeRowBounds(row, lower, upper)

    def add_rows(self, block: sparse.csr_matrix, lower: np.ndarray, upper: np.ndarray) -> None:
        """Rows [K, C] after those that there are."""
        parts = (block.indptr.astype(np.int32), block.indices.astype(np.int32), block.data)
        self._highs.addRows(block.shape[0], lower, upper, block.nnz, *parts)
        self._row_count += block.shape[0]

    def delete_rows(self, rows: np.ndarray) -> None:
        """Take rows out; those after them move up."""
        self._highs.deleteRows(rows.size, rows.astype(np.int32))
        self._row_count -= rows.size

    def _ray(self) -> np.ndarray:
        """A Farkas ray; presolve proves infeasibility without one, so it is solved again without."""
        highs = self._highs
        _, exists = highs.getDualRayExist()
        if not exists:
            highs.setOptionValue("presolve", "off")
            highs.clearSolver()
            highs.run()
            highs.setOptionValue("presolve", "choose")
            _, exists = highs.getDualRayExist()
        if not exists:
            return np.zeros(self._row_count)
        _, _, ray = highs.getDualRay()
        ray = np.asarray(ray, dtype=np.float64)
        # The sign convention of a ray is the solver's own; a wrong sign would prove nothing.
        return ray


def quiet_highs() -> Any:
    """A single-threaded HiGHS instance that never writes to standard output.

    Its constructor prints a banner on enabling callbacks, before an option could be set from outside.
    """
    import highspy

    class Quiet(highspy.Highs):
        def enableCallbacks(self) -> None:
            self.setOptionValue("output_flag", False)
            super().enableCallbacks()

    highs = Quiet()
    highs.setOptionValue("output_flag", False)
    highs.setOptionValue("threads", 1)
    return highs


def highs_program(model: LinearModel, highspy):
    """The model as a HighsLp with zero cost."""
    matrix = model.matrix.copy()
    matrix.sum_duplicates()
    program = highspy.HighsLp()
    program.num_col_, program.num_row_ = model.column_count, model.row_count
    program.col_cost_ = np.zeros(model.column_count)
    program.col_lower_, program.col_upper_ = model.col_lower, model.col_upper
    program.row_lower_, program.row_upper_ = model.row_lower, model.row_upper
    program.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    program.a_matrix_.start_ = matrix.indptr.astype(np.int32)
    program.a_matrix_.index_ = matrix.indices.astype(np.int32)
    program.a_matrix_.value_ = matrix.data
    return program


class CvxpySolver(Solver):
    """Any linear programming solver that cvxpy knows, by its cvxpy name ("CLARABEL", "GUROBI", ...)."""

    def __init__(self, model: LinearModel, name: str):
        import cvxpy

        if name not in cvxpy.installed_solvers():
            raise SpecError(f"solver: cvxpy has {cvxpy.installed_solvers()}, got '{name}'")
        self._cvxpy, self._model, self._name = cvxpy, model, name
        matrix = model.matrix.copy()
        matrix.sum_duplicates()
        self._columns = cvxpy.Variable(model.column_count)
        self._cost = cvxpy.Parameter(model.column_count)
        equal = model.row_lower == model.row_upper
        self._parts = [
            (np.flatnonzero(equal), 0),
            (np.flatnonzero(~equal & np.isfinite(model.row_lower)), 1),
            (np.flatnonzero(~equal & np.isfinite(model.row_upper)), -1),
        ]
        self._rows = [self._constraint(matrix[rows] @ self._columns, rows, side) for rows, side in self._parts]
        box = [self._columns >= model.col_lower, self._columns <= model.col_upper]
        self._program = cvxpy.Problem(cvxpy.Minimize(self._cost @ self._columns), [*self._rows, *box])

    def solve(self, cost, time_limit_s=None):
        self._cost.value = np.asarray(cost, dtype=np.float64)
        try:
            with warnings.catch_warnings():
                # An inaccurate answer only makes the rebuilt bound weaker.
                warnings.simplefilter("ignore", UserWarning)
                self._program.solve(solver=self._name)
        except self._cvxpy.error.SolverError as error:
            return Solution(np.zeros(self._model.row_count), None, False, f"failed: {error}")
        status = self._program.status
        if self._columns.value is None:
            return Solution(np.zeros(self._model.row_count), None, "infeasible" in status, status)
        duals = np.zeros(self._model.row_count)
        for (rows, side), row in zip(self._parts, self._rows, strict=True):
            value = np.reshape(row.dual_value, -1) if row.dual_value is not None else np.zeros(rows.size)
            duals[rows] += value * (-1.0 if side == 0 else side)
        return Solution(duals, self._columns.value, False, status)

    def _constraint(self, expression, rows: np.ndarray, side: int):
        if side == 0:
            return expression == self._model.row_lower[rows]
        if side > 0:
            return expression >= self._model.row_lower[rows]
        return expression <= self._model.row_upper[rows]


def make_solver(model: LinearModel, name: str) -> Solver:
    """ "highs" for HiGHS directly, else the name of a solver in cvxpy.

    Raises:
        SpecError: cvxpy has no such solver.
    """
    return HighsSolver(model) if name == "highs" else CvxpySolver(model, name)
