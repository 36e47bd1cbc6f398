"""No sampled point escapes any bound the torch engine gives, with zero tolerance."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from network_cases import CASES

from verifier.bounds.concretize import InputShape, concretize
from verifier.bounds.domains import DomainEngine
from verifier.bounds.intermediate import optimise_intermediate
from verifier.bounds.torch_engine import TorchEngine
from verifier.graph.evaluate import evaluate, evaluate_all
from verifier.outcome import Soundness
from verifier.run import Run
from verifier.spec.problem import InputSet, lp_ball

DTYPES = (torch.float32, torch.float64)


def box_and_points(graph, radius, seed, count=400):
    """A box around a random centre, and points of it: random, corners, its ends."""
    rng = np.random.default_rng(seed)
    center = rng.standard_normal(graph.input_size).astype(np.float32).astype(np.float64)
    lower, upper = ((center + side * radius).astype(np.float32).astype(np.float64) for side in (-1, 1))
    t = rng.random((count, graph.input_size))
    t[: count // 3] = np.round(t[: count // 3])
    t[0], t[1] = 0.0, 1.0
    points = np.clip((lower + t * (upper - lower)).astype(np.float32).astype(np.float64), lower, upper)
    return lower, upper, points


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("radius", (0.0, 0.01, 0.3, 2.0))
@pytest.mark.parametrize("case", CASES)
def test_every_node_holds_its_sampled_values(case, radius, dtype):
    graph = CASES[case]()
    engine = TorchEngine(graph, dtype=dtype)
    for seed in range(3):
        lower, upper, points = box_and_points(graph, radius, seed)
        found = engine.enclose(*engine.boxes(lower[None], upper[None]))
        for arithmetic in ("float64", "float32"):
            for name, value in evaluate_all(graph, points, arithmetic).items():
                if name not in found.box.lower:
                    continue
                low, high = found.box.lower[name].numpy(), found.box.upper[name].numpy()
                assert np.all(value >= low), (name, arithmetic, seed)
                assert np.all(value <= high), (name, arithmetic, seed)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_rows_and_their_forms_hold(case, dtype):
    graph = CASES[case]()
    engine = TorchEngine(graph, dtype=dtype)
    rng = np.random.default_rng(1)
    rows = rng.standard_normal((4, graph.output_size))
    rows = rows.astype(np.float32).astype(np.float64)
    lowers, uppers, clouds = zip(*(box_and_points(graph, 0.2, seed) for seed in range(3)), strict=True)
    bounds = engine.bound_boxes(np.stack(lowers), np.stack(uppers), rows)
    for b, points in enumerate(clouds):
        for arithmetic in ("float64", "float32"):
            values = evaluate(graph, points, arithmetic).astype(np.float64) @ rows.T
            assert np.all(values >= bounds.lower[b])
            forms = points @ bounds.coeffs[b].T + bounds.offset[b]
            assert np.all(values >= forms - 1e-12 * np.abs(forms))
    assert np.all(np.isfinite(bounds.lower))


@pytest.mark.parametrize("case", ("relu", "sigmoid", "residual", "attention"))
def test_tighter_methods_never_loosen(case):
    graph = CASES[case]()
    engine = TorchEngine(graph)
    lower, upper, points = box_and_points(graph, 0.15, 0)
    low, high = engine.boxes(lower[None], upper[None])
    rows = torch.eye(graph.output_size, dtype=engine.dtype).unsqueeze(0)
    found = engine.enclose(low, high)
    plain, _ = engine.bound_rows(rows, found, low, high)
    optimise_intermediate(engine, found, low, high, None, Run(), 5.0)
    refined, _ = engine.bound_rows(rows, found, low, high)
    s = graph.output_size
    domains = DomainEngine(
        engine, found, low, high, rows.transpose(0, 1), torch.zeros(s, 1), torch.zeros(s, 1, dtype=torch.bool)
    )
    found_rows = domains.bound(domains.initial(np.arange(s)), 30, lambda: False).row_margins
    ascended = torch.as_tensor(found_rows[:, 0])
    actual = torch.as_tensor(evaluate(graph, points).min(0))
    # Default slopes are a heuristic of the bounds they see, so only optimised ones are ordered.
    assert torch.all(ascended >= refined[0] - 1e-6)
    assert torch.all(ascended <= actual)
    assert torch.any(ascended > plain[0] + 1e-6)


@pytest.mark.parametrize("case", ("relu", "sigmoid", "sin", "residual", "attention"))
def test_children_of_a_split_cover_and_hold(case):
    graph = CASES[case]()
    engine = TorchEngine(graph)
    lower, upper, points = box_and_points(graph, 0.3, 2, count=2000)
    low, high = engine.boxes(lower[None], upper[None])
    found = engine.enclose(low, high)
    rows = torch.zeros(1, 1, graph.output_size, dtype=engine.dtype)
    rows[0, 0, 0] = 1.0
    domains = DomainEngine(engine, found, low, high, rows, torch.zeros(1, 1), torch.zeros(1, 1, dtype=torch.bool))
    batch = domains.bound(domains.initial(np.zeros(1, dtype=np.int64)), 5, lambda: False).batch
    values = evaluate_all(engine.network.graph, points)
    pre = domains.gather({n: torch.as_tensor(values[n]) for n in domains.open})
    output = evaluate(graph, points)[:, 0]
    for _ in range(4):
        neurons = batch.candidates[:, 0]
        if bool((neurons < 0).any()):
            break  # every relaxation is exact somewhere: nothing is left to split there
        batch = domains.split(batch, neurons, domains.split_points(batch, neurons.unsqueeze(1))[:, 0])
        batch = domains.bound(batch, 5, lambda: False).batch
        inside = ((pre.unsqueeze(0) >= batch.low.unsqueeze(1)) & (pre.unsqueeze(0) <= batch.high.unsqueeze(1))).all(2)
        assert torch.all(inside.any(0)), "a sampled point lies in no child"
        for child in range(len(batch)):
            mine = output[inside[child].numpy()]
            assert len(mine) == 0 or mine.min() >= float(batch.margin[child])


def test_rounding_that_decides_is_not_called_safe():
    """A network whose exact outputs are positive while the float32 program gives zero or less."""
    from verifier.graph.ir import GraphBuilder

    builder = GraphBuilder()
    x = builder.add("Input", (), (1, 1), "x")
    big = np.array([[2.0**24, -(2.0**24), 1.0]], np.float32)
    z = builder.add("Dense", (x,), (1, 3), "z", weight=big, bias=np.array([1.0, 0.0, 0.0], np.float32))
    h = builder.add("Relu", (z,), (1, 3), "h")
    weight = np.array([[1.0], [0.0], [-(2.0**24)]], np.float32)
    y = builder.add("Dense", (h,), (1, 1), "y", weight=weight, bias=np.zeros(1, np.float32))
    graph = builder.finish(("x",), (y,))
    row = np.ones((1, 1))
    point = np.ones((1, 1))
    assert evaluate(graph, point)[0, 0] == 1.0
    assert evaluate(graph, point, "float32")[0, 0] == 0.0
    deployed = TorchEngine(graph).bound_boxes(point, point, row).lower[0, 0]
    exact = TorchEngine(graph, soundness=Soundness.REAL_ARITHMETIC).bound_boxes(point, point, row).lower[0, 0]
    assert deployed <= 0.0
    assert 0.5 < exact <= 1.0


@pytest.mark.parametrize("p", (1, 2))
def test_balls_use_the_dual_norm(p):
    graph = CASES["relu"]()
    engine = TorchEngine(graph)
    rng = np.random.default_rng(0)
    center = rng.standard_normal(graph.input_size)
    inputs = lp_ball(center, 0.3, p)
    shape = InputShape.of(inputs, engine.device)
    low, high = engine.boxes(inputs.lower[None], inputs.upper[None])
    rows = torch.eye(3, dtype=engine.dtype).unsqueeze(0)
    found = engine.enclose(low, high, shape)
    with_ball, _ = engine.bound_rows(rows, found, low, high, shape)
    without, _ = engine.bound_rows(rows, engine.enclose(low, high), low, high)
    steps = rng.standard_normal((3000, graph.input_size))
    steps /= np.linalg.norm(steps, ord=p, axis=1, keepdims=True)
    points = center + 0.3 * steps * rng.random((3000, 1)) ** 0.2
    assert np.all(evaluate(graph, points) >= with_ball[0].numpy())
    assert torch.all(with_ball >= without - 1e-9) and torch.any(with_ball > without + 1e-3)


def test_input_rows_tighten_and_hold():
    graph = CASES["relu"]()
    engine = TorchEngine(graph)
    lower, upper, points = box_and_points(graph, 0.5, 3, count=4000)
    g = np.ones((1, graph.input_size))
    limit = np.array([float((points @ g[0]).mean())])
    inputs = InputSet(lower, upper, g, limit)
    shape = InputShape.of(inputs, engine.device)
    low, high = engine.boxes(lower[None], upper[None])
    rows = torch.eye(3, dtype=engine.dtype).unsqueeze(0)
    with_row, _ = engine.bound_rows(rows, engine.enclose(low, high, shape), low, high, shape)
    without, _ = engine.bound_rows(rows, engine.enclose(low, high), low, high)
    inside = points[points @ g[0] <= limit[0]]
    assert np.all(evaluate(graph, inside) >= with_row[0].numpy())
    assert torch.any(with_row > without + 1e-3)


def test_nan_never_becomes_a_bound():
    graph = CASES["relu"]()
    engine = TorchEngine(graph)
    lower = np.full((1, 4), np.nan)
    bounds = engine.bound_boxes(lower, lower, np.ones((1, 3)))
    assert np.all(bounds.lower == -np.inf)


def test_concretize_matches_enumerated_corners():
    graph = CASES["relu"]()
    engine = TorchEngine(graph)
    from verifier.bounds.backward import LinearForm

    rng = np.random.default_rng(0)
    coeffs = torch.as_tensor(rng.standard_normal((1, 2, 4)))
    zero = torch.zeros(1, 2, dtype=torch.float64)
    low, high = torch.full((1, 4), -1.0).double(), torch.full((1, 4), 2.0).double()
    value, minimiser = concretize(LinearForm(coeffs, zero, zero, {}), low, high)
    corners = torch.tensor(np.array(np.meshgrid(*[[-1.0, 2.0]] * 4)).reshape(4, -1).T)
    best = (corners @ coeffs[0].T).min(0).values
    assert torch.all(value[0] <= best) and torch.allclose(value[0], best)
    assert torch.allclose((minimiser[0] * coeffs[0]).sum(1), best)
    assert engine.name == "torch"
