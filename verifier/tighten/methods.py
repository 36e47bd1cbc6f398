"""Every relaxation family under one function: `bounds(network, problem, method=...)`.

Methods are settings of one another where that is what they are: Fast-Lin, CNN-Cert, DeepPoly and
CROWN differ in the slopes of one backward pass, Wong-Kolter is the dual of Fast-Lin's, the
Lagrangian dual optimises its multipliers, the LP is their common optimum, the MILP branches on it,
and the semidefinite ones add products. No method gives less than the cheaper bounds it starts from.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from verifier.errors import ShapeError, SolverError, SpecError, UnsupportedOperator
from verifier.graph.ir import Graph
from verifier.outcome import Soundness
from verifier.spec.problem import InputSet, Problem
from verifier.tighten.dual import DualSettings, dual_bound
from verifier.tighten.lp import checked_coeffs, lp_bound
from verifier.tighten.memory import PeakMemory
from verifier.tighten.milp import MilpSettings, milp_bound
from verifier.tighten.propagated import Bounded, Propagated
from verifier.tighten.sdp import SdpSettings, check_operators, sdp_bound
from verifier.tighten.sdp_crown_network import SdpCrownSettings, sdp_crown_bound

#: With SCS a semidefinite program of this many variables takes tens of minutes and gigabytes.
_LARGEST_SCS = 600


@dataclass(frozen=True)
class MethodSettings:
    """How a method may run.

    Attributes:
        timeout_s: of one method on the whole problem; None for no limit. What is known by then is returned.
        soundness: IEEE_FLOAT for the deployed program, REAL_ARITHMETIC otherwise.
        iterations: of slope optimisation (alpha-crown).
        steps: of every multiplier ascent (lagrangian, sdp, sdp-dual, sdp-crown).
        solver: of the LP: "highs", or a solver's name in cvxpy.
        cancelled: asked between steps; True returns what is known.
    """

    timeout_s: float | None = None
    soundness: Soundness = Soundness.IEEE_FLOAT
    iterations: int = 100
    steps: int = 300
    solver: str = "highs"
    cancelled: Callable[[], bool] = field(default=lambda: False)

    def validate(self) -> None:
        """Raises SpecError for values out of range."""
        if self.timeout_s is not None and not self.timeout_s > 0:
            raise SpecError(f"method settings: expected timeout_s > 0, got {self.timeout_s}")
        if self.iterations < 1 or self.steps < 0:
            raise SpecError(f"method settings: expected iterations >= 1 and steps >= 0, got {self}")
        if self.soundness is Soundness.HEURISTIC:
            raise SpecError("method settings: a bound is never heuristic; expected IEEE_FLOAT or REAL_ARITHMETIC")


@dataclass(frozen=True)
class MethodResult:
    """Bounds of every specification row of a problem, cases and clauses in order.

    Attributes:
        method: its name.
        lower: float64 [S], rigorous lower bounds of coeffs @ outputs; -inf at worst, +inf where no input exists.
        limits: float64 [S]; a row is refuted where lower > limits (>= where strict).
        case, clause: int [S], where each row comes from.
        refuted: bool [number of clauses in the problem], clauses that no input satisfies.
        seconds: wall time, the shared stages it starts from included.
        peak_memory_bytes: resident memory it added.
        soundness: what the bounds hold for.
        notes: how it ended, one entry a distinct ending.
    """

    method: str
    lower: np.ndarray
    limits: np.ndarray
    case: np.ndarray
    clause: np.ndarray
    refuted: np.ndarray
    seconds: float
    peak_memory_bytes: int
    soundness: Soundness
    notes: tuple[str, ...]

    @property
    def margins(self) -> np.ndarray:
        """lower - limits, rounded down, [S]; positive where the row is refuted."""
        with np.errstate(invalid="ignore"):
            return np.nextafter(self.lower - self.limits, -np.inf)


@dataclass(frozen=True)
class _Task:
    """One case: its propagated bounds, rows [S, N_out], settings and the seconds left."""

    state: Propagated
    coeffs: np.ndarray
    settings: MethodSettings
    left_s: float | None


#: Lower bounds [S], seconds of the stages used (counted once per case), and how it ended.
_Answer = tuple[np.ndarray, float, tuple[str, ...]]


@dataclass(frozen=True)
class Method:
    """A named method: one line on what it is, and how it is run."""

    summary: str
    run: Callable[[_Task], _Answer]


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
            task = _Task(self.state(index), checked_coeffs(self.network, coeffs[here]), self.settings, left)
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


def _ibp(task: _Task) -> _Answer:
    return task.state.interval_rows(task.coeffs), 0.0, ()


def _pass(stage: str) -> Callable[[_Task], _Answer]:
    """One backward pass with the planes of a stage, intersected with intervals as its bounds are."""

    def run(task: _Task) -> _Answer:
        known = stage in task.state.computed
        bounded: Bounded = getattr(task.state, stage)()
        found = task.state.rows(bounded, task.coeffs)
        return np.maximum(found, task.state.interval_rows(task.coeffs)), bounded.seconds if known else 0.0, ()

    return run


def _fast_lin(task: _Task) -> _Answer:
    graph = task.state.graph
    for name in task.state.engine.network.relaxed:
        if graph[name].op != "Relu":
            raise UnsupportedOperator(graph[name].op, name, "Fast-Lin knows relu only; use cnn-cert or crown")
    return _pass("parallel")(task)


def _alpha(task: _Task) -> _Answer:
    known = "alpha" in task.state.computed
    bounded = task.state.alpha()
    found = task.state.optimised_rows(bounded, task.coeffs, task.settings.iterations)
    found = np.maximum(found, _pass("crown")(task)[0])
    return found, bounded.seconds if known else 0.0, ()


def _wong_kolter(task: _Task) -> _Answer:
    return _dual(task, "wong-kolter", "parallel")


def _lagrangian(task: _Task) -> _Answer:
    return _dual(task, "lagrangian", "alpha")


def _dual(task: _Task, method: str, stage: str) -> _Answer:
    start, known = time.perf_counter(), stage in task.state.computed
    bounded: Bounded = getattr(task.state, stage)()
    left = None if task.left_s is None else max(task.left_s - (time.perf_counter() - start), 0.0)
    settings = DualSettings(
        method, steps=task.settings.steps, layerwise=False, time_limit_s=left, cancelled=task.settings.cancelled
    )
    found = dual_bound(
        task.state.graph,
        task.state.inputs,
        task.coeffs,
        intermediate=task.state.intermediate(bounded),
        rounding_error=task.state.rounding_error(bounded),
        settings=settings,
    )
    floor = _pass("parallel" if stage == "parallel" else "crown")(task)[0]
    return np.maximum(found.lower, floor), bounded.seconds if known else 0.0, ()


def _lp(task: _Task) -> _Answer:
    start, (floor, shared, _) = time.perf_counter(), _alpha(task)
    left = None if task.left_s is None else max(task.left_s - (time.perf_counter() - start) - shared, 0.0)
    bounded = task.state.alpha()
    found = lp_bound(
        task.state.graph,
        task.state.inputs,
        task.coeffs,
        intermediate=task.state.intermediate(bounded),
        rounding_error=task.state.rounding_error(bounded),
        time_limit_s=left,
        solver=task.settings.solver,
    )
    return np.maximum(found.lower, floor), shared, _endings(found.notes)


def _milp(task: _Task) -> _Answer:
    start = time.perf_counter()
    floor, shared, _ = _alpha(task)
    left = None if task.left_s is None else max(task.left_s - (time.perf_counter() - start) - shared, 0.0)
    bounded = task.state.alpha()
    found = milp_bound(
        task.state.graph,
        task.state.inputs,
        task.coeffs,
        intermediate=task.state.intermediate(bounded),
        rounding_error=task.state.rounding_error(bounded),
        settings=MilpSettings(time_limit_s=left, guide=None, cancelled=task.settings.cancelled),
    )
    with np.errstate(invalid="ignore"):  # inf - inf where no point was met
        closed = found.lower >= found.upper - 1e-5 * np.maximum(1.0, np.abs(found.upper))
    note = f"{int(closed.sum())} of {closed.size} rows exact, {int(found.leaves.sum())} subproblems"
    return np.maximum(found.lower, floor), shared, (note,)


def _sdp(task: _Task) -> _Answer:
    return _semidefinite(task, "scs")


def _sdp_dual(task: _Task) -> _Answer:
    return _semidefinite(task, "first-order")


def _semidefinite(task: _Task, method: str) -> _Answer:
    check_operators(task.state.graph)
    start = time.perf_counter()
    floor, shared, _ = _alpha(task)
    bounded = task.state.alpha()
    known, errors = task.state.intermediate(bounded), task.state.rounding_error(bounded)
    size = task.state.inputs.size + sum(len(task.state.engine.open_neurons(n, bounded.found.box))
                                        for n in task.state.engine.network.bounded)  # fmt: skip
    if method == "scs" and size > _LARGEST_SCS:
        raise SolverError(f"sdp: {size} variables, SCS is practical up to {_LARGEST_SCS}; use sdp-dual")
    lower, notes = floor.copy(), []
    for s, row in enumerate(task.coeffs):
        left = None
        if task.left_s is not None:
            left = (task.left_s - (time.perf_counter() - start) - shared) / (len(task.coeffs) - s)
            if left <= 0.0:
                notes.append("no time left for every row; those have alpha-CROWN's bound")
                break
        # SCS may use its share; the ascent that polishes its answer gets as long again at most.
        settings = SdpSettings(method, steps=task.settings.steps, time_limit_s=None if left is None else 0.6 * left)
        found = sdp_bound(
            task.state.graph, task.state.inputs, row, intermediate=known, rounding_error=errors, settings=settings
        )
        lower[s] = max(lower[s], found.lower[0])
        notes += found.notes
    return lower, shared, _endings(notes)


def _sdp_crown(task: _Task) -> _Answer:
    start = time.perf_counter()
    floor, shared, _ = _alpha(task)
    left = None if task.left_s is None else max(task.left_s - (time.perf_counter() - start) - shared, 0.0)
    bounded = task.state.alpha()
    found = sdp_crown_bound(
        task.state.graph,
        task.state.inputs,
        task.coeffs,
        intermediate=task.state.intermediate(bounded),
        rounding_error=task.state.rounding_error(bounded),
        settings=SdpCrownSettings(steps=task.settings.steps, time_limit_s=left),
        cancelled=task.settings.cancelled,
    )
    return np.maximum(found.lower, floor), shared, ()


def _endings(notes: tuple[str, ...] | list[str]) -> tuple[str, ...]:
    """Each distinct ending once, with its count."""
    counted = {note: list(notes).count(note) for note in dict.fromkeys(notes)}
    return tuple(note if len(notes) == 1 else f"{note} ({count} of {len(notes)})" for note, count in counted.items())


METHODS: dict[str, Method] = {
    "ibp": Method("interval propagation", _ibp),
    "fast-lin": Method("parallel lines of relu, one backward pass", _fast_lin),
    "cnn-cert": Method("fast-lin's lines on kinked activations, curved ones too", _pass("parallel")),
    "deeppoly": Method("least-area relu lines, S-shaped ones with the smaller end slope", _pass("deeppoly")),
    "crown": Method("adaptive lines, one backward pass", _pass("crown")),
    "alpha-crown": Method("crown with optimised slopes, in intermediate layers too", _alpha),
    "wong-kolter": Method("the dual of fast-lin's relaxation in closed form", _wong_kolter),
    "lagrangian": Method("multipliers of every layer by ascent", _lagrangian),
    "lp": Method("triangle relaxation by HiGHS, rebuilt from multipliers", _lp),
    "milp": Method("branch and bound on activations, exact given time", _milp),
    "sdp": Method("semidefinite relaxation by SCS, rebuilt from multipliers", _sdp),
    "sdp-dual": Method("semidefinite relaxation by first-order dual ascent", _sdp_dual),
    "sdp-crown": Method("l2 balls only: relu layers bounded jointly", _sdp_crown),
}
