"""Rows cropped to the patch they see give the bounds of whole rows, and no sampled point escapes them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from network_cases import CASES

from verifier.bounds import torch_engine
from verifier.bounds.backward import backward
from verifier.bounds.concretize import concretize
from verifier.bounds.cone import cone_of
from verifier.bounds.patches import is_local, patch_bounds, patch_flops, tiles
from verifier.bounds.torch_engine import LazyPlanes, TorchEngine
from verifier.graph.evaluate import evaluate, evaluate_all
from verifier.graph.ir import GraphBuilder

DTYPES = (torch.float32, torch.float64)


def image_net(seed: int):
    """Skip connections, strides, groups, dilation, uneven padding and a scale over a 9 x 8 image."""
    rng = np.random.default_rng(seed)
    builder = GraphBuilder()

    def conv(x, into, shape, name, kernel, strides=(1, 1), pads=(1, 1, 1, 1), dilations=(1, 1), groups=1):
        weight = (rng.standard_normal((shape[1], into // groups, *kernel)) / 2).astype(np.float32)
        bias = rng.standard_normal(shape[1]).astype(np.float32) / 4
        return builder.add(
            "Conv", (x,), shape, name, weight=weight, bias=bias, strides=strides, pads=pads, dilations=dilations,
            groups=groups,
        )  # fmt: skip

    x = builder.add("Input", (), (1, 2, 9, 8), "x")
    skip = conv(x, 2, (1, 4, 9, 8), "skip", (1, 1), pads=(0, 0, 0, 0))
    z0 = conv(x, 2, (1, 4, 9, 8), "z0", (3, 3))
    h0 = builder.add("Relu", (z0,), (1, 4, 9, 8), "h0")
    z1 = builder.add("Add", (conv(h0, 4, (1, 4, 9, 8), "c1", (3, 3)), skip), (1, 4, 9, 8), "z1")
    h1 = builder.add("Sigmoid", (z1,), (1, 4, 9, 8), "h1")
    scale = rng.standard_normal((4, 1, 1)).astype(np.float32)
    scaled = builder.add("Scale", (h1,), (1, 4, 9, 8), "scaled", scale=scale, shift=np.float32(0.3))
    pool = conv(scaled, 4, (1, 4, 4, 4), "pool", (2, 2), strides=(2, 2), pads=(0, 0, 0, 0), groups=4)
    z2 = conv(pool, 4, (1, 3, 4, 4), "z2", (3, 2), pads=(2, 1, 2, 0), dilations=(2, 1))
    h2 = builder.add("Relu", (z2,), (1, 3, 4, 4), "h2")
    z3 = conv(h2, 3, (1, 3, 2, 2), "z3", (3, 3), strides=(2, 2), pads=(1, 1, 0, 0))
    z3 = builder.add("Sub", (z3, conv(h2, 3, (1, 3, 2, 2), "c3", (1, 1), (2, 2), (0, 0, 0, 0))), (1, 3, 2, 2), "z4")
    h3 = builder.add("Relu", (z3,), (1, 3, 2, 2), "h3")
    flat = builder.add("Reshape", (h3,), (1, 12), "flat")
    weight = rng.standard_normal((12, 2)).astype(np.float32)
    y = builder.add("Dense", (flat,), (1, 2), "y", weight=weight, bias=np.zeros(2, np.float32))
    return builder.finish(("x",), (y,))


def prepared(seed: int, dtype: torch.dtype):
    """An engine, intervals over a box, default planes, the box and points of it."""
    engine = TorchEngine(image_net(seed), dtype=dtype)
    rng = np.random.default_rng(seed)
    size = engine.graph.input_size
    center = rng.standard_normal((1, size))
    low, high = engine.boxes((center - 0.1).astype(np.float32), (center + 0.1).astype(np.float32))
    box = engine.enclose(low, high, refined=False).box
    points = low.double().numpy() + np.round(rng.random((100, size)), 1) * (high - low).double().numpy()
    points = np.clip(points.astype(np.float32), low.numpy(), high.numpy()).astype(np.float64)
    return engine, box, LazyPlanes(engine.network, box), (low, high), points


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("side", (1, 3, 9))
def test_cropped_rows_give_the_bounds_of_whole_rows_and_hold(side, dtype):
    near = 1e-3 if dtype is torch.float32 else 1e-9
    engine, box, planes, (low, high), points = prepared(side, dtype)
    network = engine.network
    exact = [evaluate_all(network.graph, points, a) for a in ("float64", "float32")]
    for name in ("z0", "z1", "z2", "z4"):
        node = network.graph[name]
        seen = []
        for part in tiles(node.shape, torch.arange(node.size), side):
            seen.append(part)
            found = patch_bounds(network, box, planes, name, part)[0]
            form = backward(network, {name: engine.unit_rows(name, part, 1)}, box, planes)
            whole = concretize(form, low, high)[0][0]
            torch.testing.assert_close(found, whole, rtol=near, atol=near)
            for values in exact:
                mine = torch.as_tensor(values[name]).reshape(len(points), -1)[:, part].double()
                assert torch.all(mine >= found[: len(part)]), name
                assert torch.all(-mine >= found[len(part) :]), name
        assert torch.equal(torch.cat(seen).sort().values, torch.arange(node.size))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_engine_uses_patches_and_stays_sound(dtype, monkeypatch):
    monkeypatch.setattr(torch_engine, "PATCH_SHARE", 10.0)
    engine, _, _, (low, high), points = prepared(3, dtype)
    used = []
    plain = torch_engine.patch_bounds
    monkeypatch.setattr(torch_engine, "patch_bounds", lambda *given: used.append(given[3]) or plain(*given))
    found = engine.enclose(low, high).box
    assert {"z1", "z2", "z4"} <= set(used)
    for arithmetic in ("float32", "float64"):
        for name, values in evaluate_all(engine.network.graph, points, arithmetic).items():
            if name in found.lower:
                assert np.all(values >= found.lower[name].numpy()), name
                assert np.all(values <= found.upper[name].numpy()), name
    intervals = engine.enclose(low, high, refined=False).box
    narrow, wide = (float((b.upper["z4"] - b.lower["z4"]).sum()) for b in (found, intervals))
    assert narrow < 0.8 * wide


def test_only_images_are_local_and_deep_rows_cost_more():
    network = TorchEngine(image_net(0)).network
    assert is_local(network, "z4")
    assert not is_local(network, "y")
    assert not is_local(TorchEngine(CASES["relu"]()).network, "z1")
    costs = [patch_flops(network, name, 1) for name in ("z0", "z1", "z2", "z4")]
    assert costs == sorted(costs)
    assert patch_flops(network, "z0", 1) < network.row_flops("z0") / 10


def test_the_cone_holds_every_input_that_matters():
    graph = image_net(5)
    engine = TorchEngine(graph)
    rng = np.random.default_rng(5)
    start = {"z1": engine.network.graph["z1"].size}
    assert start["z1"] > 0
    point = rng.standard_normal(graph.input_size)
    rows = torch.tensor([[0.0, 2.0]], dtype=engine.dtype)
    cone = cone_of(engine.network, rows)
    assert bool(cone["z4"].all())
    moved = np.stack([point + 0.5 * np.eye(graph.input_size)[i] for i in range(graph.input_size)])
    changed = evaluate(graph, moved)[:, 1] != evaluate(graph, point[None])[0, 1]
    assert np.all(cone["x"].numpy()[changed])
    # One position of the last image sees part of the earlier ones only.
    narrow = cone_of(TorchEngine(_cut(graph)).network, torch.tensor([[1.0] + [0.0] * 47], dtype=engine.dtype))
    assert 0 < int(narrow["x"].sum()) < graph.input_size
    assert 0 < int(narrow["z1"].sum()) < start["z1"]


def _cut(graph):
    """The network up to its third convolution's output, as a row of 48 numbers."""
    builder = GraphBuilder()
    for name in graph.nodes:
        builder.nodes[name] = graph[name]
        if name == "z2":
            break
    flat = builder.add("Reshape", ("z2",), (1, 48), "out")
    return builder.finish(("x",), (flat,)).pruned()
