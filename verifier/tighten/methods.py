"""Every relaxation family under one function: `bounds(network, problem, method=...)`.

Methods are settings of one another where that is what they are: Fast-Lin, CNN-Cert, DeepPoly and
CROWN differ in the slopes of one backward pass, Wong-Kolter is the dual of Fast-Lin's, the
Lagrangian dual optimises its multipliers, the LP is their common optimum, planes bound a neuron over
all it reads, the MILP branches, and the semidefinite ones add products. No method gives less than
the cheaper bounds it starts from.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from verifier.errors import ShapeError, SpecError
from verifier.graph.ir import Graph
from verifier.outcome import Soundness
from verifier.spec.problem import InputSet, Problem
from verifier.tighten.lp import checked_coeffs
from verifier.tighten.memory import PeakMemory
from verifier.tighten.method_passes import Answer, Task, alpha, backward_pass, fast_lin, interval_pass
from verifier.tighten.method_result import MethodResult, MethodSettings
from verifier.tighten.method_solvers import (
    lagrangian,
    linear_program,
    mixed_integer,
    planes,
    sdp_crown,
    semidefinite,
    semidefinite_dual,
    wong_kolter,
)
from verifier.tighten.propagated import Propagated


@dataclass(frozen=True)
class Method:
    """A named method: one line on what it is, and how it is run."""

    summary: str
    run: Callable[[Task], Answer]


class BoundSession:
    """A network and a problem; methods share the propagation stages, whose time each of them is charged.

    Args:
        network: the graph; problem: its cases over the same inputs and outputs.
    Raises:
        ShapeError: problem and network disagree on N_in or N_out.
    """

    def __init__(self, network: Graph, problem: Problem, settings: MethodSettings | None = None):
        self.settings = settings or MethodSettings()
        self.settings.validate()
        self.network, self.problem = network, problem
        if problem.output_size != network.output_size:
            raise ShapeError(f"the problem has {problem.output_size} outputs, the network {network.output_size}")
        self.soundness = Soundness.REAL_ARITHMETIC if problem.exact_real else self.settings.soundness
        self._states: dict[int, Propagated] = {}

    def rows(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(coeffs [S, N_out], limits [S], case [S], clause [S]) of every row, clauses numbered over the problem."""
        coeffs, limits, case, clause, count = [], [], [], [], 0
        for index, member in enumerate(self.problem.cases):
            for part in member.clauses:
                coeffs.append(part.coeffs)
                limits.append(part.limits)
                case.append(np.full(len(part.limits), index))
                clause.append(np.full(len(part.limits), count))
                count += 1
        if not coeffs:
            return np.zeros((0, self.network.output_size)), np.zeros(0), np.zeros(0, int), np.zeros(0, int)
        return np.concatenate(coeffs), np.concatenate(limits), np.concatenate(case), np.concatenate(clause)

    def state(self, case: int) -> Propagated:
        """The propagated bounds of a case, shared by the methods."""
        if case not in self._states:
            self._states[case] = Propagated(
                self.network,
                self.problem.cases[case].inputs,
                soundness=self.soundness,
                time_limit_s=self.settings.timeout_s,
                cancelled=self.settings.cancelled,
            )
        return self._states[case]

    def bound(self, method: str) -> MethodResult:
        """Bounds by one method.

        Raises:
            SpecError: unknown method.  UnsupportedOperator, SolverError, NetworkError: the method cannot
                bound this network, or its solver diverged.
        """
        if method not in METHODS:
            raise SpecError(f"method: expected one of {', '.join(METHODS)}, got '{method}'")
        start, memory = time.perf_counter(), PeakMemory()
        coeffs, limits, case, clause = self.rows()
        lower = np.full(len(limits), -np.inf)
        shared, notes = 0.0, dict[str, None]()
        for index, member in enumerate(self.problem.cases):
            here = case == index
            if not np.any(here):
                continue
            if member.inputs.is_empty_box:
                lower[here] = np.inf
                continue
            left = self._left(start, len(self.problem.cases) - index)
            if self.settings.cancelled() or (left is not None and left <= 0.0):
                notes["no time left for every case"] = None
                break
            task = Task(self.state(index), checked_coeffs(self.network, coeffs[here]), self.settings, left)
            found, seconds, said = METHODS[method].run(task)
            # NaN never certifies.
            lower[here] = np.where(np.isnan(found), -np.inf, found)
            shared += seconds
            notes.update(dict.fromkeys(said))
        return MethodResult(
            method, lower, limits, case, clause, self._refuted(lower), time.perf_counter() - start + shared,
            memory.bytes(), self.soundness, tuple(notes),
        )  # fmt: skip

    def _left(self, start: float, cases: int) -> float | None:
        if self.settings.timeout_s is None:
            return None
        return (self.settings.timeout_s - (time.perf_counter() - start)) / cases

    def _refuted(self, lower: np.ndarray) -> np.ndarray:
        found, at = [], 0
        for member in self.problem.cases:
            for part in member.clauses:
                rows = lower[at : at + len(part.limits)]
                at += len(part.limits)
                empty = member.inputs.is_empty_box
                found.append(empty or bool(np.any(np.where(part.strict, rows >= part.limits, rows > part.limits))))
        return np.array(found, dtype=bool)


