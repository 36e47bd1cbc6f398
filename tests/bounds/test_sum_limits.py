"""Long sums of the deployed program stay within the native engine's bounds, in whatever order they are added up."""

from __future__ import annotations

import numpy as np
import pytest
from native_nets import chain

from verifier.bounds.clauses import PaddedClauses
from verifier.bounds.native_domains import NativeDomains
from verifier.bounds.native_engine import NativeEngine
from verifier.bounds.summation import ordered_error

UNIT = 2.0**-24


def summed(terms: np.ndarray) -> np.float32:
    """One after the other in float32."""
    total = np.float32(0)
    for t in terms.astype(np.float32):
        total = np.float32(total + t)
    return total


def orders(terms: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    return [np.sort(terms), -np.sort(-terms), terms[np.argsort(-np.abs(terms))], rng.permutation(terms)]


@pytest.mark.parametrize("seed", range(20))
def test_a_factor_after_the_sum_is_allowed_for(seed: int) -> None:
    """Scaled partial sums may lie in a lower binade than the ones that were rounded."""
    rng = np.random.default_rng(seed)
    terms = np.float32(rng.standard_normal(200) + seed % 2)
    factor = np.float32(1 + rng.random())
    exact = float(factor) * terms.astype(float)
    bound = ordered_error(exact[None], exact[None], None, np.abs(exact).sum(keepdims=True), fused=1, unit=UNIT)[0]
    for order in orders(terms, rng):
        assert abs(float(np.float32(factor * summed(order))) - exact.sum()) <= bound


def test_binades_alone_do_not_allow_for_a_factor() -> None:
    """Sums just above a power of two round by as much as they may; a factor leaves that binade's limit behind."""
    terms = np.float32([1.0, *[2.0**-24 * 1.0001] * 50])  # each addition to 1 rounds up by nearly half an ulp
    factor, exact = 1.9, 1.9 * terms.astype(float)
    wrong = abs(1.9 * float(summed(terms)) - exact.sum())
    size = np.abs(exact).sum(keepdims=True)
    bounds = [ordered_error(exact[None], exact[None], None, size, fused=f, unit=UNIT)[0] for f in (0, 1)]
    additions = [b - (1 + f) * UNIT * float(size[0]) for f, b in enumerate(bounds)]
    assert additions[0] < wrong <= additions[1], factor


def domains_on(graph, lower: np.ndarray, upper: np.ndarray) -> NativeDomains:
    rows = np.concatenate([np.eye(graph.output_size), -np.eye(graph.output_size)])
    clauses = PaddedClauses(rows[:, None], np.zeros((len(rows), 1)), np.zeros((len(rows), 1), dtype=bool))
    return NativeDomains(NativeEngine(graph, threads=1, forms=False), lower, upper, clauses)


def margins(domains: NativeDomains) -> np.ndarray:
    domains.optimise_root(1e9)
    return domains.bound(domains.initial(np.arange(len(domains.clauses.limits))), 0, lambda: False).batch.margin


def width(found: np.ndarray) -> float:
    """Of the outputs' ranges, from bounds of y and of -y."""
    return float(-found.sum())


@pytest.mark.parametrize("seed", range(4))
def test_limits_hold_for_every_order_and_are_tighter(seed: int) -> None:
    rng = np.random.default_rng(seed)
    graph = chain(rng, [5, 300, 4])
    graph["dense0"].attrs["bias"][:150] -= 100  # half of the neurons are dead
    graph["dense0"].attrs["weight"][:] *= 3
    graph["dense1"].attrs["weight"][:] *= 50
    point = np.float64(np.float32(rng.normal(size=5)))
    domains = domains_on(graph, point, point)
    before = margins(domains)
    domains.limit_sums()
    after = margins(domains)
    assert np.all(after >= before)
    assert width(after) < 0.95 * width(before)
    first, second = graph["dense0"].attrs, graph["dense1"].attrs
    h = np.maximum(np.float32(point) @ first["weight"] + first["bias"], np.float32(0))
    for k in range(4):
        for order in orders(h * second["weight"][:, k], rng):
            total = float(np.float32(summed(order) + second["bias"][k]))
            assert after[k] <= total <= -after[4 + k]


def test_another_box_forgets_the_limits() -> None:
    rng = np.random.default_rng(1)
    graph = chain(rng, [5, 100, 3])
    small, large = np.zeros(5), np.full(5, 1000.0)
    domains = domains_on(graph, small, small)
    domains.limit_sums()
    domains.core.enter(-large, large, 1e9)
    fresh = domains_on(graph, -large, large)
    assert np.array_equal(margins(domains), margins(fresh))
