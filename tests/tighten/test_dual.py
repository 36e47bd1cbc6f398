"""Duals without a solver: ordering against intervals, LP and exact values; soundness with tolerance zero."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import dense_net, exact_value

from verifier.errors import SpecError
from verifier.graph.evaluate import evaluate, evaluate_all
from verifier.graph.ir import GraphBuilder
from verifier.outcome import Soundness
from verifier.spec.problem import lp_ball
from verifier.tighten.build import build_model
from verifier.tighten.dual import METHODS, DualSettings, backward_multipliers, dual_bound, layerwise_bounds
from verifier.tighten.lp import lp_bound
from verifier.tighten.milp import MilpSettings, milp_bound
from verifier.tighten.safe_bound import safe_bound

ROWS = np.array([[1.0, -1.0], [-1.0, 1.0], [1.0, 0.5]])


def bound(graph, box, method, **options):
    return dual_bound(graph, box, ROWS, settings=DualSettings(method, **options)).lower


@pytest.mark.parametrize("seed", range(3))
def test_published_order_on_shared_intermediate_bounds(seed):
    graph, box = dense_net([3, 6, 6, 2], seed), lp_ball(np.full(3, 0.1), 0.6)
    model = build_model(graph, box)
    interval = np.array([safe_bound(model, model.cost(r), np.zeros(model.row_count)) for r in ROWS])
    parallel, adaptive, ascent = (bound(graph, box, m, layerwise=False, steps=200) for m in METHODS)
    lp = lp_bound(graph, box, ROWS).lower
    exact = milp_bound(graph, box, ROWS).upper
    assert np.all(interval <= parallel) and np.all(interval <= adaptive) and np.all(adaptive <= ascent)
    # The ascent's optimum is the LP's value; only the solver's accuracy separates them from above.
    assert np.all(ascent <= lp + 1e-7) and np.all(ascent >= lp - 0.05 * np.abs(lp) - 0.02)
    assert np.all(ascent <= exact) and np.all(lp <= exact)


def test_layerwise_bounds_are_sound_and_tighter():
    graph, box = dense_net([4, 10, 10, 10, 2], 3), lp_ball(np.zeros(4), 0.4)
    known = layerwise_bounds(graph, box)
    values = evaluate_all(graph, np.random.default_rng(0).uniform(-0.4, 0.4, size=(5000, 4)))
    for name, (lower, upper) in known.items():
        sampled = values[name].reshape(5000, -1)
        assert np.all(lower <= sampled.min(axis=0)) and np.all(upper >= sampled.max(axis=0))
    for method in ("wong-kolter", "crown"):
        assert np.all(bound(graph, box, method) >= bound(graph, box, method, layerwise=False) - 1e-12)
    assert np.all(lp_bound(graph, box, ROWS, intermediate=known).lower >= bound(graph, box, "crown") - 1e-7)


@given(st.integers(0, 10**6), st.sampled_from(METHODS), st.floats(0.0, 1.5))
@settings(max_examples=15, deadline=None)
def test_never_above_exact_rational_values(seed, method, radius):
    graph, box = dense_net([2, 3, 3, 2], seed, quantum=2.0**-6), lp_ball(np.zeros(2), radius)
    found = bound(graph, box, method, steps=20)
    tree = milp_bound(graph, box, ROWS[:1], settings=MilpSettings(guide=None))
    for x in (tree.points[0], box.lower, box.upper):
        for s, row in enumerate(ROWS):
            assert found[s] <= exact_value(graph, x, row)


def test_wong_kolter_closed_form_on_one_neuron():
    """min of -relu(x) on [-1, 3]: the upper line 0.75 (x + 1) is exact at 3, the bound is -3."""
    builder = GraphBuilder()
    builder.add("Input", (), (1, 1), "x")
    builder.add("Dense", ("x",), (1, 1), "z", weight=np.ones((1, 1)), bias=np.ones(1))
    builder.add("Relu", ("z",), (1, 1), "h")
    builder.add("Dense", ("h",), (1, 1), "y", weight=-np.ones((1, 1)), bias=np.zeros(1))
    graph = builder.finish(("x",), ("y",))
    found = dual_bound(graph, lp_ball(np.zeros(1), 2.0), np.ones((1, 1))).lower[0]
    assert found <= -3.0 and found == pytest.approx(-3.0, abs=1e-9)
    # min of relu(x) with the parallel line 0.75 x: -0.75, clipped by the interval bound 0.
    assert dual_bound(graph, lp_ball(np.zeros(1), 2.0), -np.ones((1, 1))).lower[0] == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("activation", ["Tanh", "LeakyRelu", "Gelu"])
def test_other_activations_are_sound(activation):
    attrs = {"LeakyRelu": {"alpha": 0.2}, "Gelu": {"approximate": "none"}}.get(activation, {})
    graph, box = dense_net([2, 5, 5, 2], 2, activation, **attrs), lp_ball(np.zeros(2), 0.8)
    sampled = evaluate(graph, np.random.default_rng(0).uniform(-0.8, 0.8, size=(4000, 2))) @ ROWS.T
    for method in METHODS:
        assert np.all(bound(graph, box, method, steps=50) <= sampled.min(axis=0))


def test_bounding_leaves_the_model_as_it_was():
    """Repeated entries of a row must stay apart: adding them up would round unseen."""
    builder = GraphBuilder()
    builder.add("Input", (), (1, 1), "x")
    builder.add("Select", ("x",), (1, 2), "s", indices=np.array([[0, 0]]))
    builder.add("Dense", ("s",), (1, 1), "y", weight=np.array([[2.0**53], [1.0]]), bias=np.zeros(1))
    graph = builder.finish(("x",), ("y",), dtype="float64")
    model = build_model(graph, lp_ball(np.ones(1), 0.0))
    data, indices = model.matrix.data.copy(), model.matrix.indices.copy()
    cost = model.cost(np.ones(1))
    duals = backward_multipliers(model, cost, parallel=True)
    assert safe_bound(model, cost, duals) <= 2**53 + 1
    assert np.array_equal(model.matrix.data, data) and np.array_equal(model.matrix.indices, indices)
    assert np.array_equal(backward_multipliers(model, cost, parallel=True), duals)
    assert lp_bound(graph, lp_ball(np.ones(1), 0.0), np.ones((1, 1))).lower[0] <= 2**53 + 1


def test_deployed_rounding_empty_sets_and_malformed_settings():
    graph, box = dense_net([3, 6, 6, 2], 1), lp_ball(np.zeros(3), 0.5)
    errors = {name: np.full(node.size, 1e-3) for name, node in graph.nodes.items() if node.op == "Dense"}
    deployed = dual_bound(graph, box, ROWS, rounding_error=errors)
    assert deployed.soundness is Soundness.IEEE_FLOAT
    assert np.all(deployed.lower < dual_bound(graph, box, ROWS).lower)
    impossible = {"z0": (np.full(6, 50.0), np.full(6, 60.0))}
    assert np.all(dual_bound(graph, box, ROWS, intermediate=impossible).lower == np.inf)
    with pytest.raises(SpecError, match="method"):
        dual_bound(graph, box, ROWS, settings=DualSettings("magic"))
