"""Float sums never err by more than the bound says, in whatever order, and the bound beats gamma_n."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
import torch

from verifier.bounds import interval
from verifier.bounds.rounding import gamma
from verifier.bounds.summation import worst_additions
from verifier.bounds.torch_engine import TorchEngine
from verifier.graph.ir import GraphBuilder

UNIT = 2.0**-24


def every_tree(terms):
    """The float32 sums of the terms over all binary trees."""
    if len(terms) == 1:
        return {terms[0]}
    found = set()
    rest = range(1, len(terms))
    for size in range(len(terms) - 1):
        for others in combinations(rest, size):
            left = [terms[0], *(terms[i] for i in others)]
            right = [terms[i] for i in rest if i not in others]
            found |= {np.float32(a + b) for a in every_tree(left) for b in every_tree(right)}
    return found


def error(total, terms) -> Fraction:
    return abs(Fraction(float(total)) - sum(Fraction(float(t)) for t in terms))


def allowed(terms) -> Fraction:
    """The bound for terms known exactly, the computed partial sums' own errors allowed for."""
    exact = np.asarray(terms, np.float64)[None]
    spare = 2 * len(terms) * UNIT * np.abs(exact).sum(1)
    return Fraction(UNIT) * Fraction(float(worst_additions(exact, exact, spare)[0]))


@pytest.mark.parametrize("seed", range(20))
def test_every_order_of_a_few_terms_stays_within(seed):
    rng = np.random.default_rng(seed)
    terms = list((rng.standard_normal(5) * 2.0 ** rng.integers(-6, 7, 5)).astype(np.float32))
    if seed % 3 == 0:
        terms[1] = np.float32(-terms[0])  # cancels
    bound = allowed(terms)
    assert all(error(total, terms) <= bound for total in every_tree(terms))


@pytest.mark.parametrize("seed", range(10))
def test_bad_orders_of_many_terms_stay_within(seed):
    rng = np.random.default_rng(seed)
    terms = rng.standard_normal(300).astype(np.float32)
    terms += np.float32(seed % 2)  # all of them near one sign, or not
    bound = allowed(terms)
    orders = [np.sort(terms), -np.sort(-terms), terms[np.argsort(-np.abs(terms))]]
    orders += [rng.permutation(terms) for _ in range(50)]
    for order in orders:
        one_by_one, pairs = np.float32(0), order
        for t in order:
            one_by_one = np.float32(one_by_one + t)
        while len(pairs) > 1:
            rest = pairs[len(pairs) // 2 * 2 :]
            pairs = np.concatenate([pairs[:-1:2][: len(pairs) // 2] + pairs[1::2], rest])
        assert error(one_by_one, terms) <= bound
        assert error(pairs[0], terms) <= bound
    assert float(bound) < 0.6 * gamma(300, UNIT) * float(np.abs(terms).sum())


def test_intervals_cover_their_points():
    """Terms known by intervals allow at least what any terms inside them need."""
    rng = np.random.default_rng(0)
    low = rng.standard_normal((4, 30))
    high = low + rng.random((4, 30))
    whole = worst_additions(low, high, np.zeros(4))
    for _ in range(20):
        inside = low + rng.random((4, 30)) * (high - low)
        assert np.all(worst_additions(inside, inside, np.zeros(4)) <= whole)


def test_degenerate_sums():
    empty = np.zeros((2, 3))
    assert np.all(worst_additions(empty, empty, np.zeros(2)) == 0)
    assert np.all(worst_additions(np.full((1, 1), 5.0), np.full((1, 1), 5.0), np.zeros(1)) == 0)
    infinite = np.full((1, 3), np.inf)
    assert np.all(np.isinf(worst_additions(-infinite, infinite, np.zeros(1))))


def wide_layer(kind: str):
    """One long sum over the inputs, with weights that nearly cancel."""
    rng = np.random.default_rng(3)
    builder = GraphBuilder()
    if kind == "Dense":
        x = builder.add("Input", (), (1, 192), "x")
        weight = (rng.standard_normal((192, 5)) * 30).astype(np.float32)
        y = builder.add("Dense", (x,), (1, 5), "y", weight=weight, bias=np.float32([0, 1, -40, 0.1, 3]))
    else:
        x = builder.add("Input", (), (1, 3, 16, 16), "x")
        weight = (rng.standard_normal((4, 3, 8, 8)) * 30).astype(np.float32)
        y = builder.add(
            "Conv", (x,), (1, 4, 2, 2), "y", weight=weight, bias=np.float32([0, 1, -40, 0.1]),
            strides=(8, 8), pads=(0, 0, 0, 0), dilations=(1, 1), groups=1,
        )  # fmt: skip
    return builder.finish((x,), (y,)), weight


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
@pytest.mark.parametrize("kind", ("Dense", "Conv"))
def test_long_sums_over_the_inputs_hold_and_are_tighter(kind, dtype, monkeypatch):
    graph, weight = wide_layer(kind)
    engine = TorchEngine(graph, dtype=dtype)
    rng = np.random.default_rng(7)
    point = (1 + rng.random(graph.input_size)).astype(np.float32)
    lower, upper = engine.boxes(point[None] - 1e-4, point[None] + 1e-4)
    box = engine.enclose(lower, upper).box
    low, high, slack = (t["y"].double().numpy().reshape(-1) for t in (box.lower, box.upper, box.slack))
    bias = graph["y"].attrs["bias"]
    if kind == "Dense":
        products = (weight * point[:, None]).T
    else:
        patches = point.reshape(3, 2, 8, 2, 8).transpose(1, 3, 0, 2, 4).reshape(4, 192)
        products = np.concatenate([patches * weight[c].reshape(1, -1) for c in range(4)])
        bias = np.repeat(bias, 4)
    for k, terms in enumerate(products):
        for order in (np.sort(terms), -np.sort(-terms), rng.permutation(terms)):
            total = np.float32(0)
            for t in order:
                total = np.float32(total + t)
            total = np.float32(total + bias[k])
            assert low[k] <= total <= high[k]
    monkeypatch.setattr(interval, "_LONG_SUM", 10**9)
    usual = engine.enclose(lower, upper).box.slack["y"].double().numpy().reshape(-1)
    assert np.all(slack <= usual)
    if dtype is torch.float64:
        assert np.all(slack < 0.7 * usual)
