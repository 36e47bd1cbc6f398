"""Several trees search one tree's subdomains: each is worked on once, results and errors reach the caller."""

from __future__ import annotations

import itertools
import threading
import time

import numpy as np
import pytest

from verifier.bounds.engine import DomainBatch
from verifier.bounds.native_domains import NativeDomains
from verifier.graph.ir import Graph, GraphBuilder
from verifier.outcome import Verdict
from verifier.run import Run
from verifier.search import activation_split
from verifier.search.input_split import SplitResult
from verifier.search.strategy import decide
from verifier.search.team import Team
from verifier.settings import Settings
from verifier.spec.problem import Case, Clause, InputSet, Problem
from verifier.spec.query import query_of


class Numbers:
    """A tree whose subdomains are numbers: each takes a moment, and small ones split into two."""

    def __init__(self, numbers: list[int], seen: list[int], run: Run):
        self.open, self.seen, self.run = numbers, seen, run
        self.worst = 0.0
        self.threads = set[int]()

    def __len__(self) -> int:
        return len(self.open)

    def search(self, until: float) -> SplitResult | None:
        while self.open:
            if time.monotonic() > until or self.run.stopped():
                return None
            self.threads.add(threading.get_ident())
            number = self.open.pop()
            time.sleep(0.001)
            self.seen.append(number)
            self.run.visited += 1
            if number < 100:
                self.open += [2 * number + 100, 2 * number + 101]
        return SplitResult(None, 0)

    def give(self) -> list[int] | None:
        if len(self.open) < 2:
            return None
        half = len(self.open) // 2
        given, self.open = self.open[:half], self.open[half:]
        return given

    def receive(self, batch: list[int]) -> None:
        self.open += batch


@pytest.mark.parametrize("count", [2, 4])
def test_every_subdomain_is_closed_once_and_all_trees_work(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("verifier.search.team.SLICE_S", 0.01)
    run, seen = Run(), list[int]()
    trees = [Numbers(list(range(200)) if k == 0 else [], seen, run.limited(np.inf)) for k in range(count)]
    result = Team(trees, run).search()
    assert result == SplitResult(None, 0)
    expected = sorted([*range(200), *itertools.chain.from_iterable((2 * k + 100, 2 * k + 101) for k in range(100))])
    assert sorted(seen) == expected
    assert run.visited == len(expected)
    assert all(tree.threads for tree in trees), "a tree never had work"


def test_what_stays_open_at_the_deadline_is_counted() -> None:
    run = Run.within(0.15, None)
    trees = [Numbers(list(range(1000, 3000)) if k == 0 else [], [], run.limited(np.inf)) for k in range(2)]
    result = Team(trees, run).search()
    assert result is not None and result.witness is None and not result.exhausted
    assert result.open_count == 2000 - sum(len(tree.seen) for tree in trees) > 0


def test_a_result_ends_the_search_and_an_error_reaches_the_caller() -> None:
    class Lucky(Numbers):
        def search(self, until: float) -> SplitResult | None:
            return SplitResult("witness", len(self))

    class Broken(Numbers):
        def search(self, until: float) -> SplitResult | None:
            raise ValueError("broken")

    for other in (Lucky, Broken):
        run = Run()
        trees = [Numbers(list(range(1000, 100_000)), [], run.limited(np.inf)), other([], [], run.limited(np.inf))]
        begin = time.monotonic()
        if other is Broken:
            with pytest.raises(ValueError, match="broken"):
                Team(trees, run).search()
        else:
            result = Team(trees, run).search()
            assert result is not None and result.witness == "witness"
        assert time.monotonic() - begin < 20


def hard_network(seed: int) -> Graph:
    """One wide hidden layer: many splits, none of them deep."""
    rng = np.random.default_rng(seed)
    builder = GraphBuilder()
    x = builder.add("Input", (), (1, 10), "x")
    first = rng.normal(size=(10, 28)).astype(np.float32)
    z = builder.add("Dense", (x,), (1, 28), "z", weight=first, bias=rng.normal(size=28).astype(np.float32))
    h = builder.add("Relu", (z,), (1, 28), "h")
    last = rng.normal(size=(28, 1)).astype(np.float32)
    y = builder.add("Dense", (h,), (1, 1), "y", weight=last, bias=np.zeros(1, np.float32))
    return builder.finish(("x",), (y,))


def lowest_value(graph: Graph, lower: np.ndarray, upper: np.ndarray) -> float:
    """The network's minimum over the box, by mixed-integer programming."""
    from verifier.tighten.milp import milp_bound

    found = milp_bound(graph, InputSet(lower, upper), np.eye(1))
    return float(found.lower[0])


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_verdicts_on_both_sides_of_the_exact_minimum(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for constant in ("PLAIN_S", "TRIAL_SHARE"):  # the team comes at once
        monkeypatch.setattr(activation_split, constant, 0.0)
    monkeypatch.setattr(NativeDomains, "refine", lambda *_: False)
    monkeypatch.setattr("verifier.search.programs.MOST_NEURONS", 0)
    monkeypatch.setattr("verifier.search.strategy.FEW_INPUTS", 1)
    monkeypatch.setattr("verifier.search.strategy.MIDDLING_INPUTS", 1)
    asked = list[int]()
    searched = Team.search
    monkeypatch.setattr(Team, "search", lambda self: (asked.append(len(self._trees)), searched(self))[1])
    graph = hard_network(3)
    lower, upper = np.full(10, -0.25), np.full(10, 0.25)
    least = lowest_value(graph, lower, upper)
    for shift, expected in ((-1e-3, Verdict.UNSAT), (0.05, Verdict.SAT)):
        clause = Clause(np.ones((1, 1)), np.array([least + shift * abs(least)]), np.zeros(1, dtype=bool))
        problem = Problem((Case(InputSet(lower, upper), (clause,)),), 1)
        settings = Settings(threads=threads, timeout_s=60.0)
        run = Run.within(60.0, None)
        found = decide(query_of(graph, problem), settings, run, lambda _, point: (point,), attack_only=False)
        assert found.verdict is expected, (shift, found)
    assert set(asked) <= {threads} and (threads == 1) == (not asked)


def test_batches_pass_between_engines_of_the_same_root() -> None:
    from verifier.bounds.native_domains import root_domains
    from verifier.bounds.native_engine import NativeEngine
    from verifier.spec.groups import group_cases

    graph = hard_network(5)
    lower, upper = np.full(10, -0.4), np.full(10, 0.4)
    clause = Clause(np.ones((1, 1)), np.array([-1e3]), np.zeros(1, dtype=bool))
    problem = Problem((Case(InputSet(lower, upper), (clause,)),), 1)
    (group,) = group_cases(problem)
    domains, _ = root_domains(NativeEngine(graph, threads=2), group, 0, Run())
    other = domains.alone(1)
    batch: DomainBatch = domains.initial(np.zeros(1, dtype=np.int64))
    for _ in range(4):
        batch = domains.branch(domains.bound(batch, 8, lambda: False).batch)
    ours, theirs = (d.bound(batch, 8, lambda: False) for d in (domains, other))
    np.testing.assert_array_equal(ours.row_margins, theirs.row_margins)
    np.testing.assert_array_equal(ours.batch.candidates, theirs.batch.candidates)
