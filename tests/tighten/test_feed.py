"""What the search is given: proofs against enumeration, tightened neurons against samples."""

import time

import numpy as np
import pytest
from nets import dense_net, exact_minimum

from verifier.errors import ShapeError
from verifier.graph.evaluate import evaluate
from verifier.spec.problem import Clause, lp_ball
from verifier.tighten.dual import layerwise_bounds
from verifier.tighten.feed import Known, LastMile

ROW = np.array([[1.0, -1.0]])


def clause(limit, rows=ROW, strict=False):
    return Clause(rows, np.full(len(rows), limit), np.full(len(rows), strict))


@pytest.mark.parametrize("activation", ["Relu", "LeakyRelu", "Abs"])
@pytest.mark.parametrize("seed", range(3))
def test_last_mile_decides_as_sampling_does(seed, activation):
    attrs = {"alpha": 0.1} if activation == "LeakyRelu" else {}
    graph, box = dense_net([3, 5, 4, 2], seed, activation, **attrs), lp_ball(np.full(3, 0.1), 0.8)
    values = evaluate(graph, np.random.default_rng(0).uniform(box.lower, box.upper, size=(20000, 3))) @ ROW[0]
    lowest, known = float(values.min()), Known(layerwise_bounds(graph, box))
    false = LastMile(graph, box, known).refute(clause(lowest), np.inf)
    assert not false.refuted and false.margin <= 0.0
    if activation == "Relu":
        lowest = exact_minimum(graph, box, ROW[0])
        true = LastMile(graph, box, known).refute(clause(lowest - 1e-4), np.inf)
        assert true.refuted and 0.0 < true.margin <= 1.1e-4
    assert LastMile(graph, box, known).refute(clause(lowest - 0.2), np.inf).refuted


def test_conjunctions_are_refuted_as_a_whole():
    """Neither row alone can be refuted, both together can: y0 - y1 <= -a and y1 - y0 <= -a."""
    graph, box = dense_net([3, 6, 2], 2), lp_ball(np.zeros(3), 1.0)
    values = evaluate(graph, np.random.default_rng(0).uniform(-1, 1, size=(4000, 3))) @ ROW[0]
    a = 0.5 * min(-values.min(), values.max())
    assert a > 0
    both = np.concatenate([ROW, -ROW])
    known = Known({})
    for row in (ROW, -ROW):
        assert not LastMile(graph, box, known).refute(clause(-a, row), np.inf).refuted
    assert LastMile(graph, box, known).refute(clause(-a, both), np.inf).refuted


def test_time_and_cancelling_prove_nothing_false():
    graph, box = dense_net([3, 6, 2], 2), lp_ball(np.zeros(3), 1.0)
    late = LastMile(graph, box, Known({})).refute(clause(-100.0), time.monotonic() - 1.0)
    assert not late.refuted and late.margin == -np.inf
    assert not LastMile(graph, box, Known({})).refute(clause(-100.0), np.inf, lambda share: True).refuted
    with pytest.raises(ShapeError, match="N_out"):
        LastMile(graph, box, Known({})).refute(clause(0.0, np.ones((1, 3))), np.inf)
