"""Every named method: published order, soundness against samples with tolerance zero, errors instead of bounds."""

from itertools import pairwise

import numpy as np
import pytest
from nets import dense_net, exact_minimum

from verifier.errors import ShapeError, SpecError, UnsupportedOperator
from verifier.graph.evaluate import evaluate
from verifier.graph.ir import GraphBuilder
from verifier.outcome import Soundness
from verifier.spec.problem import Case, Clause, InputSet, Problem, lp_ball
from verifier.tighten.methods import METHODS, BoundSession, MethodSettings, bounds

ROWS = np.array([[1.0, -1.0], [-1.0, 1.0], [1.0, 0.5]])
CHAIN = ("ibp", "crown", "alpha-crown", "lp", "milp")
FAST = MethodSettings(steps=60, iterations=40)


def problem_of(inputs, rows=ROWS, limits=0.0):
    clauses = tuple(Clause(r, np.array([limits]), np.array([False])) for r in rows)
    return Problem((Case(inputs, clauses),), rows.shape[1])


def sampled(graph, inputs, count=3000):
    x = np.random.default_rng(0).uniform(inputs.lower, inputs.upper, size=(count, inputs.size))
    if inputs.ball is not None:
        move = x - inputs.ball.center
        size = np.linalg.norm(move, ord=inputs.ball.p, axis=1, keepdims=True)
        x = inputs.ball.center + move * np.minimum(1.0, inputs.ball.radius * (1 - 1e-12) / size)
    return (evaluate(graph, x) @ ROWS.T).min(axis=0)


@pytest.mark.parametrize("seed", range(3))
def test_published_order_and_exactness_on_small_nets(seed):
    graph, box = dense_net([3, 4, 3, 2], seed), lp_ball(np.full(3, 0.1), 0.6)
    session = BoundSession(graph, problem_of(box), FAST)
    found = {name: session.bound(name).lower for name in METHODS if name != "sdp-crown"}
    for weaker, stronger in pairwise(CHAIN):
        assert np.all(found[weaker] <= found[stronger]), (weaker, stronger)
    assert np.all(found["ibp"] <= found["fast-lin"])
    assert np.array_equal(found["fast-lin"], found["cnn-cert"])
    assert np.allclose(found["deeppoly"], found["crown"], rtol=0, atol=1e-6)
    assert np.all(found["lagrangian"] <= found["lp"] + 1e-6)
    assert np.all(found["alpha-crown"] <= found["planes"])
    exact = np.array([exact_minimum(graph, box, row) for row in ROWS])
    assert np.allclose(found["milp"], exact, rtol=0, atol=1e-5)
    for name, lower in found.items():
        assert np.all(lower <= sampled(graph, box)), name
        assert np.all(lower <= exact + 1e-9), name


def test_planes_beat_the_linear_program_where_inputs_are_many():
    box = lp_ball(np.full(12, 0.1), 0.4)
    for seed in range(3):
        session = BoundSession(dense_net([12, 40, 2], seed), problem_of(box), MethodSettings(steps=150, iterations=40))
        gains = session.bound("planes").lower - session.bound("lp").lower
        assert np.all(gains > 0.05)


def test_crown_beats_fast_lin_on_average():
    """Row by row the two are incomparable; the published order is that of averages over networks."""
    box, gains = lp_ball(np.zeros(8), 0.2), []
    for seed in range(12):
        session = BoundSession(dense_net([8, 24, 24, 2], seed), problem_of(box), FAST)
        gains.append((session.bound("crown").lower - session.bound("fast-lin").lower).mean())
    assert np.mean(gains) > 0.0


def test_wong_kolter_is_the_dual_of_fast_lin():
    graph, box = dense_net([4, 8, 8, 2], 5), lp_ball(np.zeros(4), 0.4)
    session = BoundSession(graph, problem_of(box), FAST)
    primal, dual = session.bound("fast-lin").lower, session.bound("wong-kolter").lower
    assert np.all(primal <= dual) and np.allclose(primal, dual, rtol=0, atol=1e-5)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_sdp_crown_beats_crown_on_l2_balls(seed):
    # Enough inputs that the ball is far smaller than its box, whose corner alpha-CROWN cuts off as well.
    graph, ball = dense_net([30, 24, 24, 2], seed), lp_ball(np.zeros(30), 1.0, 2)
    session = BoundSession(graph, problem_of(ball), FAST)
    crown, coupled = session.bound("crown").lower, session.bound("sdp-crown").lower
    assert np.all(crown <= coupled) and np.all(coupled > session.bound("alpha-crown").lower + 1e-3)
    assert np.all(coupled <= sampled(graph, ball))


#: What knows every elementwise function.
GENERAL = ("ibp", "cnn-cert", "deeppoly", "crown", "alpha-crown", "wong-kolter", "lagrangian", "lp")


@pytest.mark.parametrize("activation", ["Tanh", "Sigmoid"])
def test_curved_activations(activation):
    graph, box = dense_net([3, 5, 4, 2], 4, activation), lp_ball(np.zeros(3), 0.7)
    session = BoundSession(graph, problem_of(box), MethodSettings(steps=20, iterations=10))
    for name in GENERAL:
        assert np.all(session.bound(name).lower <= sampled(graph, box)), name
    for name in ("fast-lin", "sdp", "sdp-dual"):
        with pytest.raises(UnsupportedOperator):
            session.bound(name)


