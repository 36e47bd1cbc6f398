"""Open boxes and subdomains stay within memory: past a limit those nearest to a proof come first, all are closed."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "bounds"))
from native_nets import chain
from test_activation_split import Blind

from verifier.bounds.native_engine import NativeEngine
from verifier.run import Run
from verifier.search import input_split, pace
from verifier.search.frontier import Frontier
from verifier.search.input_split import BoxPool, split_inputs
from verifier.spec.groups import group_cases
from verifier.spec.problem import Case, Clause, InputSet, Problem


def most_boxes(limit_bytes, monkeypatch) -> tuple[int, int, int]:
    """Boxes open at the end, at most, and visited, when a box of a small network is split."""
    graph = chain(np.random.default_rng(4), [6, 30, 30, 2])
    clause = Clause(np.array([[1.0, -1.0]]), np.array([-0.75]), np.array([False]))  # the minimum is about -0.71
    group = group_cases(Problem((Case(InputSet(-np.ones(6), np.ones(6)), (clause,)),), 2))[0]
    monkeypatch.setattr(input_split, "POOL_BYTES", limit_bytes)
    monkeypatch.setattr(pace.Pace, "_adapt", lambda self, count, seconds: setattr(self, "batch", 16))
    monkeypatch.setattr(pace.Pace, "compare", lambda *_: None)
    sizes, put = [], BoxPool.put
    monkeypatch.setattr(BoxPool, "put", lambda self, *parts: (put(self, *parts), sizes.append(len(self))))
    run = Run()
    result = split_inputs(NativeEngine(graph, threads=1), group, Blind(), run)
    monkeypatch.undo()
    return result.open_count, max(sizes), run.visited


def test_boxes_past_the_limit_are_closed_depth_first(monkeypatch):
    free, tight = most_boxes(1 << 40, monkeypatch), most_boxes(4000, monkeypatch)
    assert free[0] == tight[0] == 0
    assert tight[1] < 0.5 * free[1]


class Parts:
    """Subdomains that are nothing but margins."""

    def __init__(self, margins: np.ndarray):
        self.margins, self.clauses, self.nbytes = margins, np.zeros(len(margins), np.int64), 100 * len(margins)

    def __len__(self) -> int:
        return len(self.margins)

    def select(self, index: np.ndarray) -> Parts:
        return Parts(self.margins[index])


class Joiner:
    def join(self, parts: list[Parts]) -> Parts:
        return Parts(np.concatenate([p.margins for p in parts]))

    def forget(self, batch: Parts) -> Parts:
        return batch


def test_a_crowded_frontier_takes_the_nearest_first_and_loses_nothing():
    rng = np.random.default_rng(0)
    frontier = Frontier(Joiner(), limit_bytes=25_000)
    every = [rng.normal(size=100) for _ in range(20)]
    for margins in every:
        frontier.put(Parts(margins))
    taken, sorted_all = [], np.sort(np.concatenate(every))
    first = frontier.take(10).margins
    assert np.array_equal(np.sort(first), sorted_all[-10:])
    taken.append(first)
    while len(frontier):
        taken.append(frontier.take(64).margins)
    assert np.array_equal(np.sort(np.concatenate(taken)), sorted_all)
