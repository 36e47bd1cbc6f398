"""Ascents over planes: proofs hold for any parameters, estimates are what is proved, trees agree with enumeration."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from nets import dense_net, exact_minimum
from test_substitute import skip_net

from verifier.graph.evaluate import evaluate_all
from verifier.graph.ir import Graph, GraphBuilder
from verifier.spec.problem import Clause, InputSet, lp_ball
from verifier.tighten.build import build_model
from verifier.tighten.dual import layerwise_bounds
from verifier.tighten.hot_model import HotModel
from verifier.tighten.plane_ascent import PlaneAscent, Subdomain, covers
from verifier.tighten.plane_tree import Ascents, plane_tree
from verifier.tighten.substitute import substituted

ROW = np.array([[1.0, -1.0]])


def conv_net(seed: int) -> Graph:
    rng = np.random.default_rng(seed)
    attrs = {"strides": (1, 1), "pads": (1, 1, 1, 1), "dilations": (1, 1), "groups": 1}
    builder, last = GraphBuilder(), "x"
    builder.add("Input", (), (1, 1, 4, 4), "x")
    for k, (channels, out) in enumerate(pairwise((1, 3, 2))):
        weight = 0.5 * rng.normal(size=(out, channels, 3, 3))
        last = builder.add("Conv", (last,), (1, out, 4, 4), f"z{k}", weight=weight, bias=rng.normal(size=out), **attrs)
        last = builder.add("Relu", (last,), (1, out, 4, 4), f"h{k}")
    last = builder.add("Reshape", (last,), (1, 32), "f")
    y = builder.add("Dense", (last,), (1, 2), "y", weight=rng.normal(size=(32, 2)), bias=np.zeros(2))
    return builder.finish(("x",), (y,), dtype="float64")


NETS = [
    ("dense", lambda seed: dense_net([5, 12, 10, 2], seed)),
    ("leaky", lambda seed: dense_net([5, 12, 10, 2], seed, "LeakyRelu", alpha=0.2)),
    ("abs", lambda seed: dense_net([5, 12, 10, 2], seed, "Abs")),
    ("conv", conv_net),
]


def program(graph: Graph, radius: float = 0.5, limit: float = 0.0, rows: np.ndarray = ROW):
    box = lp_ball(np.full(graph.input_size, 0.1), radius)
    model = build_model(graph, box, layerwise_bounds(graph, box))
    clause = Clause(rows, np.full(len(rows), limit), np.zeros(len(rows), dtype=bool))
    return substituted(model), clause, box


def sampled(graph: Graph, box: InputSet, seed: int, count: int = 3000) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    t = rng.random((count, box.size))
    t[: count // 2] = np.round(t[: count // 2])
    return evaluate_all(graph, box.lower + t * (box.upper - box.lower))


@pytest.mark.parametrize("name, make", NETS)
@pytest.mark.parametrize("seed", range(3))
def test_proofs_hold_for_any_parameters_on_any_subdomain(name, make, seed):
    """No sampled point of a subdomain is below what is proved there, with zero tolerance."""
    graph, rng = make(seed), np.random.default_rng(seed)
    model, clause, box = program(graph)
    ascents = Ascents(model, clause)
    values = sampled(graph, box, seed)
    margins = values[graph.outputs[0]].reshape(3000, -1) @ ROW[0]
    pre = np.concatenate([values[n.node].reshape(3000, -1)[:, n.positions] for n in model.neurons], axis=1)
    met = 0
    for trial in range(30):
        chosen = rng.choice(ascents.neurons, size=trial % 4, replace=False)
        sides = {int(n): int(rng.integers(2)) for n in chosen}
        on_side = [(pre[:, n] >= 0) if s else (pre[:, n] <= 0) for n, s in sides.items()]
        inside = np.all([margins < np.inf, *on_side], axis=0)
        at = ascents._subdomain(sides)
        if at is None:
            assert not inside.any()
            continue
        start = ascents.ascent.start()
        wild = replace(
            start,
            slope=rng.uniform(-1, 2, start.slope.shape).astype(np.float32),
            chord=rng.uniform(0, 1, start.chord.shape).astype(np.float32),
            split=rng.normal(size=start.split.shape).astype(np.float32),
            plane=rng.uniform(-0.2, 1.2, start.plane.shape).astype(np.float32),
        )
        (found,) = ascents.ascent.climb([at], start, 30, 0.1)
        met += inside.any()
        for parameters in (start, wild, found.parameters):
            assert ascents.ascent.prove(at, parameters) <= margins[inside].min(initial=np.inf)
    assert met >= 5


@pytest.mark.parametrize("name, make", NETS)
@pytest.mark.parametrize("seed", range(3))
def test_estimates_are_what_is_proved(name, make, seed):
    graph = make(seed)
    model, clause, _ = program(graph)
    ascents = Ascents(model, clause)
    for sides in ({}, {0: 1, ascents.neurons - 1: 0}, {1: 0, 2: 1}, {0: 0}, {1: 1}):
        at = ascents._subdomain(sides)
        if at is None:
            continue
        for steps in (1, 20):
            (found,) = ascents.ascent.climb([at], ascents.ascent.start(), steps, 0.1)
            proved = ascents.ascent.prove(at, found.parameters)
            assert proved >= found.bound - 1e-4 * (1 + abs(found.bound))


@pytest.mark.parametrize("seed", range(4))
def test_ascent_comes_near_the_program_with_all_cuts_and_beats_the_triangle(seed, monkeypatch):
    monkeypatch.setattr("verifier.tighten.plane_ascent.LEAST_GAIN", 0.0)
    graph = dense_net([12, 40, 2], seed)
    model, clause, _ = program(graph, 0.4)
    lp = HotModel(model, model.cost(ROW[0]))
    triangle = best = lp.bound(np.inf)
    while lp.cut(best.point):
        best = lp.bound(np.inf)
    (found,) = PlaneAscent(model, clause).climb([whole(model)], PlaneAscent(model, clause).start(), 400, 0.1)
    assert best.bound > triangle.bound + 1e-3
    if found.bound <= 0:  # else it ended as soon as it was
        assert triangle.bound < found.bound <= best.bound + 1e-5
        assert found.bound >= best.bound - 0.1 * (best.bound - triangle.bound)


def whole(model) -> Subdomain:
    return Subdomain(model.col_lower, model.col_upper, np.full(sum(len(n.pre) for n in model.neurons), -1, np.int8))


def test_nan_among_the_parameters_proves_nothing_wrong():
    graph = dense_net([5, 12, 10, 2], 0)
    model, clause, box = program(graph)
    ascent = PlaneAscent(model, clause)
    start = ascent.start()
    least = (sampled(graph, box, 0)[graph.outputs[0]].reshape(3000, -1) @ ROW[0]).min()
    for name in ("slope", "chord", "plane", "split"):
        wrong = replace(start, **{name: np.full_like(getattr(start, name), np.nan)})
        assert not ascent.prove(whole(model), wrong) > least, name
    assert not ascent.prove(whole(model), replace(start, rows=np.full(1, np.nan))) > 0


@pytest.mark.parametrize("seed", range(4))
def test_trees_agree_with_enumeration(seed):
    graph, box = dense_net([3, 5, 4, 2], seed), lp_ball(np.full(3, 0.1), 0.8)
    least = exact_minimum(graph, box, ROW[0])
    model = substituted(build_model(graph, box, layerwise_bounds(graph, box)))
    for limit, expected in ((least - 1e-3 * (1 + abs(least)), True), (least + 1e-6, False)):
        clause = Clause(ROW, np.array([limit]), np.zeros(1, dtype=bool))
        found = plane_tree(model, clause).prove_above(0.0, np.inf, stop=lambda at: at.visited > 400)
        assert found.closed is expected
        assert not expected or found.lower > 0


def test_a_conjunction_is_refuted_as_a_whole():
    graph = dense_net([5, 12, 10, 2], 2)
    rows = np.array([[1.0, -1.0], [-1.0, 1.0]])
    model, _, box = program(graph)
    margins = sampled(graph, box, 0)[graph.outputs[0]].reshape(3000, -1) @ ROW[0]
    middle, apart = float(np.median(margins)), 0.01 * float(np.ptp(margins))
    both = Clause(rows, np.array([middle - apart, -middle - apart]), np.zeros(2, dtype=bool))
    assert plane_tree(model, both).prove_above(0.0, np.inf, stop=lambda at: at.visited > 500).closed
    for k in (0, 1):
        one = Clause(rows[k : k + 1], both.limits[k : k + 1], np.zeros(1, dtype=bool))
        assert not plane_tree(model, one).prove_above(0.0, np.inf, stop=lambda at: at.visited > 50).closed


def test_models_with_other_curves_are_not_covered():
    nets = (dense_net([4, 6, 2], 0), dense_net([4, 6, 2], 0, "Tanh"), skip_net(0))
    for graph, expected in zip(nets, (True, False, True), strict=True):
        box = lp_ball(np.zeros(graph.input_size), 0.5)
        model = build_model(graph, box, layerwise_bounds(graph, box))
        assert covers(substituted(model)) is expected


def test_jobs_of_another_shape_are_refused():
    model, clause, _ = program(dense_net([5, 12, 10, 2], 0))
    ascent = PlaneAscent(model, clause, threads=2)
    at, start = whole(model), ascent.start()
    for wrong in (replace(at, low=at.low[1:]), replace(at, sides=at.sides.astype(np.int64))):
        with pytest.raises(ValueError, match=r"low|side"):
            ascent.climb([wrong], start, 3, 0.1)
    one, two = ascent.climb([at, at], start, 12, 0.1)
    assert one.bound == two.bound and np.array_equal(one.parameters.plane, two.parameters.plane)
