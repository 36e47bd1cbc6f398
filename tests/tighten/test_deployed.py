"""Rounding of the deployed program node by node: no sampled error is above the bound, which is not far above them."""

import numpy as np
import pytest

from verifier.bounds.clauses import PaddedClauses
from verifier.bounds.native_domains import NativeDomains
from verifier.bounds.native_engine import NativeEngine
from verifier.errors import UnsupportedOperator
from verifier.graph.evaluate import evaluate_all
from verifier.graph.ir import Graph, GraphBuilder
from verifier.tighten.deployed import EXACT, rounding_errors


def net(seed: int) -> Graph:
    """Two paths over shared neurons: dense, scale, sum, difference, relu and leaky relu."""
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    builder = GraphBuilder()
    x = builder.add("Input", (), (1, 6), "x")
    z = builder.add("Dense", (x,), (1, 9), "z", weight=draw(6, 9), bias=draw(9))
    h = builder.add("Relu", (z,), (1, 9), "h")
    s = builder.add("Scale", (h,), (1, 9), "s", scale=draw(9), shift=draw(9))
    w = builder.add("Dense", (h,), (1, 9), "w", weight=draw(9, 9), bias=draw(9))
    leaky = builder.add("LeakyRelu", (w,), (1, 9), "l", alpha=0.3)
    both = builder.add("Add", (s, leaky), (1, 9), "a")
    last = builder.add("Sub", (both, h), (1, 9), "d")
    y = builder.add("Dense", (last,), (1, 2), "y", weight=draw(9, 2), bias=draw(2))
    return builder.finish(("x",), (y,))


def exact_step(graph: Graph, name: str, read: list[np.ndarray]) -> np.ndarray:
    """The node's operation in extended precision on what the program computed."""
    node, values = graph[name], [r.astype(np.longdouble) for r in read]
    if node.op == "Dense":
        return values[0] @ node.attrs["weight"].astype(np.longdouble) + node.attrs["bias"]
    if node.op == "Scale":
        return values[0] * node.attrs["scale"].astype(np.longdouble) + node.attrs["shift"]
    if node.op == "LeakyRelu":
        return np.where(values[0] < 0, np.longdouble(node.attrs["alpha"]) * values[0], values[0])
    return values[0] + values[1] if node.op == "Add" else values[0] - values[1]


@pytest.mark.parametrize("seed", range(5))
def test_no_sampled_error_is_above_the_bound(seed: int) -> None:
    graph, rng = net(seed), np.random.default_rng(seed)
    lower, upper = (np.full(6, x, dtype=np.float32).astype(np.float64) for x in (-0.5, 0.75))
    engine = NativeEngine(graph)
    clauses = PaddedClauses(np.eye(2)[None], np.zeros((1, 2)), np.zeros((1, 2), dtype=bool))
    bounds, sizes = NativeDomains(engine, lower, upper, clauses).node_bounds(graph)
    errors = rounding_errors(graph, sizes, real=False)
    assert set(errors) == {n for n in graph.nodes if graph[n].op not in EXACT}
    points = rng.uniform(lower, upper, size=(500, 6)).astype(np.float32).astype(np.float64)
    values = evaluate_all(graph, points, "float32")
    for name, error in errors.items():
        read = [values[i].reshape(len(points), -1) for i in graph[name].inputs]
        missed = np.abs(exact_step(graph, name, read) - values[name].reshape(len(points), -1))
        assert np.all(missed <= error)
        assert error.max() <= 1000 * max(float(missed.max()), 1e-12)
    for name, (low, high) in bounds.items():
        assert np.all(values[name] >= low) and np.all(values[name] <= high)
    assert all(not e.any() for e in rounding_errors(graph, sizes, real=True).values())


def test_other_operators_are_refused() -> None:
    builder = GraphBuilder()
    x = builder.add("Input", (), (1, 3), "x")
    graph = builder.finish(("x",), (builder.add("Sigmoid", (x,), (1, 3), "s"),))
    with pytest.raises(UnsupportedOperator):
        rounding_errors(graph, {"x": np.ones(3)}, real=False)
