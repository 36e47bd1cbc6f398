"""Sparse maps, curves, enclosures and intervals against plain evaluation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verifier.errors import NetworkError, ShapeError, UnsupportedOperator
from verifier.graph.evaluate import evaluate, evaluate_all
from verifier.graph.ir import GraphBuilder, Node
from verifier.spec.problem import InputSet
from verifier.tighten.curves import curve_of
from verifier.tighten.enclosure import enclose
from verifier.tighten.intervals import Maps, propagate
from verifier.tighten.linear_maps import affine_map, move_indices

RNG = np.random.default_rng(7)


def conv_attrs(weight, strides, pads, dilations, groups, **extra):
    out = weight.shape[0] if "output_padding" not in extra else weight.shape[1] * groups
    bias = RNG.normal(size=out)
    return {
        "weight": weight,
        "bias": bias,
        "strides": strides,
        "pads": pads,
        "dilations": dilations,
        "groups": groups,
        **extra,
    }


AFFINE_CASES = {
    "dense": ("Dense", (2, 3), (2, 4), {"weight": RNG.normal(size=(3, 4)), "bias": RNG.normal(size=4)}),
    "block": ("BlockDense", (2, 3, 4), (2, 3, 5), {"weight": RNG.normal(size=(3, 4, 5))}),
    "scale": ("Scale", (1, 3, 2), (1, 3, 2), {"scale": RNG.normal(size=(3, 1)), "shift": np.array(0.5)}),
    "sum": ("ReduceSum", (2, 3, 4), (3, 1), None),
    "conv1d": ("Conv", (1, 2, 7), (1, 3, 4), conv_attrs(RNG.normal(size=(3, 2, 3)), (2,), (1, 1), (1,), 1)),
    "conv2d": (
        "Conv",
        (2, 4, 5, 6),
        (2, 6, 3, 2),
        conv_attrs(RNG.normal(size=(6, 2, 3, 2)), (2, 3), (1, 0, 1, 1), (1, 2), 2),
    ),
    "conv3d": (
        "Conv",
        (1, 1, 3, 3, 3),
        (1, 2, 2, 2, 2),
        conv_attrs(RNG.normal(size=(2, 1, 2, 2, 2)), (1, 1, 1), (0,) * 6, (1, 1, 1), 1),
    ),
    "transposed": (
        "ConvTranspose",
        (1, 4, 3, 3),
        (1, 6, 7, 6),
        conv_attrs(RNG.normal(size=(4, 3, 3, 2)), (2, 2), (0, 0, 1, 0), (1, 1), 2, output_padding=(1, 0)),
    ),
}


def one_node(op, shape_in, shape_out, attrs):
    builder = GraphBuilder()
    builder.add("Input", (), shape_in, "x")
    if op == "ReduceSum":
        attrs = {"axes": (0, -1), "keepdims": False}
        shape_out = (shape_in[1],)
    builder.add(op, ("x",), shape_out, "y", **attrs)
    return builder.finish(("x",), ("y",))


@pytest.mark.parametrize("case", AFFINE_CASES)
def test_affine_maps_equal_evaluation(case):
    graph = one_node(*AFFINE_CASES[case])
    matrix, offset = affine_map(graph, graph["y"])
    x = RNG.normal(size=(4, graph.input_size))
    assert np.allclose(x @ matrix.toarray().T + offset, evaluate(graph, x), rtol=0, atol=1e-12)


def test_moves_equal_evaluation():
    builder = GraphBuilder()
    builder.add("Input", (), (2, 3), "x")
    builder.add("Transpose", ("x",), (3, 2), "t", perm=(1, 0))
    builder.add("Reshape", ("t",), (1, 6), "r")
    builder.add("Select", ("r",), (1, 3), "s", indices=np.array([[4, -1, 0]]))
    builder.add("Concat", ("r", "s"), (1, 9), "c", axis=1)
    graph = builder.finish(("x",), ("c",))
    x = RNG.normal(size=6)
    values = {k: v.reshape(-1) for k, v in evaluate_all(graph, x).items()}
    for name in ("t", "r", "s", "c"):
        node = graph[name]
        source = np.concatenate([values[i] for i in node.inputs])
        index = move_indices(graph, node)
        assert np.array_equal(np.where(index < 0, 0.0, source[index]), values[name])


CURVES = {
    "Relu": {},
    "LeakyRelu": {"alpha": 0.1},
    "PRelu": {"slope": np.array([[0.2, -0.3, 1.5, 0.0, 0.7]])},
    "Abs": {},
    "Clip": {"lower": np.array(-0.5), "upper": np.array(1.0)},
    "HardSigmoid": {"alpha": 0.2, "beta": 0.5},
    "HardSwish": {},
    "Sigmoid": {},
    "Tanh": {},
    "Atan": {},
    "Erf": {},
    "Softsign": {},
    "Softplus": {},
    "Exp": {},
    "Elu": {"alpha": 1.0},
    "Celu": {"alpha": 0.5},
    "Selu": {"alpha": 1.6733, "gamma": 1.0507},
    "Silu": {},
    "Gelu": {"approximate": "none"},
    "Pow": {"exponent": 3.0},
}
INTERVALS = st.tuples(st.floats(-8, 8), st.floats(0, 10)).map(lambda p: (p[0], p[0] + p[1]))


@pytest.mark.parametrize("op", CURVES)
@given(interval=INTERVALS, a=st.floats(-3, 3), b=st.floats(-3, 3))
@settings(max_examples=25, deadline=None)
def test_curve_minimum_and_lines_are_sound_and_tight(op, interval, a, b):
    curve = curve_of(Node("y", op, ("x",), (1, 5), CURVES[op]))
    lower, upper = np.full(5, interval[0]), np.full(5, interval[1])
    points = np.clip(np.linspace(lower, upper, 301, axis=1), lower[:, None], upper[:, None])
    points = np.concatenate([points, curve.segment_ends(lower, upper)], axis=1)
    values = curve.value(points)
    found = curve.minimum(np.full(5, a), np.full(5, b), lower, upper)
    assert np.all(found[:, None] <= a * points + b * values)
    slack = (a * points + b * values).min(axis=1) - found
    assert np.all(slack <= 1e-3 * (1.0 + np.abs(values).max())), "a minimum this loose is a mistake"
    low, high = curve.range(lower, upper)
    assert np.all(low[:, None] <= values) and np.all(values <= high[:, None])
    lines = enclose(curve, lower, upper)
    for k in range(lines.slope_lower.shape[1]):
        below = lines.slope_lower[:, k : k + 1] * points + lines.offset_lower[:, k : k + 1]
        above = lines.slope_upper[:, k : k + 1] * points + lines.offset_upper[:, k : k + 1]
        # Evaluating the line rounds as well: two units of its terms.
        slack = 2.0**-51 * (np.abs(lines.slope_lower[:, k : k + 1] * points) + np.abs(below))
        assert np.all(below - slack <= values)
        slack = 2.0**-51 * (np.abs(lines.slope_upper[:, k : k + 1] * points) + np.abs(above))
        assert np.all(values <= above + slack)


def test_relu_lines_are_the_triangle():
    curve = curve_of(Node("y", "Relu", ("x",), (1, 1), {}))
    lines = enclose(curve, np.array([-1.0]), np.array([3.0]))
    assert set(lines.slope_lower[0]) == {0.0, 1.0}
    assert np.all(lines.offset_lower[0] == pytest.approx(0.0, abs=1e-14))
    assert np.all(lines.slope_upper[0] == 0.75) and lines.offset_upper[0][0] == pytest.approx(0.75)


def test_intervals_contain_samples_and_meet_given_bounds():
    graph = one_node(*AFFINE_CASES["conv2d"])
    lower = RNG.normal(size=graph.input_size)
    inputs = InputSet(lower, lower + 0.5)
    maps = Maps(graph)
    low, high = propagate(maps, inputs)["y"]
    x = lower + 0.5 * RNG.random((50, graph.input_size))
    y = evaluate(graph, x)
    assert np.all(low <= y) and np.all(y <= high)
    middle = 0.5 * (low + high)
    assert np.array_equal(propagate(maps, inputs, {"y": (middle, high)})["y"][0], middle)
    assert propagate(maps, inputs, {"y": (high + 1, high + 2)}) is None


def test_malformed_inputs_are_named():
    graph = one_node(*AFFINE_CASES["dense"])
    box = InputSet(np.zeros(6), np.ones(6))
    with pytest.raises(ShapeError, match="expected 6 features"):
        propagate(Maps(graph), InputSet(np.zeros(5), np.ones(5)))
    with pytest.raises(ShapeError, match="expected 8 numbers"):
        propagate(Maps(graph), box, {"y": (np.zeros(3), np.ones(3))})
    with pytest.raises(NetworkError, match="NaN"):
        propagate(Maps(graph), box, {"y": (np.full(8, np.nan), np.ones(8))})
    with pytest.raises(ShapeError, match="no node 'q'"):
        Maps(graph, {"q": np.zeros(1)})
    with pytest.raises(NetworkError, match=">= 0"):
        Maps(graph, {"y": np.full(8, -1.0)})
    with pytest.raises(UnsupportedOperator, match="Floor"):
        Maps(one_node("Floor", (1, 2), (1, 2), {}))
    with pytest.raises(NetworkError, match="not finite"):
        propagate(Maps(one_node("Exp", (1, 2), (1, 2), {})), InputSet(np.zeros(2), np.full(2, 1e4)))
