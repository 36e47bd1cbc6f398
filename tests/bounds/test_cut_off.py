"""Neurons bounded where a clause can still be satisfied: no such point escapes, and the bounds gain by it."""

from __future__ import annotations

import numpy as np
import pytest
from native_nets import SPLITTABLE, chain, never, residual
from test_native_domains import domains_of, inside, points_in, stage_values

from verifier.bounds.native_domains import NativeDomains
from verifier.graph.evaluate import evaluate
from verifier.graph.ir import Graph

ROUNDS = 4


def with_limit(domains: NativeDomains, limit: float) -> NativeDomains:
    """The same domains, whose only clause is row . y <= limit."""
    domains.clauses.limits[:] = limit
    return domains


def dense_case(seed: int, share: float) -> tuple[Graph, np.ndarray, NativeDomains, np.ndarray, np.ndarray]:
    """A network, its row, its domains with a limit that this share of the points meets, the points and which do."""
    rng = np.random.default_rng(seed)
    graph = SPLITTABLE[("dense", "leaky", "double")[seed % 3]](rng)
    row = rng.normal(size=(1, graph.output_size))
    domains = domains_of(graph, row, 0.4, seed, threads=2)
    points = points_in(domains, 4000)
    values = evaluate(graph, points) @ row[0]
    limit = float(np.quantile(values, share))
    return graph, row, with_limit(domains, limit), points, values <= limit


@pytest.mark.parametrize("share", [0.0005, 0.02, 0.5])
@pytest.mark.parametrize("seed", range(6))
def test_no_satisfying_point_escapes(seed: int, share: float) -> None:
    graph, row, domains, points, unsafe = dense_case(seed, share)
    domains.optimise_root(1e9)
    own = domains.focus(None)
    assert own is not None and unsafe.any()
    batch = domains.bound(domains.initial(np.zeros(1, np.int64)), 20, never).batch
    for _ in range(ROUNDS):
        bounds = own.cut_off(batch, 8, never)
        assert not bounds.closed[0], "a clause was refuted that points satisfy"
        batch = bounds.batch
        z = stage_values(own, graph, points[unsafe])
        for k, (stage, i) in enumerate(zip(own.open_stage, own.open_index, strict=True)):
            low, high = (side[i] for side in own.stage_bounds(int(stage)))
            assert z[:, k].min() >= low and z[:, k].max() <= high
        values = evaluate(graph, points[unsafe]).astype(np.longdouble) @ row[0]
        assert (values - domains.clauses.limits[0, 0] >= bounds.row_margins[0, 0]).all()


@pytest.mark.parametrize("seed", range(6))
def test_no_satisfying_point_escapes_below_splits(seed: int) -> None:
    graph, _, domains, points, unsafe = dense_case(seed, 0.05)
    batch = domains.bound(domains.initial(np.zeros(1, np.int64)), 20, never).batch
    for _ in range(3):
        batch = domains.bound(domains.branch(batch), 8, never).batch
    z = stage_values(domains, graph, points)
    spare: NativeDomains | None = None
    for b in range(len(batch)):
        here = unsafe & inside(batch, b, z)
        split = batch.split[b][batch.split[b] >= 0]
        here &= np.abs(z[:, split]).min(axis=1) > 1e-4  # the float32 program is in the same child
        own = spare = domains.focus(spare)
        assert own is not None
        one = batch.select(np.array([b]))
        for _ in range(ROUNDS):
            bounds = own.cut_off(one, 8, never)
            if bounds.closed[0]:
                assert not here.any(), "a subdomain was closed that holds satisfying points"
                break
            one = bounds.batch
            if not here.any():
                continue
            for stage, i, column in zip(
                own.open_stage, own.open_index, stage_values(own, graph, points[here]).T, strict=True
            ):
                low, high = (side[i] for side in own.stage_bounds(int(stage)))
                assert column.min() >= low and column.max() <= high


