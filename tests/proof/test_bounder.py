"""The checker's bounds hold whatever slopes and multipliers they are given, for exact and for deployed arithmetic."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.proof.nets import mixed_net
from tests.tighten.nets import dense_net, layers_of
from verifier.graph.evaluate import evaluate_all
from verifier.graph.ir import GraphBuilder
from verifier.proof.bounder import Bounder, divided
from verifier.proof.program import Program


def sampled(graph, lower, upper, count, rng):
    points = lower + (upper - lower) * rng.random((count, len(lower)))
    corners = rng.random((count, len(lower))) < 0.5
    return np.concatenate([points, np.where(corners, lower, upper)])


MIDDLES = st.sampled_from(["LeakyRelu", "Tanh", "Sigmoid", "ReduceMax"])


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000), radius=st.sampled_from([0.01, 0.1, 0.5]), rounded=st.booleans(), middle=MIDDLES
)  # fmt: skip
def test_intervals_hold_every_value(seed, radius, rounded, middle):
    graph, rng = mixed_net(seed, middle), np.random.default_rng(seed)
    lower, upper = np.full(16, 0.5 - radius), np.full(16, 0.5 + radius)
    domain = Bounder(Program(graph, rounded=rounded)).enclose(lower[None], upper[None])
    for x in sampled(graph, lower, upper, 20, rng):
        for name, value in evaluate_all(graph, x).items():
            flat = value.reshape(-1)
            assert np.all(domain.lower[name][0] <= flat) and np.all(flat <= domain.upper[name][0]), name


@pytest.mark.parametrize("middle", ["LeakyRelu", "Tanh", "ReduceMax"])
def test_boxes_do_not_depend_on_those_beside_them(middle):
    """A neuron that is stable in one box and not in the other must not get better bounds there."""
    bounder, middles = Bounder(Program(mixed_net(3, middle), rounded=True)), np.full((1, 16), 0.5)
    radius = np.array([[0.01], [0.6], [0.1]])
    both = bounder.enclose(middles - radius, middles + radius)
    for k in range(3):
        alone = bounder.enclose(middles - radius[k], middles + radius[k])
        for name in alone.lower:
            assert np.allclose(both.lower[name][k], alone.lower[name][0], rtol=0, atol=1e-11), name
            assert np.allclose(both.upper[name][k], alone.upper[name][0], rtol=0, atol=1e-11), name


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), middle=MIDDLES, data=st.data())
def test_forms_hold_on_every_subdomain_for_any_parameters(seed, middle, data):
    """Random slopes, multipliers and splits: the bound is below every value met where the splits hold."""
    graph, rng = mixed_net(seed, middle), np.random.default_rng(seed)
    radius = data.draw(st.sampled_from([0.05, 0.2, 0.6]))
    lower, upper = np.full(16, 0.5 - radius), np.full(16, 0.5 + radius)
    program = Program(graph, rounded=True)
    bounder = Bounder(program)
    root = bounder.enclose(lower[None], upper[None])
    b, rows = 6, rng.normal(size=(2, 3))
    slopes = {n: rng.random((b, program.steps[n].size)) for n in program.neurons}
    signs = {n: rng.choice([0, 0, 1, -1], size=(b, program.steps[n].size)) for n in program.neurons}
    scale = data.draw(st.sampled_from([0.0, 0.1, 3.0, 1e6]))
    betas = {n: scale * rng.random(s.shape) * s for n, s in signs.items()}
    domain = divided(root, signs, slopes, betas)
    bounds = bounder.forms(domain, rows)
    assert bounds.shape == (b, 2) and not np.isnan(bounds).any()
    plain = bounder.forms(root, rows)
    for x in sampled(graph, lower, upper, 60, rng):
        values = {k: v.reshape(-1) for k, v in evaluate_all(graph, x).items()}
        reached = rows @ values["y"]
        assert np.all(plain[0] <= reached)
        for k in range(b):
            if all(np.all(signs[n][k] * values[n] >= 0) for n in signs):
                assert np.all(bounds[k] <= reached)


def test_multipliers_of_true_splits_help():
    """One neuron, split: without its multiplier the bound of -z - relu(z) over z <= 0 misses 0, with it it is met."""
    graph = dense_net((2, 1, 1), seed=1)
    program = Program(graph, rounded=False)
    bounder = Bounder(program)
    root = bounder.enclose(np.full((1, 2), -1.0), np.full((1, 2), 1.0))
    (name,) = program.neurons
    sign = {name: np.array([[-1], [-1]])}
    weight, bias = (part.item() for part in layers_of(graph)[1])
    rows = np.array([[np.sign(weight)]])
    beta = {name: -np.array([[0.0], [1.0]])}
    found = bounder.forms(divided(root, sign, {}, beta), rows)[:, 0]
    exact = np.sign(weight) * bias
    assert found[0] == pytest.approx(exact) and found[1] < exact
    # the relu is 0 below the split, so that any multiplier can only lose here; above it, it is z and one helps
    rising = {name: np.array([[1], [1]])}
    gains = {name: np.array([[0.0], [abs(weight)]])}
    found = bounder.forms(divided(root, rising, {}, gains), rows)[:, 0]
    assert found[1] == pytest.approx(exact) and found[0] < exact


def exact_value(graph, x):
    """A dense relu network in rational arithmetic."""
    layers = layers_of(graph)
    h = [Fraction(float(v)) for v in x]
    for k, (weight, bias) in enumerate(layers):
        z = [
            sum((Fraction(float(weight[i, j])) * h[i] for i in range(len(h))), Fraction(float(bias[j])))
            for j in range(weight.shape[1])
        ]
        h = z if k == len(layers) - 1 else [max(v, Fraction(0)) for v in z]
    return h


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.sampled_from([1.0, 1e8, 1e-8]))
def test_bounds_of_a_point_are_below_the_exact_value(seed, scale):
    """Where nothing is relaxed only rounding is left: bounds are below, and within it."""
    graph, rng = dense_net((3, 5, 5, 2), seed=seed), np.random.default_rng(seed)
    x = scale * rng.normal(size=3)
    bounder = Bounder(Program(graph, rounded=False))
    domain = bounder.enclose(x[None], x[None])
    value = exact_value(graph, x)
    for row in ([1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [1.0, -1.0]):
        exact = sum((Fraction(r) * v for r, v in zip(row, value, strict=True)), Fraction(0))
        bound = float(bounder.forms(domain, np.array([row]))[0, 0])
        assert Fraction(bound) <= exact
        assert float(exact) - bound <= 1e-9 * (1 + scale)


def test_deployed_rounding_is_counted():
    """Weights that cancel: the float32 program can give what the exact network cannot."""
    graph = dense_net((2, 2, 1), seed=0)
    wide = Program(graph, rounded=False)
    for layer in (wide.steps["z0"], wide.steps["z1"]):
        assert layer.share == 0.0
    deployed = Program(mixed_net(0), rounded=True)
    assert all(deployed.steps[n].share > 0 for n in ("c0", "c1", "sum", "d0", "y"))
    assert deployed.steps["r1"].share > 0 and deployed.steps["r0"].share == 0.0
    x = np.full((1, 16), 0.5)
    row = np.array([[1.0, 0.0, 0.0]])
    exact, rounded = (
        Bounder(Program(mixed_net(0), rounded=r)).forms(Bounder(Program(mixed_net(0), rounded=r)).enclose(x, x), row)[
            0, 0
        ]
        for r in (False, True)
    )
    assert rounded < exact - 1e-8


def test_summation_orders_of_float32_stay_inside():
    graph, rng = dense_net((64, 32, 1), seed=5), np.random.default_rng(0)
    single = [(w.astype(np.float32), b.astype(np.float32)) for w, b in layers_of(graph)]
    deployed = dense_like(single)
    x = rng.random(64).astype(np.float32)
    bounder = Bounder(Program(deployed, rounded=True))
    domain = bounder.enclose(x[None].astype(np.float64), x[None].astype(np.float64))
    low = bounder.forms(domain, np.array([[1.0], [-1.0]]))[0]
    for _ in range(200):
        h = x
        for k, (weight, bias) in enumerate(single):
            order = rng.permutation(len(h))
            z = np.zeros(weight.shape[1], np.float32)
            for i in order:
                z = (z + weight[i] * h[i]).astype(np.float32)
            z = (z + bias).astype(np.float32)
            h = z if k else np.maximum(z, 0)
        assert low[0] <= float(h[0]) <= -low[1]


def dense_like(layers):
    builder = GraphBuilder()
    last = builder.add("Input", (), (1, layers[0][0].shape[0]), "x")
    for k, (weight, bias) in enumerate(layers):
        last = builder.add("Dense", (last,), (1, weight.shape[1]), f"z{k}", weight=weight, bias=bias)
        if k + 1 < len(layers):
            last = builder.add("Relu", (last,), (1, weight.shape[1]), f"h{k}")
    return builder.finish(("x",), (last,))


def test_an_output_that_is_listed_twice():
    """Its coefficients are added up, which rounds: 2^53 and 1 on a value of 1 are more than 2^53."""
    builder = GraphBuilder()
    builder.add("Input", (), (1, 1), "x")
    graph = builder.finish(("x",), ("x", "x"), dtype="float64")
    bounder = Bounder(Program(graph, rounded=False))
    domain = bounder.enclose(np.ones((1, 1)), np.ones((1, 1)))
    bound = bounder.forms(domain, np.array([[-(2.0**53), -1.0]]))[0, 0]
    assert Fraction(bound) <= -(2**53) - 1 and bound > -(2.0**53) - 100


def test_overflow_proves_nothing():
    graph = dense_net((2, 3, 1), seed=2)
    bounder = Bounder(Program(graph, rounded=True))
    domain = bounder.enclose(np.full((1, 2), -1e308), np.full((1, 2), 1e308))
    assert not np.any(bounder.forms(domain, np.array([[1.0], [-1.0]])) > -np.inf)
