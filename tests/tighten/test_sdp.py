"""Semidefinite bounds: closed forms, ordering, and soundness of any multipliers in exact arithmetic."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import dense_net, exact_value

from verifier.errors import NetworkError, ShapeError, SpecError, UnsupportedOperator
from verifier.graph.evaluate import evaluate
from verifier.graph.ir import GraphBuilder
from verifier.outcome import Soundness
from verifier.spec.problem import lp_ball
from verifier.tighten.build import build_model
from verifier.tighten.dual import layerwise_bounds
from verifier.tighten.eigenvalues import smallest_eigenvalue_bound
from verifier.tighten.lp import lp_bound
from verifier.tighten.milp import milp_bound
from verifier.tighten.quadratic import Multipliers, quadratic_bound, quadratic_model
from verifier.tighten.sdp import SdpSettings, sdp_bound
from verifier.tighten.sdp_crown import best_multiplier, relu_offset_on_ball

ROWS = np.array([[1.0, -1.0], [-1.0, 1.0]])


def two_rotated_neurons():
    """y = -relu(x1 + x2) - relu(x1 - x2): on the unit box the minimum is -2, the LP's bound -3."""
    builder = GraphBuilder()
    builder.add("Input", (), (1, 2), "x")
    weight = np.array([[1.0, 1.0], [1.0, -1.0]])
    builder.add("Dense", ("x",), (1, 2), "z", weight=weight, bias=np.zeros(2))
    builder.add("Relu", ("z",), (1, 2), "h")
    builder.add("Dense", ("h",), (1, 1), "y", weight=-np.ones((2, 1)), bias=np.zeros(1))
    return builder.finish(("x",), ("y",))


@pytest.mark.parametrize("method", ["interior", "first-order"])
def test_one_hidden_layer_closed_form(method):
    """With s = 2h - z, s^2 = z^2: s_1^2 + s_2^2 = 2 (x1^2 + x2^2) <= 4, so the SDP's value is -(1 + sqrt 2)."""
    graph, box, row = two_rotated_neurons(), lp_ball(np.zeros(2), 1.0), np.ones((1, 1))
    exact = -(1.0 + np.sqrt(2.0))
    found = sdp_bound(graph, box, row, settings=SdpSettings(method, accuracy=1e-6))
    assert found.lower[0] <= exact + 1e-9
    assert found.lower[0] == pytest.approx(exact, abs=1e-5 if method == "interior" else 0.05)
    assert lp_bound(graph, box, row).lower[0] == pytest.approx(-3.0)
    assert found.soundness is Soundness.REAL_ARITHMETIC


@pytest.mark.parametrize("seed", range(4))
def test_between_lp_and_exact(seed):
    graph, box = dense_net([3, 6, 6, 2], seed), lp_ball(np.full(3, 0.1), 0.6)
    known = layerwise_bounds(graph, box)
    lp = lp_bound(graph, box, ROWS, intermediate=known).lower
    best = sdp_bound(graph, box, ROWS, intermediate=known)
    found = best.lower
    exact = milp_bound(graph, box, ROWS).upper
    assert np.all(lp <= found) and np.all(found <= exact)
    assert np.any(found > lp + 1e-3)
    assert set(best.notes) == {"optimal"} and np.allclose(found, best.claimed, rtol=1e-3, atol=1e-6)
    ascent = sdp_bound(graph, box, ROWS, intermediate=known, settings=SdpSettings("first-order", steps=200)).lower
    assert np.all(lp <= ascent) and np.all(ascent <= exact)


@given(st.integers(0, 10**6), st.floats(1e-3, 1e3))
@settings(max_examples=30, deadline=None)
def test_any_multipliers_give_a_sound_bound(seed, scale):
    rng = np.random.default_rng(seed)
    graph, box = dense_net([2, 3, 3, 2], seed, quantum=2.0**-6), lp_ball(np.zeros(2), 1.0)
    form = quadratic_model(build_model(graph, box))
    cost = form.linear.cost(ROWS[0])
    multipliers = Multipliers(
        np.abs(rng.normal(size=form.lines.size)) * scale,
        rng.normal(size=form.post.size) * scale,
        np.abs(rng.normal(size=form.size + 1)) * scale * 10.0,
    )
    bound = quadratic_bound(form, cost, multipliers)
    assert bound > -np.inf
    for x in rng.uniform(-1, 1, size=(4, 2)):
        assert bound <= exact_value(graph, x, ROWS[0])


def test_multipliers_that_are_not_numbers_prove_nothing():
    form = quadratic_model(build_model(two_rotated_neurons(), lp_ball(np.zeros(2), 1.0)))
    cost = form.linear.cost(np.ones(1))
    bad = Multipliers(np.zeros(form.lines.size), np.full(form.post.size, np.nan), np.zeros(form.size + 1))
    assert quadratic_bound(form, cost, bad) == -np.inf
    huge = Multipliers(np.zeros(form.lines.size), np.full(form.post.size, 1e308), np.zeros(form.size + 1))
    assert quadratic_bound(form, cost, huge) < -1e300
    with pytest.raises(ShapeError, match="lengths"):
        quadratic_bound(form, cost, Multipliers(np.zeros(0), np.zeros(0), np.zeros(0)))


