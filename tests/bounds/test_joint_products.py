"""Sums of products bounded together: never above a value, never looser, exact where the sum is convex."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from verifier.bounds import torch_engine
from verifier.bounds.torch_engine import TorchEngine
from verifier.graph.evaluate import evaluate
from verifier.graph.ir import GraphBuilder


def lyapunov_net(seed, activation="Relu", n=3, dtype="float32"):
    """V(x) = x^T P x and V(x) - V(x'), x' = x + 0.1 f(x): sums of products of functions of the same inputs."""
    rng = np.random.default_rng(seed)
    kind = np.dtype(dtype)
    builder = GraphBuilder()
    x = builder.add("Input", (), (1, n), "x")

    def dense(source, weight, name):
        weight = weight.astype(kind)
        bias = (0.1 * rng.standard_normal(weight.shape[1])).astype(kind)
        return builder.add("Dense", (source,), (1, weight.shape[1]), name, weight=weight, bias=bias)

    root = rng.standard_normal((n, n))
    attrs = {"alpha": 0.1} if activation == "LeakyRelu" else {}
    hidden = builder.add(activation, (dense(x, rng.standard_normal((n, 5)), "z"),), (1, 5), "h", **attrs)
    move = dense(hidden, 0.1 * rng.standard_normal((5, n)), "move")
    squares = builder.add("Mul", (x, dense(x, root @ root.T, "Px")), (1, n), "xPx")
    value = builder.add("ReduceSum", (squares,), (1, 1), "V", axes=(1,), keepdims=True)
    both = builder.add("Add", (builder.add("Add", (x, x), (1, n), "xx"), move), (1, n), "s")
    change = builder.add("Mul", (move, dense(both, root @ root.T, "Ps")), (1, n), "dPs")
    total = builder.add("ReduceSum", (change,), (1, 1), "dV", axes=(1,), keepdims=True)
    y = builder.add("Concat", (value, total), (1, 2), "y", axis=1)
    return builder.finish(("x",), (y,), dtype=dtype)


ROWS = np.array([[1.0, 0.0], [0.0, -1.0], [0.0, 1.0], [-1.0, 0.5]])


def boxes(rng, count, n):
    middle = rng.uniform(-2, 2, (count, n))
    width = rng.uniform(0, 1, (count, n)) * 10.0 ** rng.integers(-4, 1, (count, 1))
    width[rng.random((count, n)) < 0.1] = 0.0
    return middle - width, middle + width


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from(("Relu", "Sin", "Tanh", "LeakyRelu")),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_no_value_of_the_deployed_program_lies_below(seed, activation, dtype):
    rng = np.random.default_rng(seed)
    graph = lyapunov_net(seed, activation)
    engine = TorchEngine(graph, dtype=dtype)
    lower, upper = boxes(rng, 6, 3)
    lower, upper = lower.astype(np.float32).astype(float), upper.astype(np.float32).astype(float)
    bounds = engine.bound_boxes(lower, upper, ROWS)
    for b in range(len(lower)):
        x = rng.uniform(lower[b], upper[b], (300, 3))
        x[:64] = np.where(rng.random((64, 3)) < 0.5, lower[b], upper[b])
        x = np.clip(x.astype(np.float32), lower[b].astype(np.float32), upper[b].astype(np.float32))
        for arithmetic in ("float32", "float64"):
            y = evaluate(graph, x, arithmetic)
            for s, row in enumerate(ROWS):
                values = [sum(Fraction(float(w * v)) for w, v in zip(row, out, strict=True)) for out in y.astype(float)]
                assert min(values) >= Fraction(float(bounds.lower[b, s]))
                a, offset = bounds.coeffs[b, s], bounds.offset[b, s]
                own = 1e-14 * (np.abs(x) @ np.abs(a) + abs(offset))  # what summing it here rounds
                assert np.all(y.astype(float) @ row >= x.astype(float) @ a + offset - own)


def test_tighter_than_product_by_product(monkeypatch):
    rng = np.random.default_rng(1)
    graph = lyapunov_net(1)
    engine = TorchEngine(graph, dtype=torch.float64)
    middle = rng.uniform(-2, 2, (20, 3))
    lower, upper = middle - 0.1, middle + 0.1
    joint = engine.bound_boxes(lower, upper, ROWS).lower
    monkeypatch.setattr(torch_engine, "pays", lambda *_: False)
    single = engine.bound_boxes(lower, upper, ROWS).lower
    assert np.all(joint >= single - 1e-9)
    assert (joint - single)[:, :2].mean() > 0.01


@pytest.mark.parametrize("size", (1.0, 0.1))
def test_a_convex_sum_is_bounded_exactly(size):
    """min x^T P x + x^T c over a box, by sampling a fine grid."""
    graph = lyapunov_net(2, n=2)
    engine = TorchEngine(graph, dtype=torch.float64)
    lower, upper = np.array([[0.3, -0.5]]), np.array([[0.3, -0.5]]) + size
    bound = engine.bound_boxes(lower, upper, ROWS[:1]).lower[0, 0]
    axes = [np.linspace(a, b, 201) for a, b in zip(lower[0], upper[0], strict=True)]
    grid = np.stack(np.meshgrid(*axes), -1).reshape(-1, 2)
    least = engine.evaluate(grid)[:, 0].min()
    assert bound <= least and bound == pytest.approx(least, abs=2e-3 * size)
