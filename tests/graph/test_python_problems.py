"""Modules and problems made in Python go through `verify` as files do."""

import numpy as np
import pytest
import torch
from torch import nn

from verifier.api import verify
from verifier.errors import NetworkError
from verifier.graph.evaluate import evaluate
from verifier.graph.torch.importer import load_module
from verifier.outcome import Verdict
from verifier.settings import Settings
from verifier.spec.problem import Case, Clause, InputSet, Problem, classification_problem
from verifier.spec.query import query_of

QUICK = Settings(timeout_s=20, threads=1)


@pytest.fixture(scope="module")
def module():
    """Two classes on four inputs: the sign of x_0 + x_1 + x_2 + x_3, through relus."""
    net = nn.Sequential(nn.Linear(4, 2, bias=False), nn.ReLU(), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, 1, 1, 1], [-1, -1, -1, -1]]))
        net[2].weight.copy_(torch.eye(2))
    return net


# At x = (0.5, 0.5, 0.5, 0.5) the sum is 2; it reaches 0 after an l1 move of 2, an l2 move of 1, an linf
# move of 0.5, or three features of [-1, 1] that may take any value.
@pytest.mark.parametrize(("p", "safe", "unsafe"), [(1, 1.9, 2.1), (2, 0.95, 1.05), (np.inf, 0.45, 0.55), (0, 1, 2)])
def test_lp_balls_of_a_module(module, p, safe, unsafe):
    graph = load_module(module, (1, 4))
    for radius, wanted in ((safe, Verdict.UNSAT), (unsafe, Verdict.SAT)):
        problem = classification_problem(np.full(4, 0.5), radius, p, label=0, classes=2, valid=(-1.0, 1.0))
        report = verify(module, query_of(graph, problem), QUICK)
        assert report.verdict is wanted, (p, radius, report.reason_detail)
        if wanted is Verdict.SAT:
            y = evaluate(graph, report.witness.x, "float32")[0]
            moved = np.abs(report.witness.x - 0.5)
            assert y[1] >= y[0] and (np.count_nonzero(moved) if p == 0 else np.linalg.norm(moved, p)) <= radius + 1e-9


def test_targets_rows_and_programs(module):
    graph = load_module(module, (1, 4))
    program = torch.export.export(module, (torch.zeros(1, 4),))
    targeted = classification_problem(np.full(4, 0.5), 0.55, np.inf, label=0, classes=2, target=1)
    assert verify(program, query_of(graph, targeted), QUICK).verdict is Verdict.SAT
    # A linear row keeps the sum at 1 or more, so that class 0 keeps its score at 1 or more.
    rows = InputSet(np.full(4, -1.0), np.full(4, 1.0), -np.ones((1, 4)), np.array([-1.0]))
    below = [Clause(np.array([[1.0, 0.0]]), np.array([limit]), np.array([False])) for limit in (0.9, 1.1)]
    for clause, wanted in zip(below, (Verdict.UNSAT, Verdict.SAT), strict=True):
        problem = Problem((Case(rows, (clause,)),), 2)
        assert verify(graph, query_of(graph, problem), QUICK).verdict is wanted


def test_a_module_with_a_file_says_what_to_do(module, tmp_path):
    (tmp_path / "p.vnnlib").write_text("(declare-const X_0 Real)\n")
    with pytest.raises(NetworkError, match="load_module"):
        verify(module, tmp_path / "p.vnnlib")
    with pytest.raises(NetworkError, match="got int"):
        verify(3, tmp_path / "p.vnnlib")
