"""The tree over any bounder: leaves cover the domain, nothing closes without a bound, sizes are foretold."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verifier.tighten.neuron_tree import NeuronTree, Progress, Sides, Visit


class Table:
    """Bounds read off a table: the least value of the corners in a subdomain, less what its free neurons cost."""

    def __init__(self, values: np.ndarray, cost: np.ndarray):
        self.values, self.cost, self.neurons = values, cost, values.ndim
        self.seen: list[dict[int, int]] = []

    def of(self, sides: Sides) -> float:
        part = self.values[tuple(sides.get(k, slice(None)) for k in range(self.neurons))]
        return float(np.min(part) - sum(c for k, c in enumerate(self.cost) if k not in sides))

    def visit(self, siblings: Sequence[Sides], state: int, known: float, target: float, deadline: float) -> list[Visit]:
        self.seen += [dict(sides) for sides in siblings]
        assert all(state == len(sides) - 1 for sides in siblings if sides)
        losses = [np.array([0.0 if k in sides else c for k, c in enumerate(self.cost)]) for sides in siblings]
        likely = np.zeros(self.neurons, dtype=np.int64)
        return [Visit(self.of(s), c, likely, np.zeros(1), len(s)) for s, c in zip(siblings, losses, strict=True)]

    def glances(self, every: Sequence[Sides], state: int, target: float, deadline: float) -> list[float]:
        return [self.of(sides) for sides in every]


tables = st.integers(1, 5).flatmap(
    lambda n: st.tuples(
        st.lists(st.floats(-5, 5), min_size=2**n, max_size=2**n).map(lambda v: np.array(v).reshape((2,) * n)),
        st.lists(st.floats(0.01, 2), min_size=n, max_size=n).map(np.array),
    )
)


@settings(max_examples=60, deadline=None)
@given(tables, st.floats(-6, 6))
def test_leaves_cover_the_domain_and_close_where_the_least_value_is_above(table, target):
    bounder = Table(*table)
    found = NeuronTree(bounder).prove_above(target, np.inf)
    least = float(bounder.values.min())
    assert found.closed is (least > target)
    assert found.lower <= least + 1e-12
    if found.closed:
        leaves = [s for s in bounder.seen if bounder.of(s) > target]
        corners = [
            sum(all(corner[k] == side for k, side in sides.items()) for sides in leaves)
            for corner in product((0, 1), repeat=bounder.neurons)
        ]
        assert set(corners) == {1}


@settings(max_examples=60, deadline=None)
@given(tables)
def test_best_first_ends_at_the_least_value(table):
    bounder = Table(*table)
    found = NeuronTree(bounder).lowest(np.inf, lambda: False, lambda point: np.inf)
    assert found == pytest.approx(float(bounder.values.min()))


def test_a_stopped_tree_proves_nothing_and_keeps_its_bound():
    bounder = Table(np.full((2,) * 6, 1.0), np.full(6, 1.0))
    found = NeuronTree(bounder).prove_above(0.0, np.inf, stop=lambda at: at.visited >= 3)
    assert not found.closed and found.lower <= 0
    assert not NeuronTree(bounder).prove_above(0.0, -np.inf).closed


def test_the_size_is_foretold():
    """Where every split gains the same and all are alike, exactly; the share closed ends at one."""
    bounder, met = Table(np.full((2,) * 8, 0.5), np.full(8, 1.0)), list[Progress]()

    def watch(at: Progress) -> bool:
        met.append(at)
        return False

    assert NeuronTree(bounder).prove_above(0.0, np.inf, stop=watch).closed
    assert met[0].expected == 1.0
    # 7.5 is missing and 1 gained on both sides: a binary tree of depth 8
    assert met[-1].expected == pytest.approx(2**7.5, rel=0.01)
    assert len(bounder.seen) == 2**9 - 1
    assert met[-1].share < 1


def test_nan_closes_nothing():
    bounder = Table(np.array([np.nan, 5.0]), np.array([1.0]))
    assert not NeuronTree(bounder).prove_above(0.0, np.inf).closed
