"""Subdomains past attention whose shortcuts are fixed: they cover, hold, and cost no tightness at the root."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_shortcuts import TOKENS, WIDTH, attention

from verifier.bounds.crossed_domains import CrossedDomains
from verifier.bounds.domains import DomainEngine
from verifier.bounds.intermediate import optimise_intermediate
from verifier.bounds.torch_engine import TorchEngine
from verifier.graph.evaluate import evaluate_all
from verifier.graph.ir import GraphBuilder
from verifier.run import Run


def transformer(seed: int):
    """Attention, a layer of relus over its tokens, and two outputs."""
    rng = np.random.default_rng(seed)
    inner = attention(seed)
    builder = GraphBuilder()
    builder.nodes.update(inner.nodes)
    (source,) = inner.outputs
    weight = rng.standard_normal((WIDTH, 2 * WIDTH)).astype(np.float32)
    bias = (rng.standard_normal(2 * WIDTH) / 4).astype(np.float32)
    z = builder.add("Dense", (source,), (1, TOKENS, 2 * WIDTH), "z", weight=weight, bias=bias)
    h = builder.add("Relu", (z,), (1, TOKENS, 2 * WIDTH), "h")
    flat = builder.add("Reshape", (h,), (1, TOKENS * 2 * WIDTH), "flat")
    weight = rng.standard_normal((TOKENS * 2 * WIDTH, 2)).astype(np.float32)
    y = builder.add("Dense", (flat,), (1, 2), "y", weight=weight, bias=np.zeros(2, np.float32))
    return builder.finish(inner.inputs, (y,))


def domains_of(seed: int, dtype: torch.dtype, rows_each: int):
    """Domains for two clauses that no bound can close, and points of the box."""
    graph = transformer(seed)
    engine = TorchEngine(graph, dtype=dtype)
    rng = np.random.default_rng(seed)
    center = rng.standard_normal((1, TOKENS * WIDTH))
    low, high = engine.boxes(center - 0.05, center + 0.05)
    found = engine.enclose(low, high)
    rows = torch.as_tensor(rng.standard_normal((2, rows_each, 2)).astype(np.float32)).to(dtype)
    limits = torch.full((2, rows_each), 1e6, dtype=torch.float64)
    whole = DomainEngine(engine, found, low, high, rows, limits, limits < 0)
    points = low.double().numpy() + rng.random((400, TOKENS * WIDTH)) * (high - low).double().numpy()
    points = np.clip(points.astype(np.float32), low.numpy(), high.numpy()).astype(np.float64)
    return engine, whole, rows, points


@pytest.mark.parametrize("rows_each", (1, 2))
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_children_cover_and_hold(dtype, rows_each):
    engine, whole, rows, points = domains_of(0, dtype, rows_each)
    crossed = CrossedDomains(whole)
    crossed._apart = True
    batch = crossed.bound(crossed.initial(np.array([0, 1])), 10, lambda: False).batch
    assert batch.free.shape[-1] < whole.space.size
    values = evaluate_all(engine.network.graph, points, "float32")
    margins = torch.as_tensor(values["y"].reshape(len(points), -1)).double() @ rows.double().flatten(0, 1).T - 1e6
    margins = margins.reshape(len(points), 2, rows_each)
    slim = crossed._settled[0]
    pre = slim.gather({n: torch.as_tensor(values[n]).to(dtype) for n in slim.open})
    for _ in range(4):
        batch = crossed.bound(crossed.branch(batch), 5, lambda: False).batch
        inside = ((pre.unsqueeze(0) >= batch.low.unsqueeze(1)) & (pre.unsqueeze(0) <= batch.high.unsqueeze(1))).all(2)
        for clause in (0, 1):
            mine = torch.as_tensor(batch.clauses == clause)
            assert torch.all(inside[mine].any(0)), "a sampled point lies in no child"
        for child, clause in enumerate(batch.clauses):
            best = margins[inside[child], clause].max(-1).values
            assert len(best) == 0 or float(best.min()) >= float(batch.margin[child])


def test_the_root_keeps_what_was_optimised_and_gains():
    _, whole, _, _ = domains_of(1, torch.float64, 1)
    plain = whole.bound(whole.initial(np.array([0, 1])), 20, lambda: False).row_margins
    crossed = CrossedDomains(whole)
    crossed._apart = True
    bounds = crossed.bound(crossed.initial(np.array([0, 1])), 20, lambda: False)
    assert np.all(bounds.row_margins >= plain)
    assert np.array_equal(bounds.batch.margins, bounds.row_margins[:, 0])


def test_closed_clauses_keep_their_place():
    _, whole, _, _ = domains_of(2, torch.float64, 1)
    whole.limits[0] = -1e6  # closed at once
    crossed = CrossedDomains(whole)
    crossed._apart = True
    bounds = crossed.bound(crossed.initial(np.array([1, 0, 1])), 5, lambda: False)
    assert list(bounds.closed) == [False, True, False]
    assert list(bounds.batch.clauses) == [1, 0, 1]
    children = crossed.branch(bounds.batch.select(~bounds.closed))
    assert np.all(children.clauses == 1)


def test_where_attention_loses_most_nothing_is_fixed(monkeypatch):
    _, whole, _, _ = domains_of(3, torch.float64, 1)
    crossed = CrossedDomains(whole)
    monkeypatch.setattr("verifier.bounds.crossed_domains.OUTSIDE_SHARE", 1.0)
    bounds = crossed.bound(crossed.initial(np.array([0])), 5, lambda: False)
    assert bounds.batch.free.shape[-1] == whole.space.size
    assert len(crossed.branch(bounds.batch)) == 2


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_tighter_bounds_are_carried_on_and_hold(dtype):
    engine, whole, _, points = domains_of(4, dtype, 1)
    box = whole.found.box
    before = {n: (box.upper[n] - box.lower[n]).sum() for n in ("z", "p/difference", "p/moved", "vs")}
    optimise_intermediate(engine, whole.found, whole.lower, whole.upper, None, Run(), 60.0)
    assert all((box.upper[n] - box.lower[n]).sum() < width for n, width in before.items() if n != "vs")
    for moved, origin in (("qs", "q"), ("ks", "k"), ("vs", "v")):
        _, index = engine.network.moved[moved]
        for ends in (box.lower, box.upper):
            torch.testing.assert_close(ends[moved].flatten(), ends[origin].flatten()[index], rtol=1e-5, atol=1e-6)
    for arithmetic in ("float32", "float64"):
        values = evaluate_all(engine.network.graph, points, arithmetic)
        for name in box.lower:
            if name in values:
                assert np.all(values[name] >= box.lower[name].double().numpy() - (name == "x") * 1e-6), name
                assert np.all(values[name] <= box.upper[name].double().numpy() + (name == "x") * 1e-6), name