def test_pooling_residual_and_deployed_rounding():
    rng = np.random.default_rng(4)
    builder = GraphBuilder()
    builder.add("Input", (), (1, 4), "x")
    builder.add("Dense", ("x",), (1, 4), "z", weight=rng.normal(size=(4, 4)) * 0.5, bias=rng.normal(size=4) + 0.5)
    builder.add("Relu", ("z",), (1, 4), "h")
    builder.add("Dense", ("h",), (1, 4), "d", weight=rng.normal(size=(4, 4)) * 0.5, bias=np.zeros(4))
    builder.add("Add", ("d", "h"), (1, 4), "a")
    builder.add("Relu", ("a",), (1, 4), "r")
    builder.add("Reshape", ("r",), (1, 2, 2), "p")
    builder.add("ReduceMax", ("p",), (1, 2), "m", axes=(2,), keepdims=False)
    builder.add("Dense", ("m",), (1, 2), "y", weight=rng.normal(size=(2, 2)), bias=np.zeros(2))
    graph, box = builder.finish(("x",), ("y",), dtype="float64"), lp_ball(np.zeros(4), 0.5)
    sampled = (evaluate(graph, rng.uniform(-0.5, 0.5, size=(4000, 4))) @ ROWS.T).min(axis=0)
    found = sdp_bound(graph, box, ROWS)
    assert np.all(lp_bound(graph, box, ROWS).lower <= found.lower) and np.all(found.lower <= sampled)
    errors = {name: np.full(graph[name].size, 1e-3) for name in ("z", "d", "a", "y")}
    deployed = sdp_bound(graph, box, ROWS, rounding_error=errors)
    assert deployed.soundness is Soundness.IEEE_FLOAT and np.all(deployed.lower < found.lower)
    with pytest.raises(SpecError, match="relu is exact"):
        sdp_bound(graph, box, ROWS, rounding_error={"h": np.full(4, 1e-3)})


def test_interior_points_stopped_early_are_a_bound():
    graph, box = dense_net([3, 8, 8, 2], 1), lp_ball(np.zeros(3), 0.8)
    found = sdp_bound(graph, box, ROWS, settings=SdpSettings(time_limit_s=1e-6))
    assert found.notes == ("time limit",) * 2
    assert np.all(lp_bound(graph, box, ROWS).lower - 1e-9 <= found.lower)
    assert np.all(found.lower <= milp_bound(graph, box, ROWS).upper)


def test_what_does_not_fit_is_refused():
    graph, box = dense_net([3, 8, 8, 2], 1), lp_ball(np.zeros(3), 0.8)
    with pytest.raises(UnsupportedOperator, match="relu only"):
        sdp_bound(dense_net([2, 3, 2], 0, "Tanh"), lp_ball(np.zeros(2), 0.1), ROWS)
    with pytest.raises(SpecError, match="method"):
        sdp_bound(graph, box, ROWS, settings=SdpSettings("magic"))


@given(st.integers(0, 10**6), st.integers(1, 12), st.floats(-20, 20))
@settings(max_examples=60, deadline=None)
def test_eigenvalue_bound_is_below_every_exact_rayleigh_quotient(seed, size, log_scale):
    rng = np.random.default_rng(seed)
    factor = rng.normal(size=(size, max(1, size // 2)))
    matrix = (factor @ factor.T) * 10.0**log_scale
    matrix = 0.5 * (matrix + matrix.T)
    bound = Fraction(smallest_eigenvalue_bound(matrix))
    _, vectors = np.linalg.eigh(matrix)
    for w in vectors.T:
        exact = [Fraction(float(v)) for v in w]
        form = sum(Fraction(float(matrix[i, j])) * exact[i] * exact[j] for i in range(size) for j in range(size))
        assert bound * sum(v * v for v in exact) <= form
    assert float(bound) >= np.linalg.eigvalsh(matrix)[0] - 1e-9 * (1e-280 + np.abs(matrix).max())


def test_eigenvalue_bound_refuses_what_it_cannot_judge():
    with pytest.raises(NetworkError, match="symmetric"):
        smallest_eigenvalue_bound(np.array([[1.0, 2.0], [0.0, 1.0]]))
    with pytest.raises(NetworkError, match="finite"):
        smallest_eigenvalue_bound(np.array([[np.nan]]))
    assert smallest_eigenvalue_bound(np.zeros((3, 3))) <= 0.0


@given(st.integers(0, 10**6), st.integers(1, 6), st.floats(0.01, 3.0))
@settings(max_examples=50, deadline=None)
def test_sdp_crown_offset_holds_on_the_ball(seed, size, radius):
    rng = np.random.default_rng(seed)
    coeffs, slope, center = rng.normal(size=(3, size))
    direction = rng.normal(size=(2000, size))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    x = center + radius * direction * rng.random((2000, 1)) ** (1 / size) * (1 - 1e-12)
    # The samples' own evaluation rounds: 1e-13 of its size belongs to it, not to the offset.
    value = np.maximum(x, 0) @ coeffs - x @ slope
    chosen = best_multiplier(coeffs, slope, center, radius)
    best = relu_offset_on_ball(coeffs, slope, center, radius, chosen)
    for multiplier in (0.1, 1.0, 10.0):
        offset = relu_offset_on_ball(coeffs, slope, center, radius, multiplier)
        assert np.all(offset <= value + 1e-13 * (1 + np.abs(value)))
        assert offset <= best + 1e-6 * (1 + abs(best))
    assert np.all(best <= value + 1e-13 * (1 + np.abs(value)))
