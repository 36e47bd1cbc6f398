"""The native engine: never unsound (zero tolerance), close to an independent CROWN, hard on odd input."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from native_nets import chain, crown, float32_in_order, layers, residual

from verifier.bounds.native_engine import NativeEngine, supports
from verifier.errors import SpecError
from verifier.graph.evaluate import evaluate
from verifier.graph.ir import Graph, GraphBuilder
from verifier.outcome import Soundness

CASES = {
    "relu": lambda rng: chain(rng, [5, 50, 50, 50, 5]),
    "leaky": lambda rng: chain(rng, [4, 17, 9, 3], "LeakyRelu", alpha=0.1),
    "wide": lambda rng: chain(rng, [64, 33, 70, 7]),
    "linear": lambda rng: chain(rng, [3, 4]),
    "one": lambda rng: chain(rng, [1, 1, 1]),
    "double": lambda rng: chain(rng, [5, 20, 20, 4], dtype="float64"),
    "residual": residual,
}


def boxes(rng: np.random.Generator, count: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes of widths from 0 to 2 around random centers, ends exact in float32."""
    center = rng.normal(size=(count, n))
    radius = rng.choice([0.0, 1e-6, 0.01, 0.1, 1.0], size=(count, 1)) * rng.random((count, n))
    return np.float64(np.float32(center - radius)), np.float64(np.float32(center + radius))


def corners(rng: np.random.Generator, lower: np.ndarray, upper: np.ndarray, count: int) -> np.ndarray:
    """Float32 points of each box [B, count, N]: half inside, half corners."""
    inside = lower[:, None] + rng.random((len(lower), count, lower.shape[1])) * (upper - lower)[:, None]
    corner = np.where(rng.random(inside.shape) < 0.5, lower[:, None], upper[:, None])
    points = np.where((np.arange(count) % 2 == 0)[:, None], inside, corner)
    return np.clip(np.float64(np.float32(points)), lower[:, None], upper[:, None])


