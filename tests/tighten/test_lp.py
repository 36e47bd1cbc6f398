"""LP and exact bounds against enumeration, rational arithmetic, closed forms and each other."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import dense_net, exact_minimum, exact_value, layers_of

from verifier.errors import ShapeError, SpecError
from verifier.graph.evaluate import evaluate
from verifier.graph.ir import GraphBuilder
from verifier.outcome import Soundness
from verifier.spec.problem import Ball, InputSet, lp_ball
from verifier.tighten.build import build_model
from verifier.tighten.lp import lp_bound, tighten_intermediate
from verifier.tighten.milp import MilpSettings, milp_bound
from verifier.tighten.safe_bound import safe_bound

ROWS = np.array([[1.0, -1.0], [-1.0, 1.0], [1.0, 0.5]])


@pytest.mark.parametrize("seed", range(4))
def test_interval_lp_exact_ordering_on_tiny_nets(seed):
    graph, box = dense_net([3, 4, 3, 2], seed), lp_ball(np.full(3, 0.1), 0.6)
    exact = np.array([exact_minimum(graph, box, row) for row in ROWS])
    lp = lp_bound(graph, box, ROWS)
    plain = np.array([_interval(graph, box, row) for row in ROWS])
    milp = milp_bound(graph, box, ROWS)
    assert np.all(plain <= lp.lower)
    assert np.all(lp.lower <= milp.upper)
    assert np.all(lp.lower <= milp.lower + 1e-9)
    assert np.all(milp.lower <= milp.upper)
    # Closeness to the enumeration's own LP tolerance; soundness is the exact test below.
    assert np.allclose(milp.lower, exact, rtol=0, atol=2e-6)
    assert lp.soundness is Soundness.REAL_ARITHMETIC


@given(st.integers(0, 10**6), st.sampled_from([[2, 3, 2], [2, 3, 3, 2], [3, 4, 2]]), st.floats(0.0, 2.0))
@settings(max_examples=15, deadline=None)
def test_bounds_never_exceed_exact_rational_values(seed, sizes, radius):
    graph = dense_net(sizes, seed, quantum=2.0**-6)
    box = lp_ball(np.zeros(sizes[0]), radius)
    lp = lp_bound(graph, box, ROWS[:1]).lower[0]
    tree = milp_bound(graph, box, ROWS[:1], settings=MilpSettings(guide=None))
    corners = [np.array(c) for c in product(*zip(box.lower, box.upper, strict=True))]
    for x in [*corners, tree.points[0], np.zeros(sizes[0])]:
        value = exact_value(graph, x, ROWS[0])
        assert lp <= value
        assert tree.lower[0] <= value


@given(st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_any_multipliers_give_a_sound_bound(seed):
    rng = np.random.default_rng(seed)
    graph, box = dense_net([2, 3, 3, 2], seed, quantum=2.0**-6), lp_ball(np.zeros(2), 1.0)
    model = build_model(graph, box)
    duals = rng.normal(size=model.row_count) * 10.0 ** rng.integers(-3, 4)
    duals[rng.random(duals.size) < 0.1] = rng.choice([np.nan, np.inf, -np.inf, 0.0])
    bound = safe_bound(model, model.cost(ROWS[0]), duals)
    assert not np.isnan(bound)
    for x in rng.uniform(-1, 1, size=(5, 2)):
        assert bound <= exact_value(graph, x, ROWS[0])


def test_rounding_decides_and_the_bound_stays_below():
    """Huge cancelling weights: the true value is 1, floats may lose it entirely."""
    builder = GraphBuilder()
    builder.add("Input", (), (1, 2), "x")
    weight = np.array([[2.0**60, -(2.0**60)], [1.0, 3.0]])
    builder.add("Dense", ("x",), (1, 2), "z", weight=weight, bias=np.array([0.5, 0.25]))
    builder.add("Relu", ("z",), (1, 2), "h")
    builder.add("Dense", ("h",), (1, 1), "y", weight=np.array([[1.0], [1.0]]), bias=np.array([-(2.0**60)]))
    graph = builder.finish(("x",), ("y",), dtype="float64")
    box = InputSet(np.array([1.0, -0.3]), np.array([1.0 + 2.0**-40, 0.3]))
    row = np.ones((1, 1))
    for bound in (lp_bound(graph, box, row).lower[0], milp_bound(graph, box, row).lower[0]):
        for x in product(*zip(box.lower, box.upper, strict=True)):
            assert bound <= exact_value(graph, np.array(x), row[0])


def test_highs_and_cvxpy_agree():
    graph, box = dense_net([4, 8, 8, 2], 3), lp_ball(np.zeros(4), 0.4)
    highs, other = lp_bound(graph, box, ROWS), lp_bound(graph, box, ROWS, solver="CLARABEL")
    assert np.allclose(highs.lower, other.lower, rtol=0, atol=1e-6)
    guided = milp_bound(graph, box, ROWS[:1], settings=MilpSettings(guide="HIGHS"))
    alone = milp_bound(graph, box, ROWS[:1], settings=MilpSettings(guide=None))
    native = milp_bound(graph, box, ROWS[:1])
    assert guided.lower == pytest.approx(alone.lower, abs=3e-6)
    assert native.guides[0].lower == pytest.approx(native.lower[0], abs=1e-5)
    assert guided.guides[0].lower == pytest.approx(native.lower[0], abs=1e-5)


def _interval(graph, box, row):
    model = build_model(graph, box)
    return safe_bound(model, model.cost(row), np.zeros(model.row_count))


@pytest.mark.parametrize("activation", ["LeakyRelu", "Clip", "Abs", "HardSigmoid", "Sigmoid", "Tanh", "Gelu"])
def test_other_activations(activation):
    attrs = {
        "LeakyRelu": {"alpha": 0.1},
        "Clip": {"lower": np.array(0.0), "upper": np.array(0.5)},
        "HardSigmoid": {"alpha": 0.5, "beta": 0.5},
        "Gelu": {"approximate": "none"},
    }.get(activation, {})
    graph, box = dense_net([2, 4, 4, 2], 5, activation, **attrs), lp_ball(np.zeros(2), 1.0)
    samples = evaluate(graph, np.random.default_rng(0).uniform(-1, 1, size=(4000, 2))) @ ROWS[0]
    lp = lp_bound(graph, box, ROWS[:1]).lower[0]
    tree = milp_bound(graph, box, ROWS[:1], settings=MilpSettings(gap_rel=1e-2, time_limit_s=20.0))
    assert _interval(graph, box, ROWS[0]) <= lp <= samples.min()
    assert tree.lower[0] <= samples.min()
    assert tree.upper[0] - tree.lower[0] <= 2e-2
    assert tree.upper[0] <= samples.min() + 2e-2


def pooled_net():
    rng = np.random.default_rng(2)
    builder = GraphBuilder()
    builder.add("Input", (), (1, 1, 4, 4), "x")
    builder.add(
        "Conv",
        ("x",),
        (1, 2, 4, 4),
        "c",
        weight=rng.normal(size=(2, 1, 3, 3)) * 0.5,
        bias=rng.normal(size=2),
        strides=(1, 1),
        pads=(1, 1, 1, 1),
        dilations=(1, 1),
        groups=1,
    )
    builder.add("Relu", ("c",), (1, 2, 4, 4), "r")
    index = np.arange(32).reshape(1, 2, 2, 2, 2, 2).transpose(0, 1, 2, 4, 3, 5).reshape(1, 2, 2, 2, 4)
    builder.add("Select", ("r",), index.shape, "w", indices=index)
    builder.add("ReduceMax", ("w",), (1, 2, 2, 2), "m", axes=(-1,), keepdims=False)
    builder.add("Reshape", ("m",), (1, 8), "f")
    builder.add("Dense", ("f",), (1, 8), "d", weight=rng.normal(size=(8, 8)) * 0.3, bias=np.zeros(8))
    builder.add("Add", ("d", "f"), (1, 8), "a")
    builder.add("Relu", ("a",), (1, 8), "r2")
    builder.add("Abs", ("a",), (1, 8), "r3")
    builder.add("Concat", ("r2", "r3"), (1, 16), "k", axis=1)
    builder.add("Dense", ("k",), (1, 2), "y", weight=rng.normal(size=(16, 2)), bias=np.zeros(2))
    return builder.finish(("x",), ("y",), dtype="float64")


def test_convolution_pooling_residual_and_shared_preactivations():
    graph, box = pooled_net(), lp_ball(np.full(16, 0.2), 0.1)
    samples = evaluate(graph, np.random.default_rng(1).uniform(0.1, 0.3, size=(3000, 16))) @ ROWS.T
    lp = lp_bound(graph, box, ROWS)
    assert np.all(lp.lower <= samples.min(axis=0))
    tree = milp_bound(graph, box, ROWS[:1], settings=MilpSettings(time_limit_s=20.0, gap_rel=1e-4))
    assert lp.lower[0] <= tree.lower[0] <= samples[:, 0].min()
    assert tree.upper[0] - tree.lower[0] <= 2e-4 * max(1.0, abs(tree.upper[0]))


def test_linear_networks_over_balls_have_closed_forms():
    graph = dense_net([3, 2], 4)
    weight, bias = layers_of(graph)[0]
    center, row = np.array([0.3, -0.2, 0.5]), ROWS[0]
    w, offset = weight @ row, float(bias @ row)
    for p, dual in ((1, np.abs(w).max()), (2, np.linalg.norm(w)), (np.inf, np.abs(w).sum())):
        exact = offset + w @ center - 0.5 * dual
        found = lp_bound(graph, lp_ball(center, 0.5, p), row).lower[0]
        assert found <= exact + 1e-15 and found == pytest.approx(exact, abs=2e-5)
    scaled = InputSet(center - 2, center + 2, ball=Ball(center, 0.5, 2.0, np.array([1.0, 2.0, 3.0])))
    exact = offset + w @ center - 0.5 * np.linalg.norm(w * [1.0, 2.0, 3.0])
    found = lp_bound(graph, scaled, row).lower[0]
    assert found <= exact + 1e-15 and found == pytest.approx(exact, abs=1e-4)
    budget = lp_bound(graph, lp_ball(center, 1, 0, valid=(-1, 1)), row).lower[0]
    moves = np.where(w > 0, w * (center + 1), -w * (1 - center))
    assert budget <= offset + w @ center - moves.max() + 1e-15
    assert budget == pytest.approx(offset + w @ center - moves.max(), abs=1e-9)


def test_half_spaces_tighten_and_empty_sets_are_proved():
    graph = dense_net([2, 4, 2], 1)
    box = InputSet(-np.ones(2), np.ones(2))
    cut = InputSet(-np.ones(2), np.ones(2), np.array([[1.0, 1.0]]), np.array([-1.0]))
    empty = InputSet(-np.ones(2), np.ones(2), np.array([[1.0, 1.0]]), np.array([-2.5]))
    assert np.all(lp_bound(graph, cut, ROWS).lower >= lp_bound(graph, box, ROWS).lower)
    assert np.all(lp_bound(graph, empty, ROWS).lower == np.inf)
    assert np.all(milp_bound(graph, empty, ROWS).lower == np.inf)
    contradiction = {"z0": (np.full(4, 90.0), np.full(4, 99.0))}
    found = lp_bound(graph, box, ROWS, intermediate=contradiction)
    assert np.all(found.lower == np.inf) and found.model is None


def test_tightened_intermediate_bounds_are_sound_and_help():
    graph, box = dense_net([3, 6, 6, 2], 8), lp_ball(np.zeros(3), 0.8)
    tight = tighten_intermediate(graph, box, {"z1": np.arange(6)})
    x = np.random.default_rng(0).uniform(-0.8, 0.8, size=(4000, 3))
    from verifier.graph.evaluate import evaluate_all

    z1 = evaluate_all(graph, x)["z1"].reshape(4000, 6)
    assert np.all(tight["z1"][0] <= z1.min(axis=0)) and np.all(tight["z1"][1] >= z1.max(axis=0))
    before, after = lp_bound(graph, box, ROWS), lp_bound(graph, box, ROWS, intermediate=tight)
    assert np.all(after.lower >= before.lower - 1e-9) and np.any(after.lower > before.lower + 1e-4)
    untouched = tighten_intermediate(graph, box, {"z1": np.arange(6)}, time_limit_s=0.0)
    assert np.all(untouched["z1"][0] <= tight["z1"][0])


def test_rounding_error_covers_the_float32_program():
    graph, box = dense_net([3, 6, 6, 2], 8), lp_ball(np.zeros(3), 0.8)
    layers = [(w.astype(np.float32), b.astype(np.float32)) for w, b in layers_of(graph)]
    builder = GraphBuilder()
    builder.add("Input", (), (1, 3), "x")
    last, size, errors = "x", np.full(3, 0.8), {}
    for k, (w, b) in enumerate(layers):
        last = builder.add("Dense", (last,), (1, len(b)), f"z{k}", weight=w, bias=b)
        size = np.abs(w.astype(float)).T @ size + np.abs(b.astype(float))
        errors[last] = (len(w) + 2) * 2.0**-23 * size
        if k < 2:
            last = builder.add("Relu", (last,), (1, len(b)), f"h{k}")
    graph = builder.finish(("x",), (last,))
    real, deployed = lp_bound(graph, box, ROWS), lp_bound(graph, box, ROWS, rounding_error=errors)
    assert deployed.soundness is Soundness.IEEE_FLOAT
    assert np.all(deployed.lower < real.lower) and np.all(deployed.lower > real.lower - 1e-3)
    x = np.random.default_rng(0).uniform(-0.8, 0.8, size=(2000, 3)).astype(np.float32)
    y = evaluate(graph, x, "float32").astype(np.float64) @ ROWS.T
    assert np.all(deployed.lower <= y.min(axis=0))
    tree = milp_bound(graph, box, ROWS[:1], rounding_error=errors)
    assert tree.lower[0] <= y[:, 0].min()


def test_solvers_print_nothing(capfd):
    graph, box = dense_net([2, 4, 2], 1), lp_ball(np.zeros(2), 0.5)
    lp_bound(graph, box, ROWS)
    milp_bound(graph, box, ROWS)
    assert capfd.readouterr() == ("", "")


def test_limits_and_malformed_inputs():
    graph, box = dense_net([3, 6, 6, 2], 8), lp_ball(np.zeros(3), 0.8)
    hurried = lp_bound(graph, box, ROWS, time_limit_s=0.0)
    assert np.all(hurried.lower == [_interval(graph, box, row) for row in ROWS])
    assert "no time" in hurried.notes[0]
    assert milp_bound(graph, box, ROWS, settings=MilpSettings(time_limit_s=0.0)).lower.shape == (3,)
    decided = milp_bound(graph, box, ROWS[:1], settings=MilpSettings(target=-100.0, guide=None))
    assert decided.leaves[0] == 1 and decided.lower[0] > -100
    with pytest.raises(ShapeError, match="coeffs"):
        lp_bound(graph, box, np.ones((1, 3)))
    with pytest.raises(SpecError, match="finite"):
        lp_bound(graph, box, np.array([np.nan, 1.0]))
    with pytest.raises(SpecError, match="solver"):
        lp_bound(graph, box, ROWS, solver="NOSUCH")
    with pytest.raises(ShapeError, match="no nodes"):
        tighten_intermediate(graph, box, {"q": np.arange(2)})
    with pytest.raises(ShapeError, match="positions"):
        tighten_intermediate(graph, box, {"z1": np.array([6])})
    with pytest.raises(SpecError, match="gap_rel"):
        milp_bound(graph, box, ROWS, settings=MilpSettings(gap_rel=0.0))
