"""Output ranges enclose what networks do and what attacks attain; the attack stays inside its set."""

from itertools import pairwise

import numpy as np
import pytest
from nets import dense_net, exact_minimum

from verifier.graph.evaluate import evaluate
from verifier.spec.problem import InputSet, lp_ball
from verifier.tighten.attained import attained, projected
from verifier.tighten.output_range import RangeSettings, output_range
from verifier.tighten.propagated import Propagated


@pytest.mark.parametrize("inputs", [3, 14])
def test_ranges_converge_to_the_exact_ones(inputs):
    """Three inputs are split on inputs, fourteen on activations."""
    graph, box = dense_net([inputs, 3, 3, 2], 3), lp_ball(np.full(inputs, 0.1), 0.5)
    found = output_range(graph, box, RangeSettings(timeout_s=60.0, gap_rel=5e-3))
    exact = [(exact_minimum(graph, box, e), -exact_minimum(graph, box, -e)) for e in np.eye(2)]
    for i, (low, high) in enumerate(exact):
        assert found.lower[i] <= found.reached_low[i] and found.reached_high[i] <= found.upper[i]
        assert found.lower[i] <= low + 1e-9 and high - 1e-9 <= found.upper[i]
        for end, its_exact in ((found.lower[i], low), (found.upper[i], high)):
            assert end == pytest.approx(its_exact, abs=6e-3 * max(1.0, abs(its_exact)))
    assert np.all(found.finished)


def test_stages_only_improve_and_cancelling_keeps_them():
    graph, box = dense_net([6, 10, 10, 3], 0), lp_ball(np.zeros(6), 0.5)
    seen = []
    output_range(graph, box, RangeSettings(timeout_s=1.0, on_progress=lambda stage, r: seen.append((stage, r))))
    values = evaluate(graph, np.random.default_rng(1).uniform(-0.5, 0.5, size=(4000, 6)))
    for (_, before), (_, after) in pairwise(seen):
        assert np.all(before.lower <= after.lower) and np.all(after.upper <= before.upper)
    for _, ranges in seen:
        assert np.all(ranges.lower <= values.min(axis=0)) and np.all(values.max(axis=0) <= ranges.upper)
    early = output_range(graph, box, RangeSettings(cancelled=lambda: True))
    assert np.all(early.lower <= values.min(axis=0)) and np.all(np.isfinite(early.lower))


@pytest.mark.parametrize("p", [0, 1, 2, np.inf])
def test_attained_points_lie_in_the_ball_and_have_their_values(p):
    graph, center = dense_net([5, 8, 8, 2], 2), np.linspace(0.2, 0.8, 5)
    inputs = lp_ball(center, 2 if p == 0 else 0.3, p, valid=(0.0, 1.0))
    state = Propagated(graph, inputs)
    found = attained(state.engine, inputs, np.eye(2))
    assert np.allclose(np.diag(evaluate(graph, found.points)), found.values, rtol=0, atol=1e-12)
    assert np.all(state.rows(state.crown(), np.eye(2)) <= found.values)
    move = found.points - center
    assert np.all(found.points >= inputs.lower) and np.all(found.points <= inputs.upper)
    if p == 0:
        assert np.all((move != 0).sum(axis=1) <= 2)
    else:
        # `center` moved by 0.3 rounds, so a box end may lie one unit further away.
        assert np.all(np.linalg.norm(move, ord=p, axis=1) <= 0.3 * (1 + 2.0**-51))


def test_half_spaces_are_respected_or_nothing_is_reported():
    graph = dense_net([2, 6, 2], 1)
    inputs = InputSet(-np.ones(2), np.ones(2), np.array([[1.0, 1.0]]), np.array([-0.5]))
    found = attained(Propagated(graph, inputs).engine, inputs, np.eye(2))
    assert np.all(found.points.sum(axis=1) <= -0.5)
    impossible = InputSet(-np.ones(2), np.ones(2), np.array([[1.0, 1.0]]), np.array([-5.0]))
    assert np.all(attained(Propagated(graph, impossible).engine, impossible, np.eye(2)).values == np.inf)
    assert np.array_equal(projected(lp_ball(np.zeros(2), 0.1), np.ones((1, 2))), [[0.1, 0.1]])
