"""A clause that some input of the deployed program satisfies is never refuted, however close its limit is."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from verifier.bounds.clauses import PaddedClauses
from verifier.bounds.native_domains import NativeDomains
from verifier.bounds.native_engine import NativeEngine
from verifier.graph.evaluate import evaluate_all
from verifier.graph.ir import Graph, GraphBuilder
from verifier.spec.problem import Clause, InputSet
from verifier.tighten.deployed import rounding_errors
from verifier.tighten.feed import Known, LastMile

PADS = {"strides": (1, 1), "pads": (1, 1, 1, 1), "dilations": (1, 1), "groups": 1}


def net(seed: int, kind: str) -> Graph:
    """Convolutions with a shortcut, or dense layers; float32."""
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> np.ndarray:
        return (rng.normal(size=shape) / np.sqrt(max(np.prod(shape[1:]), 1))).astype(np.float32)

    builder, size = GraphBuilder(), 16 if kind == "conv" else 12
    shape: tuple[int, ...] = (1, 1, 4, 4) if kind == "conv" else (1, size)
    last = builder.add("Input", (), shape, "x")
    if kind == "conv":
        for k, (channels, out) in enumerate(pairwise((1, 4, 4, 4))):
            before = last
            weight = draw(out, channels, 3, 3)
            last = builder.add("Conv", (last,), (1, out, 4, 4), f"z{k}", weight=weight, bias=draw(out), **PADS)
            if k == 1:
                last = builder.add("Add", (last, before), (1, out, 4, 4), "s")
            last = builder.add("Relu", (last,), (1, out, 4, 4), f"h{k}")
        last = builder.add("Reshape", (last,), (1, 64), "f")
        size = 64
    else:
        for k, out in enumerate((16, 14, 10)):
            last = builder.add("Dense", (last,), (1, out), f"z{k}", weight=draw(size, out) * 2, bias=draw(out))
            op, attrs = ("LeakyRelu", {"alpha": 0.1}) if kind == "leaky" else ("Relu", {})
            last, size = builder.add(op, (last,), (1, out), f"h{k}", **attrs), out
    y = builder.add("Dense", (last,), (1, 3), "y", weight=draw(size, 3), bias=draw(3))
    return builder.finish(("x",), (y,))


@pytest.mark.parametrize("kind", ["conv", "dense", "leaky"])
@pytest.mark.parametrize("seed", range(8))
def test_no_clause_with_a_counterexample_is_refuted(kind: str, seed: int) -> None:
    graph, rng = net(seed, kind), np.random.default_rng(seed)
    size, radius = graph.input_size, (1e-3, 0.05, 0.3, 1.0)[seed % 4]
    center = rng.uniform(-0.5, 0.5, size).astype(np.float32).astype(np.float64)
    reach = np.float32(radius).astype(np.float64)
    lower, upper = (center - reach).astype(np.float32), (center + reach).astype(np.float32)
    box = InputSet(lower.astype(np.float64), upper.astype(np.float64))
    engine = NativeEngine(graph, threads=1)
    nothing = PaddedClauses(np.eye(3)[None], np.zeros((1, 3)), np.zeros((1, 3), dtype=bool))
    known, sizes = NativeDomains(engine, box.lower, box.upper, nothing).node_bounds(graph)
    programs = LastMile(graph, box, Known(known, rounding_errors(graph, sizes, real=False)))
    t = rng.random((4000, size))
    t[:2000] = np.round(t[:2000])
    points = np.clip((lower + t * (upper - lower)).astype(np.float32), lower, upper).astype(np.float64)
    outputs = evaluate_all(graph, points, "float32")["y"].reshape(-1, 3).astype(np.float64)
    rows = np.concatenate([np.eye(3), -np.eye(3), [[1, -1, 0], [0, 1, -1]]])
    values = outputs @ rows.T
    for row, least, spread in zip(rows, values.min(axis=0), np.ptp(values, axis=0), strict=True):
        clause = Clause(row[None], np.array([least]), np.zeros(1, dtype=bool))
        assert not programs.refute(clause, np.inf, lambda at: at.visited > 40).refuted
        # one far below everything is
        far = Clause(row[None], np.array([least - 20 * spread - 1]), np.zeros(1, dtype=bool))
        assert programs.refute(far, np.inf, lambda at: at.visited > 40).refuted
    pair = values.argmin(axis=0)[[0, 1]]
    for k in pair:  # two rows at once, both met by one point
        both = Clause(rows[:2], outputs[k] @ rows[:2].T, np.zeros(2, dtype=bool))
        assert not programs.refute(both, np.inf, lambda at: at.visited > 40).refuted
