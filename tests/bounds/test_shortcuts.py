"""Shortcuts across attention: the same bounds as without them, and no sampled point escapes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from verifier.bounds.backward import Shortcut, backward
from verifier.bounds.concretize import concretize
from verifier.bounds.crossing import cross
from verifier.bounds.torch_engine import LazyPlanes, TorchEngine
from verifier.graph.evaluate import evaluate_all
from verifier.graph.ir import GraphBuilder

TOKENS, WIDTH = 5, 6
DTYPES = (torch.float32, torch.float64)


def attention(seed: int):
    """Attention with a softmax over a scaled product of tokens, written as networks are imported."""
    rng = np.random.default_rng(seed)
    builder = GraphBuilder()
    x = builder.add("Input", (), (1, TOKENS, WIDTH), "x")

    def dense(source: str, name: str) -> str:
        weight = (rng.standard_normal((WIDTH, WIDTH)) / 2).astype(np.float32)
        bias = rng.standard_normal(WIDTH).astype(np.float32)
        return builder.add("Dense", (source,), (1, TOKENS, WIDTH), name, weight=weight, bias=bias)

    q, k, v = dense(x, "q"), dense(x, "k"), dense(x, "v")
    grid = np.arange(TOKENS * WIDTH).reshape(TOKENS, WIDTH)
    wide = (1, TOKENS, TOKENS, WIDTH)
    qs = builder.add("Select", (q,), wide, "qs", indices=np.repeat(grid[:, None], TOKENS, axis=1)[None])
    ks = builder.add("Select", (k,), wide, "ks", indices=np.repeat(grid[None], TOKENS, axis=0)[None])
    products = builder.add("Mul", (qs, ks), wide, "qk")
    logits = builder.add("ReduceSum", (products,), (1, TOKENS, TOKENS), "logits", axes=(3,), keepdims=False)
    scaled = builder.add(
        "Scale", (logits,), (1, TOKENS, TOKENS), "scaled", scale=np.float32(0.4), shift=np.float32(0.0)
    )
    p = builder.add("Softmax", (scaled,), (1, TOKENS, TOKENS), "p", axis=2)
    tall = (1, TOKENS, WIDTH, TOKENS)
    each = np.broadcast_to(np.arange(TOKENS**2).reshape(TOKENS, 1, TOKENS), tall[1:])
    ps = builder.add("Select", (p,), tall, "ps", indices=np.ascontiguousarray(each)[None])
    values = np.broadcast_to(grid.T[None], tall[1:])
    vs = builder.add("Select", (v,), tall, "vs", indices=np.ascontiguousarray(values)[None])
    weighted = builder.add("Mul", (ps, vs), tall, "pv")
    mixed = builder.add("ReduceSum", (weighted,), (1, TOKENS, WIDTH), "mixed", axes=(3,), keepdims=False)
    return builder.finish(("x",), (dense(mixed, "out"),))


def enclosed(seed: int, dtype: torch.dtype, radius: float = 0.05):
    """An engine, its bounds on a box, default planes and points of the box."""
    engine = TorchEngine(attention(seed), dtype=dtype)
    rng = np.random.default_rng(seed)
    center = rng.standard_normal((1, TOKENS * WIDTH))
    low, high = engine.boxes(center - radius, center + radius)
    box = engine.enclose(low, high, refined=False).box
    points = low.double().numpy() + rng.random((300, TOKENS * WIDTH)) * (high - low).double().numpy()
    points = np.clip(points.astype(np.float32), low.numpy(), high.numpy()).astype(np.float64)
    return engine, box, LazyPlanes(engine.network, box), (low, high), points


def both_signs(engine: TorchEngine, name: str) -> dict[str, torch.Tensor]:
    size = engine.network.graph[name].size
    return {name: engine.unit_rows(name, torch.arange(size), 1)}


@pytest.mark.parametrize("dtype", DTYPES)
def test_matrices_made_element_by_element_equal_those_of_whole_rows(dtype):
    engine, box, planes, _, _ = enclosed(0, dtype)
    assert len(engine.network.shortcuts) == 3
    close = {"rtol": 1e-4 if dtype is torch.float32 else 1e-12, "atol": 1e-5 if dtype is torch.float32 else 1e-12}
    for name, stop in engine.network.shortcuts.items():
        given = (engine.network, box, planes, name, stop)
        rows, elements = Shortcut.across(*given), cross(*given)
        assert elements is not None
        assert rows.maps.keys() == elements.maps.keys() == stop
        for source in stop:
            torch.testing.assert_close(elements.maps[source].dense(), rows.maps[source].dense(), **close)
        torch.testing.assert_close(elements.offset, rows.offset, **close)
        torch.testing.assert_close(elements.reach, rows.reach, **close)
        assert torch.all(elements.error > 0)
        assert torch.all(elements.magnitude >= rows.magnitude * (1 - 1e-12))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("make", (Shortcut.across, cross))
def test_bounds_across_a_shortcut_hold_and_equal_those_without(make, dtype):
    for seed in range(3):
        engine, box, planes, (low, high), points = enclosed(seed, dtype)
        network = engine.network
        known = {n: make(network, box, planes, n, stop) for n, stop in network.shortcuts.items()}
        exact = {a: evaluate_all(network.graph, points, a) for a in ("float64", "float32")}
        for name in ("p/difference", "p/total", "mixed", "out"):
            start = both_signs(engine, name)
            with_them = concretize(backward(network, start, box, planes, shortcuts=known), low, high)[0][0]
            without = concretize(backward(network, start, box, planes), low, high)[0][0]
            near = 2e-2 if dtype is torch.float32 else 1e-6  # rounding is charged in other places
            torch.testing.assert_close(with_them, without, rtol=near, atol=near)
            for values in exact.values():
                flat = torch.as_tensor(values[name]).reshape(len(points), -1).double()
                size = flat.shape[1]
                assert torch.all(flat >= with_them[:size]), (name, seed)
                assert torch.all(-flat >= with_them[size:]), (name, seed)


def test_a_node_that_mixes_elements_is_left_to_whole_rows():
    engine, box, planes, _, _ = enclosed(0, torch.float64)
    assert cross(engine.network, box, planes, "out", frozenset(("x",))) is None


def test_the_engine_uses_them_once_enough_rows_pass():
    engine, _, _, (low, high), points = enclosed(1, torch.float64)
    found = engine.enclose(low, high)
    assert found.shortcuts is not None
    assert len(found.shortcuts) > 0
    for name, values in evaluate_all(engine.network.graph, points, "float32").items():
        if name in found.box.lower:
            assert np.all(values >= found.box.lower[name].numpy())
            assert np.all(values <= found.box.upper[name].numpy())
