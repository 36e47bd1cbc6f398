"""Intersections and unions of lp balls against closed forms, brute force and each other."""

import math

import numpy as np
import pytest
import torch
from radius_nets import linear, planar
from threads import one_thread  # noqa: F401

from verifier.bounds.backward import LinearForm
from verifier.bounds.concretize import InputShape, concretize
from verifier.bounds.torch_engine import TorchEngine
from verifier.certify.leaves import Ball
from verifier.certify.minimisers import minimisers
from verifier.certify.radius import RadiusSettings, certified_radius
from verifier.certify.threat import Nearness
from verifier.certify.union import certified_union
from verifier.cli.main import main
from verifier.errors import SpecError
from verifier.graph.evaluate import evaluate
from verifier.outcome import StopReason

QUICK = RadiusSettings(gap_rel=0.05, timeout_s=60)
INF = math.inf


def reach(w, p, radius, q, eps):
    """max |w| @ d over ||d||_p <= radius and ||d||_q <= eps, d >= 0; {p, q} = {2, inf} or {1, inf}."""
    box = eps if math.isinf(q) else radius
    size, order = (radius, p) if math.isinf(q) else (eps, q)
    w = np.sort(np.abs(w))[::-1]
    if order == 1:
        d = np.diff(np.minimum(np.arange(len(w) + 1) * box, size))
        return float(w @ d)
    low, high = 0.0, 1e9
    for _ in range(200):
        t = 0.5 * (low + high)
        low, high = (t, high) if np.linalg.norm(np.minimum(t * w, box)) < size else (low, t)
    return float(w @ np.minimum(low * w, box))


def smallest(w, margin, p, q, eps):
    """The smallest p-radius at which a margin falls, inside the q-ball of eps; inf where it never does."""
    if reach(w, p, 1e6, q, eps) < margin:
        return INF
    low, high = 0.0, 1e6
    for _ in range(200):
        middle = 0.5 * (low + high)
        low, high = (low, middle) if reach(w, p, middle, q, eps) >= margin else (middle, high)
    return high


