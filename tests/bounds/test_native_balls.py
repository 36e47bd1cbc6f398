"""Boxes cut by an l2 ball on the compiled engine: sound with zero tolerance, exact on linear networks."""

from __future__ import annotations

import numpy as np
import pytest
from native_nets import SPLITTABLE, chain, float32_in_order, never

from verifier.bounds.clauses import PaddedClauses
from verifier.bounds.native_domains import NativeDomains
from verifier.bounds.native_engine import NativeEngine
from verifier.graph.evaluate import evaluate
from verifier.spec.problem import Ball, InputSet


def ball_of(rng: np.random.Generator, features: int, radius: float, *, fixed: int = 0) -> InputSet:
    """A ball around a float32 point, cut by a box that holds the point; some features cannot move."""
    center = np.float64(np.float32(rng.normal(size=features) * 0.5))
    below, above = rng.uniform(0, 1.2 * radius, (2, features))
    below[::3] = above[::3] = 2 * radius  # there the ball alone limits
    below[rng.random(features) < 0.2] = 0.0
    below[:fixed] = above[:fixed] = 0.0
    return InputSet(center - below, center + above, ball=Ball(center, radius, 2.0))


def domains_of(engine: NativeEngine, inputs: InputSet, rows: np.ndarray) -> NativeDomains:
    clauses = PaddedClauses(rows[:, None], np.zeros((len(rows), 1)), np.zeros((len(rows), 1), dtype=bool))
    return NativeDomains(engine, inputs.lower, inputs.upper, clauses, inputs=inputs)


def points_in(inputs: InputSet, count: int) -> np.ndarray:
    """Float32 points of the set, most of them on the ball or on faces of the box."""
    rng, ball = np.random.default_rng(1), inputs.ball
    assert ball is not None
    step = rng.normal(size=(count, inputs.size)) * rng.choice([0.1, 1.0, 10.0], (count, inputs.size))
    for _ in range(4):  # clipped steps are stretched to the sphere again
        step *= ball.radius / np.maximum(np.linalg.norm(step, axis=1, keepdims=True), 1e-12)
        step = np.clip(step, inputs.lower - ball.center, inputs.upper - ball.center)
    points = np.float64(np.float32(ball.center + step))
    inside = (points >= inputs.lower).all(1) & (points <= inputs.upper).all(1)
    return points[inside & (np.linalg.norm(points - ball.center, axis=1) <= ball.radius * (1 - 1e-15))]


@pytest.mark.parametrize("iterations", [0, 15])
@pytest.mark.parametrize("radius", [0.05, 0.8])
@pytest.mark.parametrize("case", SPLITTABLE)
def test_no_point_escapes_the_root_or_its_children(case: str, radius: float, iterations: int) -> None:
    rng = np.random.default_rng(3)
    graph = SPLITTABLE[case](rng)
    inputs = ball_of(rng, graph.input_size, radius)
    rows = np.concatenate([np.eye(graph.output_size), rng.normal(size=(3, graph.output_size))])
    domains = domains_of(NativeEngine(graph, threads=1), inputs, rows)
    if iterations:
        domains.optimise_root(10.0, iterations)
    points = points_in(inputs, 4000)
    assert len(points) > 200
    outputs = [evaluate(graph, points, dtype) for dtype in ("float64", graph.dtype)]
    if case == "dense":
        outputs += [float32_in_order(graph, points, rng, fused) for fused in (False, True)]
    least = np.min([(y.astype(np.longdouble) @ rows.T.astype(np.longdouble)).min(axis=0) for y in outputs], axis=0)
    bounds = domains.bound(domains.initial(np.arange(len(rows))), iterations, never)
    assert (bounds.row_margins[:, 0] <= least).all() and np.isfinite(bounds.row_margins).all()
    usable = bounds.batch.select(~bounds.batch.stuck)
    if len(usable):  # the children cover their parent, so the worse one's bound holds on it
        children = domains.bound(domains.branch(usable), iterations, never)
        worse = children.row_margins[:, 0].reshape(2, -1).min(axis=0)
        assert (worse <= least[usable.clause]).all()


