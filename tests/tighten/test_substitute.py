"""Stable neurons written out: no point of the network is lost, to the last bit; programs shrink."""

from fractions import Fraction

import numpy as np
import pytest
from nets import dense_net

from verifier.graph.evaluate import evaluate_all
from verifier.graph.ir import Graph, GraphBuilder
from verifier.spec.problem import lp_ball
from verifier.tighten.build import build_model
from verifier.tighten.dual import layerwise_bounds
from verifier.tighten.lp import LpSession
from verifier.tighten.model import LinearModel
from verifier.tighten.substitute import substituted

COST = np.array([1.0, -1.0])


def skip_net(seed: int) -> Graph:
    """A convolution, a shortcut around a second one, and a maximum."""
    rng = np.random.default_rng(seed)
    pads = {"strides": (1, 1), "pads": (1, 1, 1, 1), "dilations": (1, 1), "groups": 1}

    def conv(last: str, name: str, channels: int) -> str:
        weight = 0.4 * rng.normal(size=(3, channels, 3, 3))
        return builder.add("Conv", (last,), (1, 3, 4, 4), name, weight=weight, bias=0.3 * rng.normal(size=3), **pads)

    builder = GraphBuilder()
    x = builder.add("Input", (), (1, 1, 4, 4), "x")
    first = builder.add("Relu", (conv(x, "z0", 1),), (1, 3, 4, 4), "h0")
    second = builder.add("Add", (conv(first, "z1", 3), first), (1, 3, 4, 4), "s")
    second = builder.add("Relu", (second,), (1, 3, 4, 4), "h1")
    top = builder.add("ReduceMax", (second,), (1, 3, 4, 1), "m", axes=(3,), keepdims=1)
    flat = builder.add("Reshape", (top,), (1, 12), "f")
    y = builder.add("Dense", (flat,), (1, 2), "y", weight=rng.normal(size=(12, 2)), bias=rng.normal(size=2))
    return builder.finish(("x",), (y,), dtype="float64")


NETS = [
    ("dense", lambda seed: dense_net([6, 14, 12, 9, 2], seed)),
    ("leaky", lambda seed: dense_net([6, 14, 12, 2], seed, "LeakyRelu", alpha=0.1)),
    ("skip", skip_net),
]


def both(graph: Graph, radius: float) -> tuple[LinearModel, LinearModel, object]:
    box = lp_ball(np.full(graph.input_size, 0.1), radius)
    model = build_model(graph, box, layerwise_bounds(graph, box))
    assert model is not None
    return model, substituted(model), box


@pytest.mark.parametrize("name, make", NETS)
@pytest.mark.parametrize("seed", range(3))
def test_every_value_of_a_form_is_within_its_rows(name, make, seed):
    """Exact rational values of all columns at points of the box satisfy the composed rows as they are."""
    graph = make(seed)
    model, small, box = both(graph, 0.05)
    assert small.column_count < model.column_count and small.definitions
    rng = np.random.default_rng(seed)
    for _ in range(5):
        x = rng.uniform(box.lower, box.upper)
        exact = exact_columns(model, x)
        kept = [exact[c] for c in kept_columns(model, small)]
        for row in range(small.row_count):
            if small.relaxation_rows[row]:
                continue
            begin, end = small.matrix.indptr[row], small.matrix.indptr[row + 1]
            value = weighted(small.matrix.data[begin:end], [kept[c] for c in small.matrix.indices[begin:end]])
            if np.isfinite(small.row_lower[row]):
                assert value >= Fraction(float(small.row_lower[row])), row
            if np.isfinite(small.row_upper[row]):
                assert value <= Fraction(float(small.row_upper[row])), row


def weighted(data: np.ndarray, values: list[Fraction]) -> Fraction:
    return sum((Fraction(float(a)) * v for a, v in zip(data, values, strict=True)), Fraction(0))


def kept_columns(model: LinearModel, small: LinearModel) -> np.ndarray:
    """The columns of the model that are left, in order."""
    defined = {int(model.matrix.indices[model.matrix.indptr[r]]) for a, b in model.definitions for r in range(a, b)}
    ends = {int(c) for n in model.neurons for c in (*n.pre, *n.post)} | set(map(int, (*model.inputs, *model.outputs)))
    kept = np.array([c for c in range(model.column_count) if c not in defined or c in ends])
    assert len(kept) == small.column_count
    return kept


def exact_columns(model: LinearModel, x: np.ndarray) -> list[Fraction]:
    """Values of all columns at an input, rows taken in the middle of their bands, in rational arithmetic."""
    known = [Fraction(0)] * model.column_count
    for c, v in zip(model.inputs, x, strict=True):
        known[c] = Fraction(float(v))
    bends = {int(post): (n, k) for n in model.neurons for k, post in enumerate(n.post)}
    for post in bends:
        known[post] = None  # type: ignore[call-overload]
    rows = [r for a, b in model.definitions for r in range(a, b)]

    def value(c: int) -> Fraction:
        if known[c] is None:
            n, k = bends[c]
            z = known[n.pre[k]]
            slope = n.curve.at(np.array([k])).value(np.array([[1.0 if z > 0 else -1.0]]))[0, 0]
            known[c] = Fraction(float(slope)) * abs(z)
        return known[c]

    for row in rows:
        begin, end = model.matrix.indptr[row], model.matrix.indptr[row + 1]
        columns, data = model.matrix.indices[begin:end], model.matrix.data[begin:end]
        total = weighted(-data[1:], [value(int(c)) for c in columns[1:]])
        known[columns[0]] = total + (Fraction(float(model.row_lower[row])) + Fraction(float(model.row_upper[row]))) / 2
    return [value(c) for c in range(model.column_count)]


@pytest.mark.parametrize("name, make", NETS)
@pytest.mark.parametrize("seed", range(3))
def test_bounds_of_the_smaller_program_hold_and_are_close(name, make, seed):
    graph = make(seed)
    model, small, box = both(graph, 0.15)
    found = LpSession(small, box).bound(small.cost(COST)).bound
    full = LpSession(model, box).bound(model.cost(COST)).bound
    points = np.random.default_rng(seed).uniform(box.lower, box.upper, size=(2000, graph.input_size))
    values = evaluate_all(graph, points)[graph.outputs[0]].reshape(len(points), -1) @ COST
    assert found <= values.min() and found <= full + 1e-9
    assert found >= full - 0.5 * abs(values.min() - full) - 1e-9


def test_a_model_without_stable_neurons_stays_as_it_is():
    graph, box = dense_net([3, 8, 2], 1), lp_ball(np.zeros(3), 50.0)
    model = build_model(graph, box, layerwise_bounds(graph, box))
    assert model is not None and substituted(model) is model
