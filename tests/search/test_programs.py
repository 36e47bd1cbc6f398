"""Small networks decided by linear programs with cuts: right on both sides, in time, and only where they fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from test_team import hard_network, lowest_value

from verifier.bounds.native_engine import NativeEngine
from verifier.bounds.roots import root_domains
from verifier.graph.ir import GraphBuilder
from verifier.outcome import Verdict
from verifier.run import Run
from verifier.search import activation_split, programs
from verifier.search.input_split import SplitResult
from verifier.search.programs import decide_by_programs, fits
from verifier.search.strategy import decide
from verifier.settings import Settings
from verifier.spec.groups import group_cases
from verifier.spec.problem import Case, Clause, InputSet, Problem
from verifier.spec.query import query_of

LOWER, UPPER = np.full(10, -0.25), np.full(10, 0.25)


def problem(*limits: float, rows: int = 1) -> Problem:
    clauses = tuple(Clause(np.ones((rows, 1)), np.full(rows, t), np.zeros(rows, dtype=bool)) for t in limits)
    return Problem((Case(InputSet(LOWER, UPPER), clauses),), 1)


@pytest.fixture(autouse=True)
def neurons_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activation_split, "PLAIN_S", 0.0)
    monkeypatch.setattr("verifier.search.strategy.FEW_INPUTS", 1)
    monkeypatch.setattr("verifier.search.strategy.MIDDLING_INPUTS", 1)


@pytest.mark.parametrize("engine", ["native", "torch"])
def test_verdicts_on_both_sides_of_the_exact_minimum(engine: str) -> None:
    graph = hard_network(3)
    least = lowest_value(graph, LOWER, UPPER)
    for shift, expected in ((-1e-3, Verdict.UNSAT), (0.05, Verdict.SAT)):
        asked = problem(least + shift * abs(least), rows=2)
        run = Run.within(60.0, None)
        settings = Settings(timeout_s=60.0, engine=engine)
        found = decide(query_of(graph, asked), settings, run, lambda _, point: (point,), attack_only=False)
        assert found.verdict is expected, (shift, found)
        if expected is Verdict.UNSAT:
            assert any(stage == "programs" for _, stage, _ in run.events) and run.open == 0


def test_clauses_that_are_refuted_leave_the_others_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tree that gives up refutes nothing, and a witness that nobody confirms decides nothing."""
    graph = hard_network(4)
    least = lowest_value(graph, LOWER, UPPER)
    (group,) = group_cases(problem(least - 1e-2, least + 1.0))
    engine = NativeEngine(graph)
    domains, _ = root_domains(engine, group, 0, Run())

    class Nobody:
        def try_points(self, box: np.ndarray, points: np.ndarray) -> None:
            assert group.lower[0].shape == points[0].shape

    def tried(run: Run, trial: float) -> tuple[SplitResult | None, list[int]]:
        who: Any = Nobody()
        result, left = decide_by_programs(engine, domains, group, 0, who, run, np.arange(2), trial)
        return result, left.tolist()

    assert tried(Run(), 60.0) == (None, [1])
    with monkeypatch.context() as patch:
        patch.setattr("verifier.tighten.plane_tree.ROOT_STEPS", 1)  # no longer closed at its root
        patch.setattr(programs, "PATIENCE", 0.0)  # whatever this machine's speed foretells
        assert tried(Run(), 0.3) == (None, [0, 1])  # not begun
    assert tried(Run(), 0.2) == (None, [0, 1])  # not even set up
    monkeypatch.setattr(programs, "PATIENCE", np.inf)
    for least_s, seconds in ((0.0, 1e-3), (5.0, 4.0)):
        monkeypatch.setattr(programs, "LEAST_S", least_s)
        assert tried(Run.within(seconds, None), 0.3) == (None, [0, 1])


def test_only_networks_of_linear_layers_and_bends_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fits(hard_network(0))

    def net(size: int, op: str) -> GraphBuilder:
        builder = GraphBuilder()
        x = builder.add("Input", (), (1, 4), "x")
        z = builder.add("Dense", (x,), (1, size), "z", weight=np.ones((4, size)), bias=np.zeros(size))
        return builder.finish(("x",), (builder.add(op, (z,), (1, size), "h"),))  # type: ignore[return-value]

    monkeypatch.setattr(programs, "MOST_NEURONS", 60)
    monkeypatch.setattr(programs, "MOST_WEIGHTS", 240)
    assert fits(net(60, "Relu"))  # type: ignore[arg-type]
    assert not fits(net(61, "Relu")) and not fits(net(6, "Sigmoid"))  # type: ignore[arg-type]
    monkeypatch.setattr(programs, "MOST_WEIGHTS", 239)
    assert not fits(net(60, "Relu"))  # type: ignore[arg-type]


def test_large_programs_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = hard_network(4)
    (group,) = group_cases(problem(lowest_value(graph, LOWER, UPPER) - 1e-2))
    engine = NativeEngine(graph)
    domains, _ = root_domains(engine, group, 0, Run())
    monkeypatch.setattr(programs, "MOST_TERMS", 10)
    result, left = decide_by_programs(engine, domains, group, 0, None, Run(), np.arange(1), 1.0)  # type: ignore[arg-type]
    assert result is None and left.tolist() == [0]