def bounds(
    network: Graph, problem: Problem | InputSet, method: str = "crown", settings: MethodSettings | None = None
) -> MethodResult:
    """Rigorous lower bounds of a problem's specification rows by a named method.

    Args:
        network: any graph; methods that cannot bound an operator raise UnsupportedOperator.
        problem: a Problem; an InputSet stands for "every output, one row each".
        method: a key of `METHODS`.
    Returns:
        Bounds with time, memory and soundness; time-outs give weaker bounds and a note.
    Raises:
        SpecError: unknown method or settings out of range.  SolverError: a solver diverged: no bound.
    Source: see each method's own module.
    """
    if isinstance(problem, InputSet):
        problem = every_output(problem, network.output_size)
    return BoundSession(network, problem, settings).bound(method)


def every_output(inputs: InputSet, outputs: int) -> Problem:
    """Rows y_0, ..., y_(N_out - 1) with limit 0, a clause each."""
    from verifier.spec.problem import Case, Clause

    rows = np.eye(outputs)
    clauses = tuple(Clause(row, np.zeros(1), np.zeros(1, dtype=bool)) for row in rows)
    return Problem((Case(inputs, clauses),), outputs)


METHODS: dict[str, Method] = {
    "ibp": Method("interval propagation", interval_pass),
    "fast-lin": Method("parallel lines of relu and leaky relu, one backward pass", fast_lin),
    "cnn-cert": Method("fast-lin's lines on every kinked activation, curved ones too", backward_pass("parallel")),
    "deeppoly": Method("least-area relu lines, S-shaped ones with the smaller end slope", backward_pass("deeppoly")),
    "crown": Method("adaptive lines, one backward pass", backward_pass("crown")),
    "alpha-crown": Method("crown with optimised slopes, in intermediate layers too", alpha),
    "wong-kolter": Method("the dual of fast-lin's relaxation in closed form", wong_kolter),
    "lagrangian": Method("multipliers of every layer by ascent", lagrangian),
    "lp": Method("triangle relaxation by HiGHS, rebuilt from multipliers", linear_program),
    "planes": Method("relus bounded over all they read, not over one interval, by ascent", planes),
    "milp": Method("branch and bound on activations, exact given time", mixed_integer),
    "sdp": Method("semidefinite relaxation by interior points, rebuilt from multipliers", semidefinite),
    "sdp-dual": Method("semidefinite relaxation by first-order dual ascent", semidefinite_dual),
    "sdp-crown": Method("l2 balls only: relu layers bounded jointly", sdp_crown),
}
