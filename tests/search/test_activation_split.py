"""The loop of activation splitting over the native engine: every clause counts, planted points stay open."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "bounds"))
from native_nets import chain

from verifier.bounds import native_domains, torch_engine
from verifier.bounds.native_engine import NativeEngine
from verifier.bounds.torch_engine import TorchEngine
from verifier.graph.evaluate import evaluate
from verifier.run import Run
from verifier.search import activation_split, subdomain_tree
from verifier.search.activation_split import split_activations
from verifier.spec.groups import group_cases
from verifier.spec.problem import Case, Clause, InputSet, Problem


@pytest.fixture(autouse=True)
def no_programs(monkeypatch):
    """What is tested here is the tree."""
    monkeypatch.setattr("verifier.search.programs.MOST_NEURONS", 0)


class Blind:
    """A falsifier that finds nothing, so that only bounds can decide."""

    def try_points(self, box, points):
        return None

    def again(self, run):
        return None


def decide(graph, lower, upper, rows, limits, seconds):
    clauses = tuple(Clause(r[None], np.array([t]), np.array([False])) for r, t in zip(rows, limits, strict=True))
    group = group_cases(Problem((Case(InputSet(lower, upper), clauses),), graph.output_size))[0]
    run = Run().limited(seconds)
    engine = NativeEngine(graph, threads=1, forms=False)
    return split_activations(engine, group, 0, Blind(), run), run


@pytest.mark.parametrize("planted", (None, 0, 17, 39))
def test_every_clause_is_decided_however_the_batches_fall(planted, monkeypatch):
    """Batches that shrink from call to call must not skip clauses."""
    monkeypatch.setattr(native_domains, "FIRST_ROWS", 16)
    monkeypatch.setattr(native_domains, "CALL_SECONDS", 1e-9)
    rng = np.random.default_rng(1)
    graph = chain(rng, [4, 16, 12, 3])
    lower, upper = -0.3 * np.ones(4), 0.3 * np.ones(4)
    rows = rng.normal(size=(40, 3))
    values = evaluate(graph, np.clip(rng.normal(size=(3000, 4)), lower, upper)) @ rows.T
    limits = values.min(axis=0) - 0.2 * np.abs(values).max()
    if planted is not None:
        limits[planted] = values[:, planted].min() + 1e-3  # some point is unsafe
    result, _ = decide(graph, lower, upper, rows, limits, 20 if planted is None else 2)
    assert result.witness is None
    assert (result.open_count == 0) == (planted is None)


@pytest.mark.parametrize("seed", range(4))
def test_planted_points_are_never_closed(seed):
    """The lowest value met is just below the limit: no search may close the clause, refining included."""
    rng = np.random.default_rng(seed)
    graph = chain(rng, [5, 14, 14, 14, 2])
    center = rng.normal(size=5)
    lower, upper = np.float64(np.float32(center - 0.4)), np.float64(np.float32(center + 0.4))
    points = np.clip(np.float64(np.float32(center + 0.5 * rng.uniform(-1, 1, size=(20000, 5)))), lower, upper)
    row = rng.normal(size=2)
    lowest = float((evaluate(graph, points, "float32").astype(float) @ row).min())
    result, _ = decide(graph, lower, upper, row[None], np.array([lowest]), 3)
    assert result.open_count > 0
    clear, _ = decide(graph, lower, upper, row[None], np.array([lowest - 0.5]), 30)
    assert clear.open_count == 0 or clear.exhausted


@pytest.mark.parametrize("seed", range(4))
def test_closer_looks_close_what_plain_splitting_closes(seed, monkeypatch):
    """From the first moment on, or not at all: the clause is closed, and looks did close subdomains."""
    monkeypatch.setattr(activation_split, "PLAIN_S", -1.0)
    monkeypatch.setattr(subdomain_tree, "BRIEF_SHARE", 0.0)
    rng = np.random.default_rng(seed)
    graph = chain(rng, [8, 24, 24, 24, 2])
    lower, upper = -0.2 * np.ones(8), 0.2 * np.ones(8)
    row = rng.normal(size=2)
    values = evaluate(graph, rng.uniform(lower, upper, size=(4000, 8))) @ row
    limits = np.array([float(values.min() - 0.3 * (values.max() - values.min()))])
    result, run = decide(graph, lower, upper, row[None], limits, 60)
    assert result.open_count == 0 and not result.exhausted
    assert any(stage == "cut off" and " 0 closer" not in text for _, stage, text in run.events)
    monkeypatch.setattr(subdomain_tree, "MOST_BRANCHES", 0)
    plain, run = decide(graph, lower, upper, row[None], limits, 60)
    assert plain.open_count == 0 and not any(stage == "cut off" for _, stage, _ in run.events)


@pytest.mark.parametrize("engine", [NativeEngine, TorchEngine])
def test_a_run_whose_time_is_over_leaves_every_clause_open(engine):
    rng = np.random.default_rng(2)
    graph = chain(rng, [4, 16, 12, 3])
    rows = rng.normal(size=(20, 3))
    clauses = tuple(Clause(r[None], np.array([1e3]), np.array([False])) for r in rows)  # unsafe everywhere
    group = group_cases(Problem((Case(InputSet(-np.ones(4), np.ones(4)), clauses),), 3))[0]
    result = split_activations(engine(graph), group, 0, Blind(), Run().limited(-1.0))
    assert result.witness is None and result.open_count == 20


def test_refining_leaves_time_for_the_rows_asked_for(monkeypatch):
    """What passes are counted on to take decides: none is tried for which there is no time."""
    graph = chain(np.random.default_rng(3), [4, 200, 200, 3])
    box = [np.full((1, 4), x) for x in (-0.1, 0.1)]
    passes = []
    backward = torch_engine.backward
    monkeypatch.setattr(torch_engine, "backward", lambda *a, **k: passes.append(1) or backward(*a, **k))
    for seconds, rows, expected in ((0.0, 0, False), (60.0, 10**9, False), (60.0, 3, True)):
        engine = TorchEngine(graph, deadline=time.monotonic() + seconds)
        engine.flops_per_second = 1e7
        passes.clear()
        engine.enclose(*engine.boxes(*box), rows=rows)
        assert bool(passes) is expected
