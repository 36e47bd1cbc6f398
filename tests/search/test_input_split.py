"""Splitting inputs of networks with products: verdicts on both sides of a minimum, several rows and clauses."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "bounds"))
from test_joint_products import lyapunov_net

from verifier.api import verify
from verifier.graph.evaluate import evaluate
from verifier.outcome import Verdict
from verifier.settings import Settings
from verifier.spec.problem import Case, Clause, InputSet, Problem
from verifier.spec.query import query_of


def clause(*rows):
    """Rows (coefficients, limit) that all have to hold."""
    return Clause(np.array([r for r, _ in rows]), np.array([t for _, t in rows]), np.zeros(len(rows), dtype=bool))


@pytest.mark.parametrize("activation", ("Relu", "Sin"))
@pytest.mark.parametrize("seed", range(3))
def test_a_clause_of_two_rows_on_both_sides_of_its_minimum(seed, activation):
    """The least y_1 where y_0 <= limit, from samples: below it no counterexample, above it one, never the reverse."""
    graph = lyapunov_net(seed, activation, n=2)
    rng = np.random.default_rng(seed)
    lower, upper = np.array([-0.7, -1.1]), np.array([1.2, 0.6])
    x = rng.uniform(lower, upper, (200_000, 2)).astype(np.float32).astype(float)
    y = evaluate(graph, np.clip(x, lower, upper))
    limit = float(np.quantile(y[:, 0], 0.4))
    inside = y[y[:, 0] <= limit, 1]
    spread = float(y[:, 1].max() - y[:, 1].min())
    never = clause(([1.0, 0.0], float(y[:, 0].min()) - 10.0))
    for offset, expected in ((-0.01 * spread, Verdict.UNSAT), (1e-4 * spread, Verdict.SAT)):
        asked = clause(([0.0, 1.0], float(inside.min()) + offset), ([1.0, 0.0], limit))
        problem = Problem((Case(InputSet(lower, upper), (never, asked)),), 2)
        report = verify(graph, query_of(graph, problem), Settings(timeout_s=60))
        assert report.verdict is expected, (report.verdict, report.reason)