@pytest.mark.parametrize(("p", "q"), [(2.0, INF), (INF, 2.0), (1.0, INF), (INF, 1.0)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_linear_classifiers_have_their_exact_mixed_radius(p, q, seed):
    graph, weight, bias = linear(seed, features=6, classes=3)
    x = np.random.default_rng(seed).standard_normal(6).astype(np.float32).astype(np.float64)
    scores = x @ weight + bias
    label = int(scores.argmax())
    rivals = [(weight[:, label] - weight[:, k], scores[label] - scores[k]) for k in range(3) if k != label]
    alone = min(certified_radius(graph, x, nearness=Nearness(q), settings=QUICK).upper, 1e3)
    for share in (0.5, 1.3, 3.0):
        eps = share * alone
        exact = min(smallest(w, m, p, q, eps) for w, m in rivals)
        found = certified_radius(graph, x, nearness=Nearness(p, also=((q, eps),)), settings=QUICK)
        if math.isinf(exact):
            assert found.counterexample is None and found.reason is StopReason.WHOLE_RANGE
        else:
            assert found.lower <= exact * (1 + 1e-9) and exact <= found.upper * (1 + 1e-9)
            assert found.lower >= 0.94 * exact and found.upper <= 1.07 * exact
            step = found.counterexample.x - x
            assert np.linalg.norm(step, q) <= eps and np.linalg.norm(step, p) <= found.upper


@pytest.mark.parametrize(("p", "also"), [(2.0, ((INF, 0.4),)), (INF, ((1.0, 0.7),)), (1.0, ((2.0, 0.5), (INF, 0.45)))])
@pytest.mark.parametrize("seed", [5, 7, 9])
def test_planar_networks_against_brute_force(p, also, seed):
    graph, x = planar(seed), np.array([0.25, -0.125])
    found = certified_radius(graph, x, nearness=Nearness(p, (-2.0, 2.0), also=also), settings=QUICK)
    axis = np.linspace(-1, 1, 401)
    grid = (x + np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)).astype(np.float32).astype(np.float64)
    inside = np.all([np.linalg.norm(grid - x, q, axis=1) <= eps for q, eps in also], axis=0)
    other = inside & (evaluate(graph, grid).argmax(axis=1) != found.label)
    nearest = np.linalg.norm(grid[other] - x, ord=p, axis=1).min() if other.any() else INF
    assert found.lower <= nearest, "a point of the certified intersection has another class"
    alone = certified_radius(graph, x, nearness=Nearness(p, (-2.0, 2.0)), settings=QUICK)
    assert found.upper >= alone.lower and found.lower >= 0.9 * min(alone.lower, found.upper)
    if found.counterexample is not None:
        step = found.counterexample.x - x
        assert all(np.linalg.norm(step, q) <= eps for q, eps in also)
        assert np.linalg.norm(step, p) <= found.upper
        y = evaluate(graph, found.counterexample.x.astype(np.float32), "float32")[0]
        assert y.argmax() != found.label or np.sum(y == y.max()) > 1


ALSO = [((INF, 0.1),), ((2.0, 0.15),), ((1.0, 0.2),), ((1.0, 0.3), (2.0, 0.2))]
PAIRS = [(p, also) for p in (0.0, 1.0, 2.0, INF) for also in ALSO if p not in dict(also)]


@pytest.mark.parametrize(("p", "also"), PAIRS)
def test_the_input_set_holds_the_intersection_and_bounds_hold_on_it(p, also):
    rng = np.random.default_rng(0)
    graph, _, _ = linear(1, features=5, classes=3)
    center, scale = np.full(5, 0.5), None if p == 0 else np.array([1.0, 0.5, 2.0, 1.0, 1.0])
    near = Nearness(p, (0.0, 1.0), scale=scale, also=also).sized(5)
    radius = 2.0 if p == 0 else 0.18
    inputs = near.input_set(center, radius)
    unit = np.ones(5) if scale is None else scale
    steps = rng.standard_normal((4000, 5)) * unit * rng.choice([0.0, 0.02, 0.1, 0.2], (4000, 5))
    points = np.clip(center + steps, 0, 1)
    kept = np.all([np.linalg.norm((points - center) / unit, q, axis=1) <= eps for q, eps in also], axis=0)
    kept &= near.distance(center, points) <= radius
    points = points[kept]
    assert len(points) > 50
    assert np.all((points >= inputs.lower) & (points <= inputs.upper))
    engine = TorchEngine(graph)
    rows = engine.tensor(np.array([[1.0, -1.0, 0.0], [0.0, 1.0, -1.0], [-1.0, 0.0, 1.0]]))
    value, _ = Ball(engine, near, center, radius).rows(rows)
    reached = evaluate(graph, points) @ rows.double().numpy().T
    assert np.all(value.numpy() <= reached.min(axis=0))
    smaller = near.input_set(center, 1.0 if p == 0 else 0.5 * radius)
    assert np.all((smaller.lower >= inputs.lower) & (smaller.upper <= inputs.upper))


@pytest.mark.parametrize("seed", [7, 9])
def test_a_union_is_as_weak_as_its_weakest_ball(seed):
    graph, x = planar(seed), np.array([0.25, -0.125])
    near = Nearness(valid=(-2.0, 2.0))
    sizes = {1.0: 2.0, 2.0: 1.3, INF: 1.0}
    found = certified_union(graph, x, sizes=sizes, nearness=near, settings=QUICK)
    assert 0.9 * found.upper <= found.lower <= found.upper and found.weakest in sizes
    axis = np.linspace(-1.5, 1.5, 601)
    grid = x + np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    label = found.parts[INF].label
    other = grid[evaluate(graph, grid).argmax(axis=1) != label]
    nearest = min(np.linalg.norm(other - x, p, axis=1).min() / size for p, size in sizes.items())
    assert found.lower <= nearest and found.upper <= 1.05 * nearest + 0.01
    for p, size in sizes.items():
        assert found.lower * size <= found.parts[p].lower


@pytest.mark.parametrize("p", [0.0, 1.0, 2.0, INF])
def test_minimisers_reach_the_bound_of_the_set(p):
    """The closed form's minimum, which proofs use, is attained by the proposal."""
    rng = np.random.default_rng(4)
    graph, _, _ = linear(2, features=6, classes=3)
    engine = TorchEngine(graph)
    for _ in range(20):
        center = rng.uniform(0.2, 0.8, 6)
        radius = float(rng.integers(1, 5)) if p == 0 else float(rng.uniform(0.05, 1.5))
        near = Nearness(p, (0.0, 1.0), scale=None if p == 0 else rng.uniform(0.5, 2.0, 6)).sized(6)
        inputs = near.input_set(center, radius)
        zeros = torch.zeros(1, 3, dtype=torch.float64)
        form = LinearForm(torch.tensor(rng.standard_normal((1, 3, 6))), zeros, zeros, {})
        lower, upper = (torch.tensor(end)[None] for end in (inputs.lower, inputs.upper))
        value, _ = concretize(form, lower, upper, InputShape.of(inputs, engine.device))
        coeffs = form.coeffs[0].numpy()
        points = minimisers(coeffs, inputs)
        assert np.all((points >= inputs.lower - 1e-12) & (points <= inputs.upper + 1e-12))
        assert np.all(near.distance(center, points) <= radius * (1 + 1e-9))
        assert np.allclose((coeffs * points).sum(1), value[0].numpy(), rtol=1e-7, atol=1e-9)


def test_mistakes_and_the_command_line(tmp_path, capsys):
    for also, said in (
        (((2.0, 0.1),), "each once"), (((INF, 0.1), (INF, 0.2)), "each once"), (((0.0, 1.0),), "1, 2 or inf"),
        (((INF, -1.0),), "sizes > 0"), (((INF, math.nan),), "sizes > 0"),
    ):  # fmt: skip
        with pytest.raises(SpecError, match=said):
            Nearness(2.0, also=also)
    graph, _, _ = linear(0, 4, 2)
    for sizes in ({}, {3.0: 1.0}, {2.0: 0.0}):
        with pytest.raises(SpecError, match="union of balls"):
            certified_union(graph, np.zeros(4), sizes=sizes)
    from semantic_nets import SPECS

    ask = ["radius", str(SPECS / "fc.onnx"), "--data", "digits", "--start", "1500", "--samples", "2", "--norm", "l2"]
    assert main([*ask, "--also", "linf=0.05", "--timeout", "10", "--out", str(tmp_path / "o")]) == 0
    assert "0.05 in linf" in (tmp_path / "o" / "report.html").read_text()
    capsys.readouterr()
    for words, said in (
        (["--also", "linf"], "NORM=EPS"), (["--also", "l2=1"], "each once"), (["--also", "l0=1"], "1, 2 or inf"),
        (["--also", "linf=0.1", "--method", "smoothing"], "--also"),
        (["--also", "linf=0.1", "--weights", "all"], "--also"),
    ):  # fmt: skip
        assert main([*ask, *words]) == 2
        log = capsys.readouterr().err
        assert said in log and log.count("\n") == 1