@pytest.mark.parametrize("forms", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_no_point_escapes(case: str, forms: bool) -> None:
    rng = np.random.default_rng(3)
    graph = CASES[case](rng)
    engine = NativeEngine(graph, forms=forms)
    lower, upper = boxes(rng, 30, graph.input_size)
    rows = np.concatenate([np.eye(graph.output_size), rng.normal(size=(3, graph.output_size))])
    found = engine.bound_boxes(lower, upper, rows)
    assert np.isfinite(found.lower).all() and (found.sensitivity >= 0).all()
    points = corners(rng, lower, upper, 40)
    for dtype in ("float64", graph.dtype):
        y = evaluate(graph, points.reshape(-1, graph.input_size), dtype).astype(np.longdouble)
        values = (y @ rows.T.astype(np.longdouble)).reshape(30, 40, -1)
        lines = np.einsum("bsi,bki->bks", found.coeffs.astype(np.longdouble), points.astype(np.longdouble))
        lines += found.offset[:, None]
        assert (values >= lines).all()
        assert (values >= found.lower[:, None]).all()
        assert (lines >= found.lower[:, None]).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("alpha", [0.0, 0.25])
def test_agrees_with_an_independent_crown(dtype: str, alpha: float) -> None:
    rng = np.random.default_rng(5)
    attrs = {"alpha": alpha} if alpha else {}
    graph = chain(rng, [6, 30, 21, 30, 4], "LeakyRelu" if alpha else "Relu", dtype=dtype, **attrs)
    engine = NativeEngine(graph, forms=False)
    lower, upper = boxes(rng, 20, 6)
    rows = rng.normal(size=(5, 4))
    if dtype == "float32":
        rows = np.float64(np.float32(rows))
    ours = engine.bound_boxes(lower, upper, rows).lower
    theirs = np.stack([crown(graph, l, u, rows) for l, u in zip(lower, upper, strict=True)])
    scale = 1 + np.abs(theirs)
    tolerance = 5e-4 if dtype == "float32" else 1e-12
    # A neuron whose bound is within round-off of zero may be relaxed differently: nearly all agree.
    close = np.abs(ours - theirs) <= tolerance * scale
    assert close.mean() > 0.95
    assert (ours <= theirs + 1e-3 * scale).all()


def test_forms_and_refinement_tighten() -> None:
    rng = np.random.default_rng(7)
    graph = chain(rng, [5, 40, 40, 40, 3])
    lower, upper = boxes(rng, 40, 5)
    rows = np.eye(3)
    refined = NativeEngine(graph).bound_boxes(lower, upper, rows).lower
    coarse = NativeEngine(graph).bound_boxes(lower, upper, rows, refine=False).lower
    assert refined.mean() > coarse.mean()
    exact = NativeEngine(chain(rng, [5, 3])).bound_boxes(lower, upper, rows)
    ends = np.where(exact.coeffs > 0, lower[:, None], upper[:, None])
    assert np.allclose(exact.lower, (exact.coeffs * ends).sum(-1) + exact.offset, rtol=1e-12)


def cancelling(rng: np.random.Generator, width: int) -> Graph:
    """Large weights that cancel: float32 rounding decides the sign of every output."""
    b = GraphBuilder()
    x = b.add("Input", (), (1, 4), "x")
    weight = np.float32(rng.normal(size=(4, width)) * 1e4)
    weight[2], weight[3] = -weight[0], -weight[1]
    x = b.add("Dense", (x,), (1, width), "d0", weight=weight, bias=np.float32(rng.normal(size=width)))
    x = b.add("Relu", (x,), (1, width), "r0")
    second = np.float32(rng.normal(size=(width, 6)) * 1e3)
    second[1::2] = -second[::2]
    x = b.add("Dense", (x,), (1, 6), "d1", weight=second, bias=np.zeros(6, np.float32))
    x = b.add("Relu", (x,), (1, 6), "r1")
    x = b.add("Dense", (x,), (1, 2), "d2", weight=np.float32(rng.normal(size=(6, 2))), bias=np.zeros(2, np.float32))
    return b.finish(("x",), (x,))


def exact_value(graph: Graph, point: np.ndarray) -> list[Fraction]:
    """A chain's outputs in exact rational arithmetic."""
    h = [Fraction(float(v)) for v in point]
    for op, weight, bias in layers(graph):
        if op == "act":
            h = [v if v > 0 else Fraction(float(weight)) * v for v in h]
        else:
            columns = weight.shape[1]
            h = [
                sum((Fraction(float(weight[j, i])) * h[j] for j in range(len(h))), Fraction(float(bias[i])))
                for i in range(columns)
            ]
    return h


@pytest.mark.parametrize("forms", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_rounding_that_decides_is_covered_in_every_order(seed: int, forms: bool) -> None:
    rng = np.random.default_rng(seed)
    graph = cancelling(rng, 40)
    engine = NativeEngine(graph, forms=forms)
    real = NativeEngine(graph, forms=forms, soundness=Soundness.REAL_ARITHMETIC)
    center = np.float32(rng.random((8, 4)))
    center[:, 2:] = center[:, :2]  # the first layer cancels exactly in real arithmetic
    lower = upper = np.float64(center)
    rows = np.concatenate([np.eye(2), -np.eye(2)])
    found, found_real = engine.bound_boxes(lower, upper, rows), real.bound_boxes(lower, upper, rows)
    spread = 0.0
    for trial in range(20):
        y = np.float64(float32_in_order(graph, lower, rng, fused=trial % 2 == 0))
        assert (y @ rows.T >= found.lower).all()
        spread = max(spread, float(np.ptp(y)))
    exact = np.array([[float(v) for v in exact_value(graph, p)] for p in lower]) @ rows.T
    assert (exact >= found.lower).all() and (exact >= found_real.lower).all()
    assert (found_real.lower >= found.lower).all() and (found_real.lower > found.lower).any()
    assert spread > 0


def test_many_orders_on_ordinary_networks() -> None:
    rng = np.random.default_rng(11)
    graph = chain(rng, [5, 64, 64, 64, 5])
    engine = NativeEngine(graph)
    lower, upper = boxes(rng, 6, 5)
    upper = lower + np.float64(np.float32(1e-7)) * np.abs(lower)  # a few floats wide: bounds are nearly tight
    lower, upper = np.float64(np.float32(lower)), np.float64(np.float32(upper))
    rows = np.concatenate([np.eye(5), -np.eye(5)])
    found = engine.bound_boxes(lower, upper, rows)
    for trial in range(40):
        y = np.float64(float32_in_order(graph, corners(rng, lower, upper, 1)[:, 0], rng, fused=trial % 2 == 0))
        assert (y @ rows.T >= found.lower).all()
    assert (y @ rows.T - found.lower).max() < 1e-3


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients(case: str) -> None:
    rng = np.random.default_rng(2)
    graph = CASES[case](rng)
    engine = NativeEngine(graph)
    points = rng.normal(size=(70, graph.input_size))
    y = engine.evaluate(points)
    tolerance = 2e-5 if graph.dtype == "float32" else 1e-12
    assert np.allclose(y, evaluate(graph, points, "float64"), rtol=tolerance, atol=tolerance)
    weights = rng.normal(size=y.shape)
    slope = engine.gradient(points, weights)
    step = 1e-6
    for i in rng.choice(graph.input_size, size=min(4, graph.input_size), replace=False):
        moved = np.zeros(graph.input_size)
        moved[i] = step
        up, down = evaluate(graph, points + moved, "float64"), evaluate(graph, points - moved, "float64")
        difference = ((up - down) * weights).sum(axis=1) / (2 * step)
        assert np.isclose(slope[:, i], difference, rtol=1e-3, atol=1e-3).mean() > 0.95  # kinks excepted


@pytest.mark.parametrize("case", CASES)
def test_one_trace_serves_the_value_and_every_gradient(case: str) -> None:
    rng = np.random.default_rng(3)
    engine = NativeEngine(CASES[case](rng))
    points = rng.normal(size=(70, engine.graph.input_size))
    y, trace = engine.record(points)
    engine.evaluate(points[::-1])  # a trace is not disturbed by what is asked in between
    assert np.array_equal(y, engine.evaluate(points))
    for weights in (rng.normal(size=y.shape), y):
        assert np.array_equal(engine.pull_back(trace, weights), engine.gradient(points, weights))
    weights = rng.normal(size=(3 * len(y), y.shape[1]))
    assert np.array_equal(engine.pull_back(trace, weights), engine.gradient(points.repeat(3, axis=0), weights))


def test_odd_boxes_claim_nothing_and_never_give_nan() -> None:
    rng = np.random.default_rng(4)
    engine = NativeEngine(chain(rng, [3, 10, 10, 2]))
    good = np.zeros(3)
    odd = [
        (np.array([0, np.nan, 0]), good),
        (good, np.array([0, np.inf, 0])),
        (np.array([-np.inf, 0, 0]), good),
        (good, good - 1),
        (good - 1e38, good + 1e38),
        (good - 1e300, good + 1e300),
        (good, good),
        (good - 1e-310, good + 1e-310),
        (good - 1e-42, good + 1e-42),
    ]
    lower, upper = (np.array([pair[k] for pair in odd], dtype=np.float64) for k in (0, 1))
    found = engine.bound_boxes(lower, upper, np.eye(2))
    for array in (found.lower, found.coeffs, found.offset, found.sensitivity):
        assert not np.isnan(array).any()
    assert np.isneginf(found.lower[:6]).all() and np.isfinite(found.lower[6:]).all()
    y = evaluate(engine.graph, good, "float64")
    assert (y >= found.lower[6:]).all() and (y - found.lower[6:]).max() < 1e-4


def test_huge_weights_overflow_to_no_claim() -> None:
    b = GraphBuilder()
    x = b.add("Input", (), (1, 2), "x")
    for k in range(4):
        x = b.add(
            "Dense", (x,), (1, 2), f"d{k}", weight=np.full((2, 2), 1e12, np.float32), bias=np.zeros(2, np.float32)
        )
        x = b.add("Relu", (x,), (1, 2), f"r{k}")
    engine = NativeEngine(b.finish(("x",), (x,)))
    found = engine.bound_boxes(np.zeros((1, 2)), np.ones((1, 2)), np.concatenate([np.eye(2), -np.eye(2)]))
    assert np.isneginf(found.lower).all()


def test_empty_batches_and_rows_and_no_forms() -> None:
    rng = np.random.default_rng(1)
    engine = NativeEngine(chain(rng, [3, 8, 8, 2]))
    none = engine.bound_boxes(np.zeros((0, 3)), np.zeros((0, 3)), np.eye(2))
    assert none.lower.shape == (0, 2) and none.coeffs.shape == (0, 2, 3) and none.sensitivity.shape == (0, 3)
    assert engine.evaluate(np.zeros((0, 3))).shape == (0, 2)
    assert engine.gradient(np.zeros((0, 3)), np.zeros((0, 2))).shape == (0, 3)
    y, trace = engine.record(np.zeros((0, 3)))
    assert y.shape == (0, 2) and engine.pull_back(trace, y).shape == (0, 3)
    lower, upper = boxes(rng, 5, 3)
    assert engine.bound_boxes(lower, upper, np.zeros((0, 2))).lower.shape == (5, 0)
    with_forms = engine.bound_boxes(lower, upper, np.eye(2))
    without = engine.bound_boxes(lower, upper, np.eye(2), need_forms=False)
    assert np.array_equal(with_forms.lower, without.lower) and without.coeffs.size == 0


def test_more_rows_than_a_block_and_strided_arrays() -> None:
    rng = np.random.default_rng(8)
    engine = NativeEngine(chain(rng, [3, 20, 20, 150]))
    lower, upper = boxes(rng, 8, 3)
    every = engine.bound_boxes(lower, upper, np.eye(150))
    some = engine.bound_boxes(lower[::2], upper[::2], np.asfortranarray(np.eye(150)[:7]))
    assert np.array_equal(every.lower[::2, :7], some.lower) and np.array_equal(every.coeffs[::2, :7], some.coeffs)


def test_threads_change_nothing() -> None:
    rng = np.random.default_rng(9)
    graph = chain(rng, [5, 30, 30, 4])
    lower, upper = boxes(rng, 101, 5)
    one = NativeEngine(graph, threads=1).bound_boxes(lower, upper, np.eye(4))
    four = NativeEngine(graph, threads=4).bound_boxes(lower, upper, np.eye(4))
    for name in ("lower", "coeffs", "offset", "sensitivity"):
        assert np.array_equal(getattr(one, name), getattr(four, name))


def _bound_in_child(queue: multiprocessing.Queue, engine: NativeEngine, lower: np.ndarray, upper: np.ndarray) -> None:
    queue.put(engine.bound_boxes(lower, upper, np.eye(4)).lower)


def test_threads_survive_a_fork() -> None:
    rng = np.random.default_rng(9)
    engine = NativeEngine(chain(rng, [5, 30, 30, 4]), threads=2)
    lower, upper = boxes(rng, 16, 5)
    here = engine.bound_boxes(lower, upper, np.eye(4)).lower
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_bound_in_child, args=(queue, engine, lower, upper))
    child.start()
    there = queue.get(timeout=30)
    child.join(30)
    assert child.exitcode == 0 and np.array_equal(here, there)


def test_sensitivity_sees_the_inputs_that_matter() -> None:
    rng = np.random.default_rng(6)
    graph = chain(rng, [3, 12, 12, 2])
    weights = graph["dense0"].attrs["weight"]
    weights[1] = 0
    found = NativeEngine(graph, forms=True).bound_boxes(np.zeros((1, 3)), np.ones((1, 3)), np.eye(2))
    assert found.sensitivity[0, 1] == 0 and (found.sensitivity[0, [0, 2]] > 0).all()


def test_wrong_shapes_and_settings_are_named() -> None:
    rng = np.random.default_rng(1)
    graph = chain(rng, [3, 8, 2])
    engine = NativeEngine(graph)
    with pytest.raises(ValueError, match="lower: expected"):
        engine.bound_boxes(np.zeros(3), np.zeros(3), np.eye(2))
    with pytest.raises(ValueError, match="upper: expected"):
        engine.bound_boxes(np.zeros((2, 3)), np.zeros((1, 3)), np.eye(2))
    with pytest.raises(ValueError, match="rows: expected"):
        engine.bound_boxes(np.zeros((2, 3)), np.zeros((2, 3)), np.eye(3))
    with pytest.raises(ValueError, match="weights: expected"):
        engine.gradient(np.zeros((2, 3)), np.zeros((1, 2)))
    with pytest.raises(ValueError, match="weights: expected as many"):
        engine.pull_back(engine.record(np.zeros((2, 3)))[1], np.zeros((3, 2)))
    with pytest.raises(ValueError, match="trace: its sizes"):
        NativeEngine(chain(rng, [3, 40, 2])).pull_back(engine.record(np.zeros((2, 3)))[1], np.zeros((2, 2)))
    with pytest.raises(SpecError, match="soundness"):
        NativeEngine(graph, soundness=Soundness.HEURISTIC)


def test_unsupported_graphs_are_told_apart() -> None:
    b = GraphBuilder()
    x = b.add("Input", (), (1, 3), "x")
    y = b.add("Softmax", (x,), (1, 3), "s", axis=1)
    assert not supports(b.finish(("x",), (y,)))
    assert supports(residual(np.random.default_rng(0)))


def test_importing_it_does_not_import_torch() -> None:
    code = "import sys, verifier.bounds.native_engine; sys.exit('torch' in sys.modules or 'scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