@pytest.mark.parametrize("seed", range(8))
def test_linear_networks_get_their_exact_minimum_and_a_minimiser_inside(seed: int) -> None:
    rng = np.random.default_rng(seed)
    graph = chain(rng, [40, 3])
    radius = float(rng.choice([0.01, 0.3, 2.0]))
    inputs = ball_of(rng, 40, radius, fixed=3 * (seed % 2))
    domains = domains_of(NativeEngine(graph, threads=1), inputs, np.eye(3))
    found = domains.bound(domains.initial(np.arange(3)), 0, never)
    assert inputs.ball is not None
    weight, bias = graph["dense0"].attrs["weight"].astype(float), graph["dense0"].attrs["bias"].astype(float)
    for k in range(3):
        a, c = weight[:, k], inputs.ball.center
        room = np.where(a > 0, c - inputs.lower, inputs.upper - c)
        low, high = 0.0, 1e6
        for _ in range(200):  # the step min(t |a|, room) as long as the ball allows
            t = 0.5 * (low + high)
            low, high = (t, high) if np.linalg.norm(np.minimum(t * np.abs(a), room)) <= radius else (low, t)
        exact = a @ c + bias[k] - np.abs(a) @ np.minimum(low * np.abs(a), room)
        assert found.row_margins[k, 0] <= exact
        assert found.row_margins[k, 0] >= exact - 1e-4 * (1 + abs(exact))
        x = found.minimiser[k]
        assert (x >= inputs.lower - 1e-6).all() and (x <= inputs.upper + 1e-6).all()
        assert np.linalg.norm(x - c) <= radius * (1 + 1e-4)
        assert a @ x + bias[k] <= exact + 1e-4 * (1 + abs(exact))


def test_a_ball_bounds_more_than_its_box_and_slopes_more_than_defaults() -> None:
    rng = np.random.default_rng(5)
    graph = chain(rng, [30, 40, 40, 3])
    inputs, rows = ball_of(rng, 30, 0.6), np.eye(3)
    engine = NativeEngine(graph, threads=1)
    cut = domains_of(engine, inputs, rows)
    whole = NativeDomains(engine, inputs.lower, inputs.upper, cut.clauses)
    every = np.arange(3)
    plain, box = (d.bound(d.initial(every), 0, never).row_margins for d in (cut, whole))
    cut.optimise_root(10.0)
    ascended = cut.bound(cut.initial(every), 40, never).row_margins
    assert (plain > box).all() and (ascended > plain).all()
    assert cut.width < whole.width


def test_copies_keep_the_ball() -> None:
    rng = np.random.default_rng(6)
    graph = chain(rng, [10, 20, 20, 2])
    domains = domains_of(NativeEngine(graph, threads=1), ball_of(rng, 10, 0.5), np.eye(2))
    other = domains.alone(1)
    first, second = (d.bound(d.initial(np.arange(2)), 0, never).row_margins for d in (domains, other))
    assert np.allclose(first, second, rtol=1e-5, atol=1e-6)


def test_only_balls_that_it_knows_are_taken() -> None:
    engine = NativeEngine(chain(np.random.default_rng(0), [3, 5, 2]), threads=1)
    center, low, high = np.array([0.5, 0.25, 0.0]), -np.ones(3), np.ones(3)
    assert engine.splits_on(InputSet(low, high))
    assert engine.splits_on(InputSet(low, high, ball=Ball(center, 1.0, 2.0)))
    assert engine.splits_on(InputSet(low, high, ball=Ball(center, 1.0, 2.0, np.full(3, 4.0))))
    assert not engine.splits_on(InputSet(low, high, ball=Ball(center, 1.0, 1.0)))
    assert not engine.splits_on(InputSet(low, high, ball=Ball(center, 1.0, 2.0, np.array([1.0, 2.0, 1.0]))))
    assert not engine.splits_on(InputSet(low, high, ball=Ball(center + 2, 1.0, 2.0)))
    assert not engine.splits_on(InputSet(low, high, ball=Ball(center + 1e-12, 1.0, 2.0)))
    assert not engine.splits_on(InputSet(low, high, np.ones((1, 3)), np.ones(1), Ball(center, 1.0, 2.0)))
    with pytest.raises(ValueError, match="center inside the box"):
        engine.domains(low, high, 1.0, inputs=InputSet(low, high, ball=Ball(center + 2, 1.0, 2.0)))


def test_a_unit_stretches_the_ball() -> None:
    rng = np.random.default_rng(7)
    graph = chain(rng, [8, 16, 2])
    engine, center = NativeEngine(graph, threads=1), np.zeros(8)
    sets = [
        InputSet(-np.ones(8), np.ones(8), ball=Ball(center, 0.5, 2.0)),
        InputSet(-np.ones(8), np.ones(8), ball=Ball(center, 0.125, 2.0, np.full(8, 4.0))),
    ]
    domains = [domains_of(engine, inputs, np.eye(2)) for inputs in sets]
    first, second = (d.bound(d.initial(np.arange(2)), 0, never).row_margins for d in domains)
    assert np.allclose(first, second, rtol=1e-6)
