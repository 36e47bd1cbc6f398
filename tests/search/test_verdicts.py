"""Verdicts against exact answers: enumerated activation patterns, planted counterexamples, known margins."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import linprog

sys.path.insert(0, str(Path(__file__).parent.parent / "bounds"))
from network_cases import attention_net, dense_net

from verifier.api import falsify, verify
from verifier.graph.evaluate import evaluate
from verifier.graph.ir import GraphBuilder
from verifier.outcome import StopReason, Verdict
from verifier.settings import Settings
from verifier.spec.problem import Case, Clause, InputSet, Problem
from verifier.spec.query import query_of


def exact_minimum(graph, lower, upper, row):
    """min row @ y over a box for a one-hidden-layer relu net, by an LP for every activation pattern."""
    first, last = graph["z0"].attrs, graph["z1"].attrs
    w, b = first["weight"].astype(float), first["bias"].astype(float)
    c, d = last["weight"].astype(float) @ row, float(last["bias"].astype(float) @ row)
    best = np.inf
    for pattern in itertools.product((0, 1), repeat=len(b)):
        on = np.array(pattern, bool)
        sign = np.where(on, -1.0, 1.0)
        solution = linprog(w @ (c * on), A_ub=(w * sign).T, b_ub=-b * sign, bounds=list(zip(lower, upper, strict=True)))
        if solution.status == 0:
            best = min(best, solution.fun + float((c * on) @ b) + d)
    return best


def question(graph, lower, upper, clauses):
    return query_of(graph, Problem((Case(InputSet(lower, upper), clauses),), graph.output_size))


def below(row, limit):
    return Clause(np.atleast_2d(row), np.array([limit]), np.array([False]))


@pytest.mark.parametrize("few_inputs", (True, False))
@pytest.mark.parametrize("seed", range(6))
def test_agrees_with_enumeration(seed, few_inputs, monkeypatch):
    monkeypatch.setattr("verifier.search.strategy.FEW_INPUTS", 12 if few_inputs else 0)
    graph = dense_net("Relu", seed, (3, 8, 2))
    rng = np.random.default_rng(seed)
    center = rng.standard_normal(3)
    lower, upper = center - 0.7, center + 0.7
    row = np.array([1.0, -1.0])
    exact = exact_minimum(graph, lower, upper, row)
    for offset, expected in ((-1e-3, Verdict.UNSAT), (1e-2, Verdict.SAT)):
        report = verify(graph, question(graph, lower, upper, (below(row, exact + offset),)), Settings(timeout_s=60))
        assert report.verdict is expected, (exact, offset, report.reason)


@pytest.mark.parametrize("activation", ("Sigmoid", "Tanh", "Sin"))
def test_general_nonlinearities_are_split_to_a_verdict(activation, monkeypatch):
    monkeypatch.setattr("verifier.search.strategy.FEW_INPUTS", 0)
    graph = dense_net(activation, 3, (3, 6, 2))
    rng = np.random.default_rng(0)
    lower, upper = np.full(3, -0.8), np.full(3, 0.8)
    values = evaluate(graph, rng.uniform(lower, upper, (20000, 3)))[:, 0]
    spread = values.max() - values.min()
    report = verify(
        graph, question(graph, lower, upper, (below([1.0, 0.0], values.min() - 0.1 * spread),)), Settings(timeout_s=60)
    )
    assert report.verdict is Verdict.UNSAT
    report = verify(
        graph, question(graph, lower, upper, (below([1.0, 0.0], values.min() + 0.02 * spread),)), Settings(timeout_s=60)
    )
    assert report.verdict is Verdict.SAT


def planted(width: float, at: np.ndarray):
    """y = 1 everywhere except a narrow dip below zero around `at`: sum of two-sided relu bumps."""
    n = len(at)
    builder = GraphBuilder()
    x = builder.add("Input", (), (1, n), "x")
    weight = np.concatenate([np.eye(n), -np.eye(n)], axis=1).astype(np.float32)
    bias = np.concatenate([-at, at]).astype(np.float32)
    z = builder.add("Dense", (x,), (1, 2 * n), "z0", weight=weight, bias=bias)
    h = builder.add("Relu", (z,), (1, 2 * n), "h0")
    sum_weight = np.full((2 * n, 1), -1.0 / width, np.float32)
    s = builder.add("Dense", (h,), (1, 1), "z1", weight=sum_weight, bias=np.ones(1, np.float32))
    r = builder.add("Relu", (s,), (1, 1), "h1")
    y = builder.add("Dense", (r,), (1, 1), "y", weight=np.full((1, 1), -2.0, np.float32), bias=np.ones(1, np.float32))
    return builder.finish(("x",), (y,))


@pytest.mark.parametrize("few_inputs", (True, False))
@pytest.mark.parametrize("width", (1e-1, 1e-2, 1e-3))
def test_a_planted_counterexample_is_never_unsat(width, few_inputs, monkeypatch):
    monkeypatch.setattr("verifier.search.strategy.FEW_INPUTS", 12 if few_inputs else 0)
    at = np.array([0.3125, -0.40625])
    graph = planted(width, at)
    query = question(graph, np.full(2, -1.0), np.full(2, 1.0), (below([1.0], 0.0),))
    report = verify(graph, query, Settings(timeout_s=20))
    assert report.verdict is not Verdict.UNSAT
    if report.verdict is Verdict.SAT:
        assert evaluate(graph, report.witness.x[None].astype(float), "float32")[0, 0] <= 0
    # without the dip in the box the property holds and is proved
    away = question(graph, np.array([0.5, -1.0]), np.array([1.0, 1.0]), (below([1.0], 0.0),))
    assert verify(graph, away, Settings(timeout_s=20)).verdict is Verdict.UNSAT


def test_attention_is_proved_and_refuted():
    graph = attention_net(9)
    rng = np.random.default_rng(0)
    center = rng.standard_normal(12)
    lower, upper = center - 0.05, center + 0.05
    row = np.eye(6)[0]
    values = evaluate(graph, rng.uniform(lower, upper, (4000, 12)))[:, 0]
    proved = verify(graph, question(graph, lower, upper, (below(row, values.min() - 0.2),)), Settings(timeout_s=60))
    refuted = verify(graph, question(graph, lower, upper, (below(row, values.min() + 1e-3),)), Settings(timeout_s=60))
    assert (proved.verdict, refuted.verdict) == (Verdict.UNSAT, Verdict.SAT)


def test_disjunctions_conjunctions_and_strictness():
    graph = dense_net("Relu", 0, (2, 4, 2))
    lower = upper = np.zeros(2)
    y = evaluate(graph, np.zeros((1, 2)), "float32")[0].astype(float)
    at = Clause(np.eye(2), y, np.zeros(2, bool))  # both rows hold with equality
    strict = Clause(np.eye(2), y, np.array([False, True]))
    never = Clause(np.eye(2), np.array([y[0] + 1, y[1] - 1]), np.zeros(2, bool))
    assert verify(graph, question(graph, lower, upper, (at,)), Settings(timeout_s=10)).verdict is Verdict.SAT
    assert verify(graph, question(graph, lower, upper, (strict,)), Settings(timeout_s=10)).verdict is not Verdict.SAT
    assert verify(graph, question(graph, lower, upper, (never,)), Settings(timeout_s=10)).verdict is Verdict.UNSAT
    assert verify(graph, question(graph, lower, upper, (never, at)), Settings(timeout_s=10)).verdict is Verdict.SAT


def test_empty_sets_and_falsify_only():
    graph = dense_net("Relu", 0, (2, 4, 2))
    empty = question(graph, np.ones(2), np.zeros(2), (below([1.0, 0.0], 1e9),))
    report = verify(graph, empty)
    assert (report.verdict, report.reason) == (Verdict.UNSAT, StopReason.EMPTY_INPUT)
    impossible = question(graph, np.zeros(2), np.ones(2), (below([1.0, 0.0], -1e9),))
    assert falsify(graph, impossible, Settings(timeout_s=1)).verdict is Verdict.TIMEOUT
    cancelled = verify(graph, impossible, Settings(timeout_s=5), cancel=lambda: True)
    assert cancelled.reason in (StopReason.INTERRUPTED, StopReason.PROVED_BY_SEARCH)


@pytest.mark.parametrize("few_inputs", (True, False))
@pytest.mark.parametrize("engine", ("native", "torch"))
def test_effort_ends_before_the_search(engine, few_inputs, monkeypatch):
    monkeypatch.setattr("verifier.search.strategy.FEW_INPUTS", 12 if few_inputs else 0)
    graph = dense_net("Relu", 3, (3, 8, 2))
    center = np.random.default_rng(3).standard_normal(3)
    lower, upper, row = center - 0.7, center + 0.7, np.array([1.0, -1.0])
    exact = exact_minimum(graph, lower, upper, row)

    def answer(effort, limit):
        asked = question(graph, lower, upper, (below(row, limit),))
        return verify(graph, asked, Settings(timeout_s=60, engine=engine, effort=effort))

    for effort in ("bounds", "slopes"):
        report = answer(effort, exact - 1e-3)
        assert (report.verdict, report.reason) == (Verdict.UNKNOWN, StopReason.NO_SEARCH)
        report = answer(effort, exact - 100)
        assert (report.verdict, report.reason) == (Verdict.UNSAT, StopReason.PROVED_BY_BOUNDS)
        assert answer(effort, exact + 1e-2).verdict is Verdict.SAT
    assert answer("search", exact - 1e-3).verdict is Verdict.UNSAT
