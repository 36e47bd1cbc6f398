"""The methods that optimise on top of propagated bounds: duals, LP, MILP and semidefinite programs."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from verifier.graph.evaluate import evaluate
from verifier.spec.problem import Clause
from verifier.tighten.build import build_model
from verifier.tighten.dual import DualSettings, dual_bound
from verifier.tighten.lp import lp_bound
from verifier.tighten.method_passes import Answer, Task, alpha, backward_pass
from verifier.tighten.milp import MilpSettings, milp_bound
from verifier.tighten.plane_ascent import covers
from verifier.tighten.plane_tree import Ascents
from verifier.tighten.propagated import Bounded
from verifier.tighten.sdp import SdpSettings, check_operators, sdp_bound
from verifier.tighten.sdp_crown_network import SdpCrownSettings, sdp_crown_bound
from verifier.tighten.substitute import substituted


class _Ground:
    """alpha-CROWN's bounds, which every solver starts from and none may fall below.

    Attributes:
        floor: its lower bounds of the rows [S]. shared: seconds of its stages, counted for this method too.
    """

    def __init__(self, task: Task):
        self._task, self._began = task, time.perf_counter()
        self.floor, self.shared, _ = alpha(task)

    def left_s(self) -> float | None:
        """Seconds left to the solver, None without a limit; below 0 when it is late."""
        if self._task.left_s is None:
            return None
        return self._task.left_s - (time.perf_counter() - self._began) - self.shared

    def limit_s(self) -> float | None:
        """The same, never below 0."""
        left = self.left_s()
        return None if left is None else max(left, 0.0)

    def known(self) -> dict[str, Any]:
        """What solvers take over."""
        return _known(self._task, self._task.state.alpha())


def _known(task: Task, bounded: Bounded) -> dict[str, Any]:
    """Bounds and rounding of every node as keyword arguments of the solvers."""
    state = task.state
    return {"intermediate": state.intermediate(bounded), "rounding_error": state.rounding_error(bounded)}


def wong_kolter(task: Task) -> Answer:
    """The dual of Fast-Lin's relaxation in closed form."""
    return _dual(task, "wong-kolter", "parallel")


def lagrangian(task: Task) -> Answer:
    """Multipliers of every layer by ascent."""
    return _dual(task, "lagrangian", "alpha")


def _dual(task: Task, method: str, stage: str) -> Answer:
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
        settings=settings,
        **_known(task, bounded),
    )
    floor = backward_pass("parallel" if stage == "parallel" else "crown")(task)[0]
    return np.maximum(found.lower, floor), bounded.seconds if known else 0.0, ()


def linear_program(task: Task) -> Answer:
    """The triangle relaxation."""
    ground, state = _Ground(task), task.state
    limit, known = ground.limit_s(), ground.known()
    found = lp_bound(
        state.graph, state.inputs, task.coeffs, time_limit_s=limit, solver=task.settings.solver, **known
    )  # fmt: skip
    return np.maximum(found.lower, ground.floor), ground.shared, _endings(found.notes)


def mixed_integer(task: Task) -> Answer:
    """Branch and bound on activations."""
    ground, state = _Ground(task), task.state
    settings = MilpSettings(time_limit_s=ground.limit_s(), guide=None, cancelled=task.settings.cancelled)
    found = milp_bound(state.graph, state.inputs, task.coeffs, settings=settings, **ground.known())
    with np.errstate(invalid="ignore"):  # inf - inf where no point was met
        closed = found.lower >= found.upper - 1e-5 * np.maximum(1.0, np.abs(found.upper))
    note = f"{int(closed.sum())} of {closed.size} rows exact, {int(found.leaves.sum())} subproblems"
    return np.maximum(found.lower, ground.floor), ground.shared, (note,)


def planes(task: Task) -> Answer:
    """Concave envelopes over what neurons read, by ascent."""
    ground, state = _Ground(task), task.state
    model = build_model(state.graph, state.inputs, **ground.known())
    if model is None:
        return np.full(len(task.coeffs), np.inf), ground.shared, ()
    small, lower = substituted(model), ground.floor.copy()
    if not covers(small):
        return lower, ground.shared, ("no neurons of two pieces alone; alpha-CROWN's bound",)
    middle = evaluate(state.graph, 0.5 * (state.inputs.lower + state.inputs.upper)[None])[0]
    for s, row in enumerate(task.coeffs):
        left = ground.left_s()
        if left is not None and left <= 0.0:
            return lower, ground.shared, ("no time left for every row; those have alpha-CROWN's bound",)
        # An ascent ends above its limit, so that is what a point attains.
        limit = float(row @ middle)
        ascents = Ascents(small, Clause(row[None], np.array([limit]), np.zeros(1, dtype=bool)))
        lower[s] = max(lower[s], np.nextafter(ascents.least(task.settings.steps) + limit, -np.inf))
    return lower, ground.shared, ()


def semidefinite(task: Task) -> Answer:
    """The semidefinite relaxation by interior points."""
    return _semidefinite(task, "interior")


def semidefinite_dual(task: Task) -> Answer:
    """The same by first-order ascent."""
    return _semidefinite(task, "first-order")


def _semidefinite(task: Task, method: str) -> Answer:
    check_operators(task.state.graph)
    ground, state = _Ground(task), task.state
    lower, notes = ground.floor.copy(), list[str]()
    for s, row in enumerate(task.coeffs):
        left = ground.left_s()
        if left is not None:
            left /= len(task.coeffs) - s
            if left <= 0.0:
                notes.append("no time left for every row; those have alpha-CROWN's bound")
                break
        settings = SdpSettings(method, steps=task.settings.steps, time_limit_s=left)
        found = sdp_bound(state.graph, state.inputs, row, settings=settings, **ground.known())
        lower[s] = max(lower[s], found.lower[0])
        notes += found.notes
    return lower, ground.shared, _endings(notes)


def sdp_crown(task: Task) -> Answer:
    """l2 balls: relu layers bounded jointly."""
    ground, state = _Ground(task), task.state
    settings = SdpCrownSettings(steps=task.settings.steps, time_limit_s=ground.limit_s())
    found = sdp_crown_bound(
        state.graph, state.inputs, task.coeffs, settings=settings, cancelled=task.settings.cancelled,
        **ground.known(),
    )  # fmt: skip
    return np.maximum(found.lower, ground.floor), ground.shared, ()


def _endings(notes: tuple[str, ...] | list[str]) -> tuple[str, ...]:
    """Each distinct ending once, with its count."""
    counted = {note: list(notes).count(note) for note in dict.fromkeys(notes)}
    return tuple(note if len(notes) == 1 else f"{note} ({count} of {len(notes)})" for note, count in counted.items())
