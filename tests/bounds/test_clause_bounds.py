"""Bounds where a clause can hold: no point where it does escapes, and what they refute has no such point."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from test_crossed_domains import transformer
from test_shortcuts import DTYPES, TOKENS, WIDTH

from verifier.bounds.clause_bounds import copied, cut_off, is_empty
from verifier.bounds.clause_rows import ClauseRows
from verifier.bounds.crossed_domains import CrossedDomains
from verifier.bounds.domains import DomainEngine
from verifier.bounds.torch_engine import TorchEngine
from verifier.graph.evaluate import evaluate_all


def setting(seed: int, dtype: torch.dtype, rows_each: int, share: float, radius: float = 0.05):
    """Domains of one clause, which this share of the sampled points satisfies, and those points."""
    graph = transformer(seed)
    engine = TorchEngine(graph, dtype=dtype)
    rng = np.random.default_rng(seed)
    center = rng.standard_normal((1, TOKENS * WIDTH))
    ends = [x.astype(np.float32).astype(np.float64) for x in (center - radius, center + radius)]
    low, high = engine.boxes(*ends)
    corners = rng.random((3000, TOKENS * WIDTH)) ** rng.choice([0.2, 1.0, 5.0], (3000, 1))
    points = low.double().numpy() + corners * (high - low).double().numpy()
    points = np.clip(points.astype(np.float32).astype(np.float64), *ends)
    rows = rng.standard_normal((rows_each, 2)).astype(np.float32)
    values = evaluate_all(graph, points, "float32")["y"].reshape(len(points), 2).astype(np.float64) @ rows.T
    limits = np.quantile(values, share ** (1 / rows_each), axis=0)
    inside = points[(values <= limits).all(1)]
    clause = torch.as_tensor(rows).to(dtype)[None]
    t = torch.as_tensor(limits)[None]
    whole = DomainEngine(engine, engine.enclose(low, high), low, high, clause, t, t < -1e300)
    return whole, inside


def tightened(whole: DomainEngine, one):
    found = copied(whole.network, whole.found)
    cut_off(whole, found, one, 12, lambda: False)
    return found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows_each", (1, 2))
@pytest.mark.parametrize("seed", range(3))
def test_no_point_where_the_clause_holds_escapes(dtype, rows_each, seed):
    whole, inside = setting(seed, dtype, rows_each, 0.02)
    assert len(inside) > 0
    one = whole.bound(whole.initial(np.array([0])), 10, lambda: False).batch
    found = tightened(whole, one)
    assert not is_empty(found.box)
    values = evaluate_all(whole.network.graph, inside, "float32")
    for name, lower in found.box.lower.items():
        if name in values:
            assert np.all(values[name] >= lower.double().numpy()), name
            assert np.all(values[name] <= found.box.upper[name].double().numpy()), name
    before, after = (
        sum(float((box.upper[n] - box.lower[n]).double().sum()) for n in whole.open) for box in (whole.root, found.box)
    )
    assert after < before


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", range(4))
def test_a_clause_that_holds_somewhere_is_never_refuted(dtype, seed):
    """Only a few of the points satisfy it, so that every bound comes near."""
    whole, inside = setting(seed, dtype, 1, 0.002, radius=0.02)
    assert len(inside) > 0
    crossed = CrossedDomains(whole)
    batch = crossed.initial(np.array([0]))
    for _ in range(4):
        bounds = crossed.bound(batch, 20, lambda: False)
        assert not bounds.closed.all()
        batch = crossed.branch(bounds.batch.select(~bounds.closed))


def test_what_nothing_satisfies_is_refuted():
    """A limit a little below what the bounds reach by themselves: bounds of neurons where it holds close it."""
    whole, _ = setting(0, torch.float64, 1, 0.5)
    bound = whole.bound(whole.initial(np.array([0])), 60, lambda: False)
    with torch.no_grad():
        lowest = float(whole.limits[0, 0]) + float(bound.row_margins[0, 0])
        gap = -float(bound.row_margins[0, 0])
    whole.limits = torch.full_like(whole.limits, lowest + 0.02 * gap)
    assert not whole.bound(whole.initial(np.array([0])), 60, lambda: False).closed[0]
    crossed = CrossedDomains(whole)
    assert crossed.bound(crossed.initial(np.array([0])), 60, lambda: False).closed[0]


def test_bounds_that_contradict_each_other_hold_nothing():
    whole, _ = setting(0, torch.float64, 1, 0.5)
    found = copied(whole.network, whole.found)
    assert not is_empty(found.box)
    name = next(iter(whole.open))
    found.box.lower[name] = found.box.upper[name] + 1
    assert is_empty(found.box)
    assert not is_empty(whole.root)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_multipliers_are_paid_for_rounding_included(dtype):
    """In exact arithmetic: what was added is below m (c y - t) on the whole box, once `less` has been taken off."""
    whole, _ = setting(1, dtype, 2, 0.5)
    rng = np.random.default_rng(0)
    rows = torch.as_tensor(rng.standard_normal((1, 2, 2)) * 1e3).to(dtype)
    limits = torch.as_tensor(rng.standard_normal(2))
    scale = torch.as_tensor(rng.random((1, 3, 1))).to(dtype)
    clause = ClauseRows(whole.network, rows, limits, 1.0, scale)
    multipliers = torch.as_tensor(rng.random((1, 3, 2))).to(dtype)
    (added,) = clause.added({}, multipliers).values()
    off = clause.less(torch.zeros(1, 3, dtype=torch.float64), multipliers, whole.root)
    exact = [[Fraction(float(x)) for x in row] for row in (multipliers * scale)[0]]
    (output,) = whole.network.graph.outputs
    ends = [whole.root.lower[output].reshape(-1), whole.root.upper[output].reshape(-1)]
    for corner in ((0, 0), (0, 1), (1, 0), (1, 1)):
        y = [Fraction(float(ends[k][i])) for i, k in enumerate(corner)]
        for r in range(3):
            carried = sum(Fraction(float(a)) * v for a, v in zip(added[0, r].reshape(-1), y, strict=True))
            wanted = Fraction(0)
            for k in range(2):
                held = sum(Fraction(float(c)) * v for c, v in zip(rows[0, k], y, strict=True))
                wanted += exact[r][k] * (held - Fraction(float(limits[k])))
            assert carried + Fraction(float(off[0, r])) <= wanted


def test_bounds_that_are_not_finite_say_nothing():
    whole, _ = setting(1, torch.float64, 1, 0.5)
    clause = ClauseRows(whole.network, torch.ones(1, 1, 2, dtype=torch.float64), torch.zeros(1).double(), 1.0)
    value = torch.tensor([[torch.inf, -torch.inf, torch.nan, 0.0]], dtype=torch.float64)
    multipliers = torch.tensor([[[1.0], [1.0], [1.0], [torch.inf]]], dtype=torch.float64)
    assert torch.all(clause.less(value, multipliers, whole.root) == -torch.inf)