@pytest.mark.parametrize("alpha", [0.2, -0.5, 1.5, None])
def test_leaky_activations(alpha):
    """Slopes left of zero, above 1 too, where the function is concave; None for abs."""
    activation, attrs = ("Abs", {}) if alpha is None else ("LeakyRelu", {"alpha": alpha})
    graph, box = dense_net([3, 5, 4, 2], 4, activation, **attrs), lp_ball(np.zeros(3), 0.7)
    session = BoundSession(graph, problem_of(box), MethodSettings(steps=20, iterations=10))
    found = {name: session.bound(name).lower for name in (*GENERAL, "fast-lin")}
    for name, lower in found.items():
        assert np.all(lower <= sampled(graph, box)), name
    assert np.array_equal(found["fast-lin"], found["cnn-cert"])
    assert np.all(found["ibp"] <= found["fast-lin"])
    assert np.allclose(found["fast-lin"], found["wong-kolter"], rtol=0, atol=1e-5)
    for name in ("sdp", "sdp-dual"):
        with pytest.raises(UnsupportedOperator):
            session.bound(name)


def test_fast_lin_s_lines_for_a_leaky_relu_in_closed_form():
    """One neuron z in [-1, 3], slope 0.2 on the left: s = (3 + 0.2) / 4, so s z <= f(z) <= s (z + 1) - 0.2."""
    builder = GraphBuilder()
    x = builder.add("Input", (), (1, 1), "x")
    z = builder.add("Dense", (x,), (1, 1), "z", weight=np.eye(1), bias=np.zeros(1))
    h = builder.add("LeakyRelu", (z,), (1, 1), "h", alpha=0.2)
    y = builder.add("Dense", (h,), (1, 2), "y", weight=np.array([[1.0, -1.0]]), bias=np.zeros(2))
    graph, box = builder.finish((x,), (y,), dtype="float64"), InputSet(np.array([-1.0]), np.array([3.0]))
    planes = BoundSession(graph, problem_of(box), FAST).state(0).parallel().planes["h"]
    slope = 3.2 / 4
    assert [float(s) for s in (*planes.lower_slopes, *planes.upper_slopes)] == pytest.approx([slope, slope])
    assert float(planes.lower_offset) == pytest.approx(0.0, abs=1e-9)
    assert float(planes.upper_offset) == pytest.approx(slope - 0.2)


def test_deployed_soundness_costs_a_little_and_real_is_tighter():
    graph, box = dense_net([4, 8, 8, 2], 7), lp_ball(np.zeros(4), 0.3)
    graph = type(graph)(graph.nodes, graph.inputs, graph.outputs, dtype="float32")
    for name in ("crown", "lp"):
        deployed = bounds(graph, problem_of(box), name)
        real = bounds(graph, problem_of(box), name, MethodSettings(soundness=Soundness.REAL_ARITHMETIC))
        assert deployed.soundness is Soundness.IEEE_FLOAT and real.soundness is Soundness.REAL_ARITHMETIC
        assert np.all(deployed.lower < real.lower) and np.all(real.lower - deployed.lower < 1e-4)


def test_cases_clauses_limits_and_empty_boxes():
    graph = dense_net([2, 4, 2], 1)
    inside = Case(lp_ball(np.zeros(2), 0.1), (Clause(ROWS[:2], np.array([5.0, -50.0]), np.zeros(2, dtype=bool)),))
    empty = Case(InputSet(np.ones(2), -np.ones(2)), (Clause(ROWS[:1], np.zeros(1), np.zeros(1, dtype=bool)),))
    found = bounds(graph, Problem((inside, empty), 2), "crown")
    assert found.refuted.tolist() == [True, True] and found.case.tolist() == [0, 0, 1]
    assert found.lower[2] == np.inf and np.array_equal(found.clause, [0, 0, 1])
    assert np.all(found.margins[:2] <= found.lower[:2] - found.limits[:2])
    assert found.peak_memory_bytes >= 0 and found.seconds > 0


def test_an_input_set_asks_for_every_output():
    graph, box = dense_net([2, 4, 2], 1), lp_ball(np.zeros(2), 0.1)
    found = bounds(graph, box, "crown").lower
    assert found.shape == (2,) and np.all(found <= evaluate(graph, np.zeros(2))[0])


def test_what_cannot_be_bounded_is_an_error():
    graph, box = dense_net([3, 6, 2], 0), lp_ball(np.zeros(3), 0.5)
    with pytest.raises(SpecError, match="expected one of ibp"):
        bounds(graph, box, "magic")
    with pytest.raises(SpecError, match="l2 ball"):
        bounds(graph, box, "sdp-crown")
    with pytest.raises(ShapeError, match="outputs"):
        bounds(graph, Problem((), 5), "crown")
    with pytest.raises(SpecError, match="timeout_s"):
        bounds(graph, box, "crown", MethodSettings(timeout_s=0.0))
    wide = dense_net([1600, 3, 2], 0)
    with pytest.raises(ShapeError, match="first-order"):
        bounds(wide, lp_ball(np.zeros(1600), 0.5), "sdp")


def test_time_limits_and_cancelling_keep_valid_bounds():
    graph, box = dense_net([6, 20, 20, 2], 2), lp_ball(np.zeros(6), 1.0)
    crown = bounds(graph, problem_of(box), "crown").lower
    short = bounds(graph, problem_of(box), "milp", MethodSettings(timeout_s=0.3))
    assert np.all(crown <= short.lower) and np.all(short.lower <= sampled(graph, box))
    stopped = bounds(graph, problem_of(box), "lp", MethodSettings(cancelled=lambda: True))
    assert np.all(stopped.lower == -np.inf) and stopped.notes == ("no time left for every case",)
