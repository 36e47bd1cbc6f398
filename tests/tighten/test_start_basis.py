"""The basis that simplex starts from is a basis, and dual feasible."""

from __future__ import annotations

import numpy as np
import pytest
from nets import dense_net

from verifier.graph.ir import Graph, GraphBuilder
from verifier.spec.problem import lp_ball
from verifier.tighten.build import build_model
from verifier.tighten.lp import LpSession
from verifier.tighten.model import LinearModel
from verifier.tighten.start_basis import BASIC, LOWER, StartBasis


def bent_twice() -> Graph:
    """Two activations of the same layer, added up: one of them reads exact copies of its columns."""
    rng = np.random.default_rng(3)
    builder = GraphBuilder()
    x = builder.add("Input", (), (1, 4), "x")
    z = builder.add("Dense", (x,), (1, 6), "z", weight=rng.normal(size=(4, 6)), bias=0.1 * rng.normal(size=6))
    parts = []
    for name in ("Relu", "Sigmoid"):
        bent = builder.add(name, (z,), (1, 6), name)
        weight, bias = rng.normal(size=(6, 2)), np.zeros(2)
        parts.append(builder.add("Dense", (bent,), (1, 2), f"of_{name}", weight=weight, bias=bias))
    total = builder.add("Add", tuple(parts), (1, 2), "y")
    return builder.finish(("x",), (total,), dtype="float64")


NETS = {
    "relu": dense_net([4, 8, 8, 3], 1),
    "sigmoid": dense_net([4, 6, 3], 2, activation="Sigmoid"),
    "bent twice": bent_twice(),
}


def dual_value(model: LinearModel, cost: np.ndarray) -> float:
    """The value of the basis as a dual solution; asserts that it is a basis and dual feasible."""
    columns, rows = StartBasis(model).of(cost)
    matrix = model.matrix.toarray()
    held, free = rows != BASIC, columns == BASIC
    assert held.sum() == free.sum(), "as many basic columns as rows that are held"
    square = matrix[np.ix_(held, free)]
    assert np.linalg.matrix_rank(square) == len(square)
    duals = np.zeros(model.row_count)
    duals[held] = np.linalg.solve(square.T, cost[free])
    reduced = cost - matrix.T @ duals
    assert np.allclose(reduced[free], 0.0, atol=1e-9)
    for sign, at, lower, upper in (
        (duals, rows, model.row_lower, model.row_upper),
        (reduced, columns, model.col_lower, model.col_upper),
    ):
        wrong = np.where(at == LOWER, sign < -1e-9, sign > 1e-9) & (at != BASIC) & (lower < upper)
        assert not wrong.any(), "a multiplier pulls the wrong way"
    limits = np.where(rows == LOWER, model.row_lower, model.row_upper)
    ends = np.where(columns == LOWER, model.col_lower, model.col_upper)
    return float(duals[held] @ limits[held] + reduced[~free] @ ends[~free])


@pytest.mark.parametrize("name", NETS)
def test_every_row_starts_from_a_dual_feasible_basis(name: str) -> None:
    inputs = lp_ball(np.full(4, 0.1), 0.5)
    model = build_model(NETS[name], inputs)
    assert model is not None and any(len(n.pre) for n in model.neurons)
    session = LpSession(model, inputs)
    for row in np.concatenate([np.eye(len(model.outputs)), -np.eye(len(model.outputs))]):
        cost = model.cost(row)
        assert dual_value(model, cost) <= session.bound(cost).bound + 1e-9
