"""Planes over a neuron's inputs: no point of the network is above one, and they are the concave envelope."""

from itertools import pairwise, product

import numpy as np
import pytest
from nets import dense_net, exact_minimum
from scipy import optimize

from verifier.graph.evaluate import evaluate, evaluate_all
from verifier.spec.problem import lp_ball
from verifier.tighten.build import build_model
from verifier.tighten.dual import layerwise_bounds
from verifier.tighten.hot_model import HotModel
from verifier.tighten.hot_tree import hot_tree
from verifier.tighten.hull import Envelopes, cuts, envelopes
from verifier.tighten.milp import MilpSettings, milp_bound
from verifier.tighten.propagated import Propagated

ACTIVATIONS = [("Relu", {}), ("LeakyRelu", {"alpha": 0.1}), ("Abs", {})]


def points_of(box, count, seed=0):
    """Random points of a box, corners among them, that float32 holds."""
    rng = np.random.default_rng(seed)
    t = rng.random((count, box.size))
    t[: count // 2] = np.round(t[: count // 2])
    x = (box.lower + t * (box.upper - box.lower)).astype(np.float32).astype(np.float64)
    return np.clip(x, box.lower, box.upper)


def layer(seed, size, inputs, slopes):
    rng = np.random.default_rng(seed)
    low = rng.normal(scale=0.3, size=size)
    error = np.abs(rng.normal(scale=0.01, size=size))
    weight = rng.normal(size=(size, inputs)) * (rng.random((size, inputs)) < 0.9)
    return Envelopes(
        np.arange(size),
        np.tile(np.arange(inputs), (size, 1)),
        weight,
        low - error,
        low + error,
        np.tile(slopes, (size, 1)),
        np.zeros(size),
    )


@pytest.mark.parametrize("slopes", [(0.0, 1.0), (0.1, 1.0), (-1.0, 1.0)])
@pytest.mark.parametrize("seed", range(4))
def test_planes_are_the_concave_envelope(seed, slopes):
    """Above the function at every corner, so everywhere; where rounding is nothing, no lower than the envelope."""
    n, rng = 4, np.random.default_rng(seed + 100)
    neurons = layer(seed, 6, n, slopes)
    lower = rng.normal(size=n)
    upper = lower + rng.random(n) * np.array([1.0, 2.0, 0.0, 3.0])  # one input does not move
    point = lower + rng.random(n) * (upper - lower)
    slope, offset = neurons.planes(point, lower, upper)
    corners = np.array([np.where(c, upper, lower) for c in product((0, 1), repeat=n)])
    for k in range(6):
        most = -np.inf
        for shift in (neurons.low[k], neurons.high[k]):
            z = corners @ neurons.weight[k] + shift
            value = np.where(z >= 0, slopes[1] * z, slopes[0] * z)
            assert np.all(value <= corners @ slope[k] + offset[k])
            mean = optimize.linprog(
                -value, A_eq=np.vstack([corners.T, np.ones(len(corners))]), b_eq=np.append(point, 1.0), method="highs"
            )
            most = max(most, -mean.fun)
        assert slope[k] @ point + offset[k] <= most + 0.05  # the band of the sum, 0.02 wide here, is paid for once


@pytest.mark.parametrize("activation, attrs", ACTIVATIONS)
@pytest.mark.parametrize("arithmetic", ["float64", "float32"])
@pytest.mark.parametrize("seed", range(3))
def test_cuts_keep_every_point_of_the_network(seed, activation, attrs, arithmetic):
    """Values that the program computes satisfy the rows as they are, with zero tolerance."""
    graph, box = dense_net([6, 12, 9, 2], seed, activation, **attrs), lp_ball(np.full(6, 0.1), 0.7)
    graph = graph if arithmetic == "float64" else dense_net_32(graph)
    state = Propagated(graph, box)
    model = build_model(state.graph, box, state.intermediate(state.crown()), state.rounding_error(state.crown()))
    lp, found = HotModel(model, model.cost(np.array([1.0, -1.0]))), 0
    for _ in range(6):
        answer = lp.bound(np.inf)
        if not lp.cut(answer.point):
            break
        found = lp.model.row_count - model.row_count
    assert found > 0
    rows = lp.model.matrix[model.row_count :]
    names = {name: columns for name, columns in model.node_columns.items() if name in state.graph.nodes}
    points = points_of(box, 400)
    every = evaluate_all(state.graph, points, arithmetic)
    columns = np.zeros((len(points), model.column_count))
    for name, values in every.items():
        if name in names:
            columns[:, names[name]] = values.reshape(len(points), -1)
    assert np.all(rows @ columns.T <= lp.model.row_upper[model.row_count :, None] + 1e-13)


def dense_net_32(graph):
    """The same weights as a float32 program has them."""
    from dataclasses import replace

    from verifier.graph.ir import GraphBuilder

    builder, last = GraphBuilder(), "x"
    for node in graph.nodes.values():
        attrs = {k: np.float32(v) if k in ("weight", "bias") else v for k, v in node.attrs.items()}
        last = builder.add(node.op, node.inputs, node.shape, node.name, **attrs)
    return replace(builder.finish(("x",), (last,)), dtype="float32")


@pytest.mark.parametrize("activation, attrs", ACTIVATIONS)
@pytest.mark.parametrize("seed", range(3))
def test_trees_with_cuts_decide_on_both_sides_of_the_minimum(seed, activation, attrs):
    graph, box = dense_net([8, 24, 1], seed, activation, **attrs), lp_ball(np.full(8, 0.2), 0.8)
    model = build_model(graph, box, layerwise_bounds(graph, box))
    cost = model.cost(np.ones(1))
    exact = milp_bound(graph, box, np.ones((1, 1)), settings=MilpSettings(gap_rel=1e-9))
    least = float(exact.upper[0])
    proof = hot_tree(model, cost).prove_above(least - 1e-4, np.inf)
    assert proof.closed and least - 1e-4 < proof.lower <= least + 1e-9
    assert not hot_tree(model, cost).prove_above(least + 1e-7, np.inf).closed
    values = evaluate(graph, points_of(box, 4000))
    assert proof.lower <= values.min()


def test_trees_with_cuts_agree_with_enumeration():
    for seed in range(4):
        graph, box = dense_net([3, 5, 4, 2], seed), lp_ball(np.full(3, 0.1), 0.8)
        row = np.array([1.0, -1.0])
        least = exact_minimum(graph, box, row)
        model = build_model(graph, box, layerwise_bounds(graph, box))
        for target, expected in ((least - 1e-5, True), (least + 1e-6, False)):
            assert hot_tree(model, model.cost(row)).prove_above(target, np.inf).closed is expected


def test_cuts_make_the_root_tighter_and_idle_ones_go(monkeypatch):
    monkeypatch.setattr("verifier.tighten.hot_model.IDLE", 0)
    monkeypatch.setattr("verifier.tighten.hot_model.MOST_CUTS", 0)
    graph, box = dense_net([12, 30, 1], 5), lp_ball(np.full(12, 0.1), 0.8)
    model = build_model(graph, box, layerwise_bounds(graph, box))
    lp = HotModel(model, model.cost(np.ones(1)))
    first = lp.bound(np.inf)
    triangle, rows = first.bound, []
    for _ in range(8):
        if not lp.cut(first.point):
            break
        first = lp.bound(np.inf)
        rows.append(lp.model.row_count)
    least = float(milp_bound(graph, box, np.ones((1, 1))).upper[0])
    assert first.bound - triangle > 0.25 * (least - triangle) and first.bound <= least
    assert any(b < a for a, b in pairwise(rows)) or max(rows) <= model.row_count + 60
    assert lp.model.row_count == len(lp.model.row_upper) == lp.model.matrix.shape[0]


def test_layers_without_such_neurons_have_no_envelopes():
    for activation in ("Sigmoid", "Tanh"):
        graph, box = dense_net([4, 6, 1], 0, activation), lp_ball(np.zeros(4), 0.5)
        model = build_model(graph, box)
        assert envelopes(model) == [] and cuts([], model, np.zeros(model.column_count)).count == 0