def test_closes_what_the_box_bounds_leave_open() -> None:
    closed = 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        graph = chain(rng, [6, 40, 40, 40, 2])
        row = rng.normal(size=(1, 2))
        domains = domains_of(graph, row, 0.3, seed)
        domains.optimise_root(1e9)
        start = domains.bound(domains.initial(np.zeros(1, np.int64)), 60, never)
        lowest = float((evaluate(graph, points_in(domains, 4000)) @ row[0]).min())
        bound = float(start.row_margins[0, 0])
        # Ask for a little more than was proved, still well below every point found.
        domains = with_limit(domains, bound + 0.15 * (lowest - bound))
        own = domains.focus(None)
        batch = domains.bound(domains.initial(np.zeros(1, np.int64)), 60, never).batch
        assert batch.margin[0] < 0
        for _ in range(12):
            bounds = own.cut_off(batch, 8, never)
            batch = bounds.batch
            if bounds.closed[0]:
                closed += 1
                break
    assert closed >= 8


def test_residual_network_keeps_its_points() -> None:
    rng = np.random.default_rng(17)
    graph = residual(rng)
    row = rng.normal(size=(1, graph.output_size))
    domains = domains_of(graph, row, 0.3, 5, threads=2)
    points = points_in(domains, 3000)
    values = evaluate(graph, points) @ row[0]
    domains = with_limit(domains, float(np.quantile(values, 0.01)))
    own = domains.focus(None)
    batch = domains.bound(domains.initial(np.zeros(1, np.int64)), 20, never).batch
    for _ in range(ROUNDS):
        bounds = own.cut_off(batch, 10, never)
        assert not bounds.closed[0]
        batch = bounds.batch
        assert values.min() - domains.clauses.limits[0, 0] >= bounds.row_margins[0, 0]


def test_cones_and_full_passes_agree() -> None:
    """A convolution's neurons are bounded along their cones as tightly as along all paths to the output."""
    rng = np.random.default_rng(23)
    graph = residual(rng)
    domains = domains_of(graph, np.eye(graph.output_size), 0.2, 6)
    stage = next(s for s in range(3, 12) if len(domains.stage_bounds(s)[0]) == 64)  # the second convolution
    codes = np.array([0, 1, 40, 41, 101], np.int32)
    together = domains.on_neurons(stage, codes)
    margins = together.bound(together.initial(np.arange(5)), 0, never).row_margins[:, 0]
    assert np.isfinite(margins).all()
    for k in range(5):
        alone = domains.on_neurons(stage, codes[k : k + 1])
        value = alone.bound(alone.initial(np.zeros(1, np.int64)), 0, never).row_margins[0, 0]
        assert value == pytest.approx(margins[k], abs=1e-5)


def test_focus_numbers_neurons_as_its_parent_does() -> None:
    """Bounds that wait for the parent's next pass must not renumber what its subdomains refer to."""
    _, _, domains, _, _ = dense_case(0, 0.05)
    batch = domains.bound(domains.initial(np.zeros(1, np.int64)), 20, never).batch
    stage = int(domains.open_stage[-1])
    neurons = domains.open_index[domains.open_stage == stage][:3]
    domains.tighten(stage, neurons, np.zeros(len(neurons)), np.full(len(neurons), 1e9))
    own = domains.focus(None)
    assert own is not None and own.width == domains.width
    assert np.isfinite(own.cut_off(batch, 4, never).row_margins).all()


def test_a_stage_without_neurons_left() -> None:
    """Rows end where a whole layer is dead: bounds, candidates and neuron rows beyond it still come out."""
    rng = np.random.default_rng(31)
    graph = chain(rng, [5, 12, 12, 12, 2])
    graph["dense1"].attrs["bias"][:] = -50.0  # every neuron of the second layer is off
    row = np.array([[1.0, -0.5]])
    domains = domains_of(graph, row, 0.3, 7)
    bounds = domains.bound(domains.initial(np.zeros(1, np.int64)), 10, never)
    values = evaluate(graph, points_in(domains, 200)) @ row[0]
    assert np.isfinite(bounds.row_margins).all() and values.min() >= bounds.row_margins[0, 0]
    domains.optimise_root(1e9)
    own = domains.focus(None)
    assert own is not None and np.isfinite(own.cut_off(bounds.batch, 4, never).row_margins).all()
