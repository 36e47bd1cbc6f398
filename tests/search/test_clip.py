"""Clipping never loses a point that satisfies an open clause, and rows of one clause work together."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from verifier.bounds.engine import BoxBounds
from verifier.search.clip import clip, surrogate
from verifier.search.input_split import bisect
from verifier.search.pace import bound_rows
from verifier.spec.groups import ClauseRows, Group
from verifier.spec.problem import Clause


def rows_of(sizes, rng=None, outputs=2):
    rng = rng or np.random.default_rng(0)
    return ClauseRows(
        tuple(Clause(rng.standard_normal((k, outputs)), np.zeros(k), np.zeros(k, dtype=bool)) for k in sizes)
    )


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.integers(1, 4), min_size=1, max_size=3), st.integers(-8, 8))
def test_every_point_where_an_open_clause_can_hold_remains(seed, sizes, exponent):
    rng = np.random.default_rng(seed)
    b, n, rows = 12, 3, rows_of(sizes)
    scale = 10.0**exponent
    lower = scale * rng.uniform(-2, 1, (b, n))
    upper = lower + scale * rng.uniform(0, 2, (b, n)) * (rng.random((b, n)) < 0.9)
    s = len(rows.clause)
    coeffs = rng.standard_normal((b, s, n)) * (rng.random((b, s, n)) < 0.8)
    offset = scale * rng.standard_normal((b, s))
    limits = scale * rng.standard_normal((b, s))
    bounds = BoxBounds(np.full((b, s), -np.inf), coeffs, offset, np.zeros((b, n)))
    proved = rng.random((b, rows.count)) < 0.2
    low, high, is_open = clip(bounds, rows, limits, proved, lower, upper)
    assert not np.any(is_open & proved)
    for k in range(b):
        x = rng.uniform(lower[k], upper[k], (400, n))
        x[:100] = np.where(rng.random((100, n)) < 0.5, lower[k], upper[k])
        holds = x @ coeffs[k].T + offset[k] <= limits[k]
        for clause in np.flatnonzero(~proved[k]):
            kept = x[holds[:, rows.clause == clause].all(axis=1)]
            if len(kept):
                assert is_open[k, clause]
                assert np.all((kept >= low[k]) & (kept <= high[k]))


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 5))
def test_a_surrogate_holds_where_all_rows_do(seed, count):
    rng = np.random.default_rng(seed)
    b, n = 8, 4
    lower = rng.uniform(-2, 1, (b, n))
    upper = lower + rng.uniform(0, 1, (b, n))
    inside = rng.uniform(lower, upper)
    halfspaces = []
    for _ in range(count):
        a = rng.standard_normal((b, n)) * 10.0 ** rng.integers(-4, 5)
        halfspaces.append((a, (a * inside).sum(axis=1) + 1e-9 * np.abs(a).sum(axis=1)))
    coeffs, limit = surrogate(halfspaces, lower, upper)
    assert np.all((coeffs * inside).sum(axis=1) <= limit)


def test_two_rows_exclude_a_box_that_neither_excludes_alone():
    """x + y <= -0.1 and -x - y <= -0.1 on [-1, 1]^2; shrinking one after the other leaves something."""
    bounds = BoxBounds(np.zeros((1, 2)), np.array([[[1.0, 1.0], [-1.0, -1.0]]]), np.zeros((1, 2)), np.zeros((1, 2)))
    lower, upper = -np.ones((1, 2)), np.ones((1, 2))
    _, _, is_open = clip(bounds, rows_of([2]), np.full((1, 2), -0.1), np.zeros((1, 1), dtype=bool), lower, upper)
    assert not is_open.any()


def test_not_finite_forms_move_nothing():
    coeffs = np.array([[[np.nan, 1.0], [np.inf, 1.0]]])
    bounds = BoxBounds(np.zeros((1, 2)), coeffs, np.array([[-np.inf, 0.0]]), np.zeros((1, 2)))
    lower, upper = -np.ones((1, 2)), np.ones((1, 2))
    low, high, is_open = clip(bounds, rows_of([2]), np.zeros((1, 2)), np.zeros((1, 1), dtype=bool), lower, upper)
    assert is_open.all() and np.array_equal(low, lower) and np.array_equal(high, upper)


def group_of(rows, limits):
    return Group(rows, np.zeros((2, 3)), np.ones((2, 3)) * np.array([[1.0], [2.0]]), limits, np.arange(2))


def test_asking_for_some_clauses_keeps_their_rows_and_limits():
    rows = rows_of([2, 1, 3])
    group = group_of(rows, np.arange(12.0).reshape(2, 6))
    part = group.asking(np.array([True, False, True]))
    assert part.rows.count == 2 and part.rows.clause.tolist() == [0, 0, 1, 1, 1]
    assert np.array_equal(part.rows.coeffs, rows.coeffs[[0, 1, 3, 4, 5]])
    assert part.limits.tolist() == [[0.0, 1.0, 3.0, 4.0, 5.0], [6.0, 7.0, 9.0, 10.0, 11.0]]
    margins = np.arange(10.0).reshape(2, 5)
    assert part.rows.clause_margins(margins).tolist() == [[1.0, 4.0], [6.0, 9.0]]
    assert group.asking(np.ones(3, dtype=bool)) is group


def test_repeated_rows_are_bounded_once():
    shared = np.array([[1.0, 0.0]])
    clauses = [
        Clause(np.concatenate([np.array([[0.0, k]]), shared]), np.zeros(2), np.zeros(2, bool)) for k in (1.0, 2.0)
    ]
    group = group_of(ClauseRows(tuple(clauses)), np.zeros((2, 4)))
    asked = []

    class Engine:
        def bound_boxes(self, lower, upper, rows, *, refine):
            asked.append(rows)
            value = np.tile(rows @ np.array([10.0, 1.0]), (len(lower), 1))
            coeffs = np.broadcast_to(value[:, :, None], (*value.shape, 3))
            return BoxBounds(value, coeffs, value, np.zeros_like(lower))

    bounds = bound_rows(Engine(), group, group.lower, group.upper, refine=True)
    assert asked[0].tolist() == [[0.0, 1.0], [1.0, 0.0], [0.0, 2.0]]
    assert bounds.lower[0].tolist() == [1.0, 10.0, 2.0, 10.0] and bounds.coeffs.shape == (2, 4, 3)


def test_halves_cover_their_box():
    rng = np.random.default_rng(0)
    rows = rows_of([1])
    lower = rng.uniform(-1, 0, (5, 3))
    upper = lower + rng.uniform(0, 1, (5, 3))
    group = Group(rows, lower.min(axis=0)[None], upper.max(axis=0)[None], np.zeros((1, 1)), np.zeros(1, int))
    bounds = BoxBounds(-np.ones((5, 1)), rng.standard_normal((5, 1, 3)), np.zeros((5, 1)), np.ones((5, 3)))
    low, high, parent, stuck = bisect(bounds, group, bounds.lower, lower, upper)
    assert not stuck.any() and parent.tolist() == [0, 1, 2, 3, 4] * 2
    x = rng.uniform(lower, upper, (200, 5, 3))
    first = np.all((x >= low[:5]) & (x <= high[:5]), axis=-1)
    second = np.all((x >= low[5:]) & (x <= high[5:]), axis=-1)
    assert np.all(first | second) and not np.all(first) and not np.all(second)
