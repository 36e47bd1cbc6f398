"""The whole-network pass: rigour with zero tolerance, as tight as the native engine, odd boxes refused."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from native_nets import chain, float32_in_order, layers, residual

from verifier.bounds.native_engine import NativeEngine
from verifier.bounds.torch_engine import TorchEngine
from verifier.bounds.whole_network import WholeNetwork
from verifier.graph.ir import Graph
from verifier.kernels.box_pass import Chain
from verifier.kernels.native import kernels_for
from verifier.kernels.stages import Stager
from verifier.outcome import Soundness

MEMORY = 1 << 28
LEVELS = (Soundness.IEEE_FLOAT, Soundness.REAL_ARITHMETIC)
FUNCTIONS = [("Relu", {}), ("LeakyRelu", {"alpha": 0.1}), ("Sigmoid", {}), ("Tanh", {})]
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=pytest.mark.skipif(
            not (torch.cuda.is_available() and kernels_for("cuda")), reason="no GPU, or built without CUDA"
        ),
    ),
]


def whole(graph: Graph, device: str = "cpu") -> WholeNetwork:
    found = WholeNetwork.of(graph, Soundness.IEEE_FLOAT, torch.device(device))
    assert found is not None
    return found


def in_float64(graph: Graph, device: str, soundness: Soundness) -> WholeNetwork:
    """The pass without noteworthy rounding of its own."""
    stages = Stager(graph, rounded=soundness is Soundness.IEEE_FLOAT).run()
    place = torch.device(device)
    found = Chain.of(stages, graph.input_size, lambda x: torch.from_numpy(x).to(place), np.dtype("float64"))
    assert found is not None
    return WholeNetwork(found, place)


def boxes(rng: np.random.Generator, count: int, inputs: int, width: float) -> tuple[np.ndarray, np.ndarray]:
    """Boxes with float32 ends, one input of each fixed."""
    lower = rng.normal(size=(count, inputs)).astype(np.float32)
    upper = lower + (width * rng.random((count, inputs))).astype(np.float32)
    upper[:, 0] = lower[:, 0]
    return lower.astype(np.float64), upper.astype(np.float64)


def exact_outputs(graph: Graph, x: np.ndarray) -> list[Fraction]:
    """Outputs of a relu or leaky relu chain in exact arithmetic."""
    h = [Fraction(float(v)) for v in x]
    for op, weight, bias in layers(graph):
        if op == "Dense":
            columns = [[Fraction(float(w)) for w in column] for column in weight.T]
            shifts = [Fraction(float(v)) for v in bias]
            h = [sum((w * v for w, v in zip(c, h, strict=True)), s) for c, s in zip(columns, shifts, strict=True)]
        else:
            h = [v if v > 0 else v * Fraction(float(np.float32(weight))) for v in h]
    return h


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("width", [0.0, 0.05, 1.0])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_exact_value_is_below_its_form(device: str, width: float, dtype: str) -> None:
    rng = np.random.default_rng(7)
    graph = chain(rng, [3, 8, 8, 2], dtype=dtype)
    lower, upper = boxes(rng, 6, 3, width)
    rows = rng.normal(size=(3, 2))
    found = whole(graph, device).bound_boxes(lower, upper, rows, MEMORY)
    for b in range(len(lower)):
        for _ in range(6):
            t = rng.integers(0, 2, size=3) if rng.random() < 0.5 else rng.random(3)
            x = np.clip(lower[b] + t * (upper[b] - lower[b]), lower[b], upper[b])
            y, point = exact_outputs(graph, x), [Fraction(float(v)) for v in x]
            for s, row in enumerate(rows):
                value = sum((Fraction(float(r)) * v for r, v in zip(row, y, strict=True)), Fraction(0))
                form = Fraction(float(found.offset[b, s])) + sum(
                    (Fraction(float(a)) * v for a, v in zip(found.coeffs[b, s], point, strict=True)), Fraction(0)
                )
                assert value >= form >= Fraction(float(found.lower[b, s]))


@pytest.mark.parametrize("device", DEVICES)
def test_the_float32_program_in_any_order_stays_above(device: str) -> None:
    rng = np.random.default_rng(3)
    graph = chain(rng, [3, 24, 24, 2])
    cancelling = [
        1e4 * np.sign(rng.normal(size=w.shape)) * (0.5 + rng.random(w.shape)) for _, w, _ in layers(graph)[::2]
    ]
    for node, weight in zip((n for n in graph.nodes.values() if n.op == "Dense"), cancelling, strict=True):
        node.attrs["weight"][...] = weight.astype(np.float32) / np.float32(1e3)
    lower, _ = boxes(rng, 8, 3, 0.0)
    rows = np.array([[1.0, -1.0], [-1.0, 1.0], [1.0, 0.0], [0.0, -1.0]])
    bounds, real = (in_float64(graph, device, level).bound_boxes(lower, lower, rows, MEMORY) for level in LEVELS)
    below = False
    for k in range(40):
        y = float32_in_order(graph, lower, rng, fused=bool(k % 2)).astype(np.float64) @ rows.T
        assert (y >= bounds.lower).all()
        below |= bool((y < real.lower).any())
    assert below  # real arithmetic alone would not have held


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("function", "attrs"), FUNCTIONS)
def test_is_as_tight_as_the_native_engine(device: str, function: str, attrs: dict) -> None:
    rng = np.random.default_rng(11)
    graph = chain(rng, [5, 20, 20, 20, 3], function, **attrs)
    lower, upper = boxes(rng, 20, 5, 0.4)
    rows = rng.normal(size=(4, 3))
    found = whole(graph, device).bound_boxes(lower, upper, rows, MEMORY)
    native = NativeEngine(graph, threads=1, forms=True).bound_boxes(lower, upper, rows)
    reach = np.abs(native.coeffs) @ np.ones(5) * 0.4 + 1e-3
    assert np.abs(found.lower - native.lower).max() <= 2e-2 * reach.max()
    assert found.lower.mean() >= native.lower.mean() - 2e-3 * reach.mean()
    np.testing.assert_allclose(found.sensitivity, native.sensitivity, rtol=2e-2, atol=1e-3)
    points = lower[:, None] + rng.random((20, 50, 5)) * (upper - lower)[:, None]
    values = NativeEngine(graph, threads=1).evaluate(points.reshape(-1, 5)).reshape(20, 50, 3) @ rows.T
    assert (values >= found.lower[:, None]).all()


@pytest.mark.parametrize("device", DEVICES)
def test_backward_passes_tighten_and_order_of_boxes_is_kept(device: str) -> None:
    rng = np.random.default_rng(5)
    graph = chain(rng, [4, 30, 30, 30, 2])
    lower, upper = boxes(rng, 9, 4, 0.6)
    rows = np.eye(2)
    engine = whole(graph, device)
    refined, plain = (engine.bound_boxes(lower, upper, rows, MEMORY, refine=r) for r in (True, False))
    assert (refined.lower >= plain.lower - 1e-6).all() and (refined.lower > plain.lower + 1e-3).any()
    one_by_one = [engine.bound_boxes(lower[b : b + 1], upper[b : b + 1], rows, MEMORY).lower for b in range(9)]
    assert np.array_equal(np.concatenate(one_by_one), refined.lower)
    assert np.array_equal(engine.bound_boxes(lower, upper, rows, memory_bytes=1).lower, refined.lower)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf, 1e31])
def test_odd_boxes_give_no_bounds_and_leave_the_others_alone(device: str, odd: float) -> None:
    rng = np.random.default_rng(2)
    graph = chain(rng, [3, 6, 6, 2])
    lower, upper = boxes(rng, 3, 3, 0.1)
    engine, rows = whole(graph, device), np.eye(2)
    expected = engine.bound_boxes(lower, upper, rows, MEMORY)
    for ends in (lower, upper):
        bad = ends.copy()
        bad[1, 2] = odd
        found = engine.bound_boxes(*((bad, upper) if ends is lower else (lower, bad)), rows, MEMORY)
        assert (
            (found.lower[1] == -np.inf).all() and (found.coeffs[1] == 0).all() and np.isfinite(found.sensitivity).all()
        )
        assert np.array_equal(found.lower[[0, 2]], expected.lower[[0, 2]])
    crossed = engine.bound_boxes(upper, lower, rows, MEMORY)
    assert (crossed.lower == -np.inf).all()


def test_what_is_no_small_chain_is_left_alone() -> None:
    rng = np.random.default_rng(0)
    for graph in (residual(rng), chain(rng, [40, 8, 2]), chain(rng, [4, 3000, 2]), chain(rng, [2] * 20)):
        assert WholeNetwork.of(graph, Soundness.IEEE_FLOAT, torch.device("cpu")) is None


def test_weights_that_float32_cannot_hold_are_bounded_in_float64() -> None:
    graph = chain(np.random.default_rng(0), [3, 5, 2], dtype="float64")
    assert whole(graph).chain.layers[0].weight.dtype == torch.float64
    assert whole(chain(np.random.default_rng(0), [3, 5, 2])).chain.layers[0].weight.dtype == torch.float32


def test_nothing_asked_and_nothing_given() -> None:
    engine = whole(chain(np.random.default_rng(0), [3, 5, 2]))
    assert engine.bound_boxes(np.zeros((0, 3)), np.zeros((0, 3)), np.eye(2), MEMORY).lower.shape == (0, 2)
    assert engine.bound_boxes(np.zeros((1, 3)), np.ones((1, 3)), np.zeros((0, 2)), MEMORY).lower.shape == (1, 0)


def test_the_torch_engine_takes_it_where_asked() -> None:
    rng = np.random.default_rng(1)
    graph = chain(rng, [5, 16, 16, 3])
    lower, upper = boxes(rng, 4, 5, 0.3)
    taken, own = TorchEngine(graph, whole=True), TorchEngine(graph)
    assert taken.whole is not None and own.whole is None
    found, expected = (e.bound_boxes(lower, upper, np.eye(3)) for e in (taken, own))
    np.testing.assert_allclose(found.lower, expected.lower, atol=2e-2)
