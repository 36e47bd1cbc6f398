"""Activation splitting in C++: sound with zero tolerance, as tight as torch's, children cover the parent."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from native_nets import SPLITTABLE, chain, float32_in_order, never

from verifier.bounds.clauses import PaddedClauses
from verifier.bounds.native_domains import NativeBatch, NativeDomains
from verifier.bounds.native_engine import NativeEngine
from verifier.bounds.native_refine import TELLING_ROUNDS, Refinement
from verifier.graph.evaluate import evaluate
from verifier.graph.ir import Graph


def domains_of(graph: Graph, rows: np.ndarray, radius: float, seed: int, threads: int = 1) -> NativeDomains:
    """Subdomains of a box; each row [M, N_out] is a clause with limit 0."""
    center = np.random.default_rng(seed).normal(size=graph.input_size) * 0.5
    lower = np.float64(np.float32(center - radius))
    upper = np.float64(np.float32(center + radius))
    clauses = PaddedClauses(rows[:, None], np.zeros((len(rows), 1)), np.zeros((len(rows), 1), dtype=bool))
    domains = NativeDomains(NativeEngine(graph, threads=threads, forms=False), lower, upper, clauses)
    domains.box = lower, upper  # type: ignore[attr-defined]
    return domains


def points_in(domains: NativeDomains, count: int) -> np.ndarray:
    """Float32 points of the box, half of them corners."""
    lower, upper = domains.box  # type: ignore[attr-defined]
    rng = np.random.default_rng(1)
    t = rng.random((count, len(lower)))
    t[::2] = np.round(t[::2])
    return np.clip(np.float64(np.float32(lower + t * (upper - lower))), lower, upper)


def stage_values(domains: NativeDomains, graph: Graph, points: np.ndarray) -> np.ndarray:
    """z of the open neurons [P, K] of a chain of dense layers, in float64."""
    h, found = points, {}
    for stage, k in enumerate(range(sum(n.op == "Dense" for n in graph.nodes.values())), start=1):
        node = graph[f"dense{k}"]
        z = h @ node.attrs["weight"].astype(float) + node.attrs["bias"].astype(float)
        found[stage] = z
        h = np.maximum(z, 0.1 * z if any(n.op == "LeakyRelu" for n in graph.nodes.values()) else 0)
    columns = [found[s][:, i] for s, i in zip(domains.open_stage, domains.open_index, strict=True)]
    return np.stack(columns, axis=1)


def inside(batch: NativeBatch, b: int, z: np.ndarray) -> np.ndarray:
    """Which points with open neurons' values z [P, K] satisfy the splits of subdomain b."""
    keep = np.ones(len(z), dtype=bool)
    for neuron, sign in zip(batch.split[b], batch.sign[b], strict=True):
        if neuron >= 0:
            keep &= sign * z[:, neuron] >= 0
    return keep


@pytest.mark.parametrize("iterations", [0, 15])
@pytest.mark.parametrize("case", SPLITTABLE)
def test_no_point_escapes_the_root(case: str, iterations: int) -> None:
    rng = np.random.default_rng(3)
    graph = SPLITTABLE[case](rng)
    rows = np.concatenate([np.eye(graph.output_size), rng.normal(size=(3, graph.output_size))])
    domains = domains_of(graph, rows, 0.3, 1, threads=2)
    if iterations:
        domains.optimise_root(1e9)
    bounds = domains.bound(domains.initial(np.arange(len(rows))), iterations, never)
    assert np.isfinite(bounds.row_margins).all()
    points = points_in(domains, 400)
    for dtype in ("float64", graph.dtype):
        values = evaluate(graph, points, dtype).astype(np.longdouble) @ rows.T.astype(np.longdouble)
        assert (values >= bounds.row_margins[:, 0]).all()


@pytest.mark.parametrize("case", ["dense", "leaky", "double"])
def test_children_cover_and_hold(case: str) -> None:
    rng = np.random.default_rng(5)
    graph = SPLITTABLE[case](rng)
    row = rng.normal(size=(1, graph.output_size))
    domains = domains_of(graph, row, 0.4, 2)
    points = points_in(domains, 3000)
    z = stage_values(domains, graph, points)
    orders = [float32_in_order(graph, points, rng, fused) for fused in (False, True) for _ in range(3)]
    outputs = [evaluate(graph, points), *(orders if graph.dtype == "float32" else [])]
    batch = domains.bound(domains.initial(np.zeros(1, np.int64)), 10, never).batch
    for _ in range(5):
        assert not batch.stuck.any()
        batch = domains.bound(domains.branch(batch), 8, never).batch
        masks = np.stack([inside(batch, b, z) for b in range(len(batch))])
        assert masks.any(axis=0).all(), "a sampled point lies in no child"
        for b in range(len(batch)):
            for y in outputs:
                # Near z = 0 the float32 program may be in the neighbouring child.
                clear = masks[b] & (np.abs(z[:, batch.split[b][batch.split[b] >= 0]]).min(axis=1) > 1e-4)
                assert (y[clear].astype(np.longdouble) @ row[0] >= batch.margin[b]).all()


def test_splits_and_slopes_tighten_and_survive_storage() -> None:
    rng = np.random.default_rng(7)
    graph = chain(rng, [6, 40, 40, 3])
    domains = domains_of(graph, rng.normal(size=(4, 3)), 0.4, 3)
    start = domains.initial(np.arange(4))
    plain = domains.bound(start, 0, never).row_margins
    root = domains.bound(start, 40, never)
    assert (root.row_margins > plain + 1e-4).all()
    again = domains.bound(root.batch, 0, never).row_margins
    assert np.allclose(again, root.row_margins, atol=2e-3 * (1 + np.abs(plain).max()))
    children = domains.bound(domains.branch(root.batch), 20, never)
    worst = children.row_margins[:, 0].reshape(2, 4).min(axis=0)
    assert (worst >= root.row_margins[:, 0] - 1e-3).all() and worst.mean() > root.row_margins.mean()
    forgotten = domains.bound(domains.forget(children.batch), 0, never)
    assert (forgotten.row_margins <= children.row_margins + 2e-3).all()
    mixed = domains.join([domains.forget(children.batch), children.batch, root.batch])
    assert len(mixed) == 20 and np.isfinite(domains.bound(mixed, 0, never).row_margins).all()


@pytest.mark.parametrize("case", ["dense", "residual", "leaky"])
def test_agrees_with_torch(case: str) -> None:
    torch = pytest.importorskip("torch")
    from verifier.bounds.domains import DomainEngine
    from verifier.bounds.torch_engine import TorchEngine

    rng = np.random.default_rng(11)
    graph = SPLITTABLE[case](rng)
    rows = rng.normal(size=(4, graph.output_size))
    ours = domains_of(graph, rows, 0.2, 4)
    lower, upper = ours.box  # type: ignore[attr-defined]
    engine = TorchEngine(graph, dtype=torch.float64)
    low, high = engine.boxes(lower[None], upper[None])
    found = engine.enclose(low, high)
    limits = torch.zeros(4, 1)
    theirs = DomainEngine(engine, found, low, high, engine.tensor(rows[:, None]), limits, limits > 0)
    clauses = np.arange(4)
    for iterations in (1, 25):
        a = ours.bound(ours.initial(clauses), iterations, never)
        b = theirs.bound(theirs.initial(clauses), iterations, never)
        scale = 1 + np.abs(b.row_margins)
        done = b.row_margins > 0  # both stop there, at different steps
        assert (np.abs(a.row_margins - b.row_margins) <= 5e-3 * scale)[~done].all()
        assert (a.closed == b.closed).all()
    # The same splits: the strongest candidate of ours, at zero in both.
    split = ours.branch(a.batch)
    mine = ours.bound(split, 150, never).row_margins  # their steps differ, their optima do not
    neurons = split.split[:4].max(axis=1)
    names = [n for n in theirs.open for _ in range(len(theirs.open[n]))]
    if case == "residual" or len(names) != ours.width:
        return
    chosen = torch.as_tensor(neurons, dtype=torch.int64)
    children = theirs.split(b.batch, chosen, torch.zeros(4, dtype=torch.float64))
    other = theirs.bound(children, 150, never).row_margins
    left = (mine <= 0) & (other <= 0)
    assert (np.abs(mine - other) <= 1e-2 * (1 + np.abs(other)))[left].all()


def test_root_bounds_hold_and_tighten() -> None:
    rng = np.random.default_rng(13)
    graph = chain(rng, [6, 40, 40, 40, 3])
    domains = domains_of(graph, np.eye(3), 0.4, 5)
    before = [domains.stage_bounds(s) for s in (1, 2, 3)]
    assert domains.optimise_root(1e9) >= 0
    after = [domains.stage_bounds(s) for s in (1, 2, 3)]
    assert all((a[0] >= b[0]).all() and (a[1] <= b[1]).all() for a, b in zip(after, before, strict=True))
    assert (after[2][1] - after[2][0]).sum() < 0.98 * (before[2][1] - before[2][0]).sum()
    h = points_in(domains, 2000)
    for k in range(3):
        z = h @ graph[f"dense{k}"].attrs["weight"].astype(float) + graph[f"dense{k}"].attrs["bias"]
        assert (z >= after[k][0]).all() and (z <= after[k][1]).all()
        h = np.maximum(z, 0)


def test_threads_change_nothing() -> None:
    rng = np.random.default_rng(17)
    graph = chain(rng, [6, 40, 40, 3])
    rows = rng.normal(size=(90, 3))
    one, two = (domains_of(graph, rows, 0.4, 3, threads=t) for t in (1, 2))
    a, b = (d.bound(d.initial(np.arange(90)), 7, never) for d in (one, two))
    # Whether a row above its limit stops early is for the rows beside it in its block to decide, and blocks depend
    # on the threads and on the width of a vector.
    assert np.array_equal(a.closed, b.closed) and 0 < a.closed.sum() < 90
    assert np.allclose(a.row_margins[~a.closed], b.row_margins[~a.closed], atol=1e-4)


def test_nan_and_overflow_close_nothing() -> None:
    rng = np.random.default_rng(19)
    graph = chain(rng, [3, 8, 8, 2])
    rows = np.array([[np.nan, 1.0], [np.inf, 0.0], [1e38, -1e38], [1.0, 0.0]])
    domains = domains_of(graph, rows, 0.3, 6)
    for iterations in (0, 5):
        bounds = domains.bound(domains.initial(np.arange(4)), iterations, never)
        assert not bounds.closed[:3].any() and not np.isnan(bounds.row_margins).any()
    batch = domains.bound(domains.initial(np.array([3])), 5, never).batch
    child = domains.branch(batch)
    child.multiplier[:] = np.nan
    assert np.isfinite(domains.bound(child, 0, never).row_margins).all()  # NaN multipliers count as none
    child.multiplier[:] = np.inf
    assert not domains.bound(child, 0, never).closed.any()


def test_infinite_boxes_are_open() -> None:
    graph = chain(np.random.default_rng(23), [2, 4, 1])
    clauses = PaddedClauses(np.ones((1, 1, 1)), np.zeros((1, 1)), np.zeros((1, 1), dtype=bool))
    lower, upper = np.array([0.0, 0.0]), np.array([np.inf, 1.0])
    domains = NativeDomains(NativeEngine(graph, threads=1), lower, upper, clauses)
    bounds = domains.bound(domains.initial(np.zeros(1, np.int64)), 5, never)
    assert not bounds.closed.any() and bounds.row_margins[0, 0] == -np.inf and bounds.batch.stuck.all()


def test_bad_jobs_are_refused() -> None:
    graph = chain(np.random.default_rng(29), [2, 6, 1])
    domains = domains_of(graph, np.ones((1, 1)), 0.5, 7)
    batch = domains.initial(np.zeros(1, np.int64))
    batch.split[:] = domains.width
    with pytest.raises(ValueError, match="split: expected indices"):
        domains.bound(batch, 0, never)


def test_refined_neurons_hold_and_tighten() -> None:
    rng = np.random.default_rng(31)
    graph = chain(rng, [6, 30, 30, 30, 3])
    domains = domains_of(graph, np.eye(3), 0.5, 8)
    domains.optimise_root(1e9)
    before = [domains.stage_bounds(s) for s in (1, 2, 3)]
    assert domains.refine(20.0, never)
    after = [domains.stage_bounds(s) for s in (1, 2, 3)]
    assert all((a[0] >= b[0]).all() and (a[1] <= b[1]).all() for a, b in zip(after, before, strict=True))
    assert (after[2][1] - after[2][0]).sum() < 0.9 * (before[2][1] - before[2][0]).sum()
    h = points_in(domains, 4000)
    for k in range(3):
        z = h @ graph[f"dense{k}"].attrs["weight"].astype(float) + graph[f"dense{k}"].attrs["bias"]
        assert (z >= after[k][0]).all() and (z <= after[k][1]).all()
        h = np.maximum(z, 0)
    assert not domains.refine(0.0, never)


def test_refining_goes_on_where_it_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("verifier.bounds.native_refine.MOST_ROUNDS", 3)
    rng = np.random.default_rng(41)
    graph = chain(rng, [6, 30, 30, 30, 3])
    domains = domains_of(graph, np.eye(3), 0.5, 8)
    domains.optimise_root(1e9)
    ranges, points = [], points_in(domains, 3000)
    for _ in range(5):
        domains.refine(20.0, never)
        bounds = [domains.stage_bounds(s) for s in (1, 2, 3)]
        ranges.append(sum(float((high - low).sum()) for low, high in bounds))
        h = points
        for k, (low, high) in enumerate(bounds):
            z = h @ graph[f"dense{k}"].attrs["weight"].astype(float) + graph[f"dense{k}"].attrs["bias"]
            assert (z >= low).all() and (z <= high).all()
            h = np.maximum(z, 0)
    assert all(b < a for a, b in itertools.pairwise(ranges))  # three rounds more each time, not the same three again


def test_refining_goes_on_past_a_stage_that_does_not_move(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    domains = domains_of(chain(rng, [4, 20, 20, 20, 2]), np.ones((1, 2)), 0.8, 1)
    asked: list[int] = []

    def refined(*given: object) -> tuple[bool, int]:
        asked.append(int(given[2]))  # type: ignore[call-overload]
        return asked[-1] == 3, TELLING_ROUNDS

    monkeypatch.setattr(Refinement, "_refine_stage", refined)
    assert domains.refine(5.0, never)
    assert asked == [2, 3]  # the first stage is exact


@pytest.mark.parametrize("rounds", [0, TELLING_ROUNDS])
def test_refining_is_given_up_only_after_rounds_that_tell(monkeypatch: pytest.MonkeyPatch, rounds: int) -> None:
    domains = domains_of(chain(np.random.default_rng(3), [4, 20, 20, 2]), np.ones((1, 2)), 0.8, 1)
    monkeypatch.setattr(Refinement, "_refine_stage", lambda *_: (False, rounds))
    assert domains.refine(5.0, never) == (rounds < TELLING_ROUNDS)


def test_frontier_takes_the_lowest_and_loses_nothing() -> None:
    from verifier.search.frontier import Frontier

    rng = np.random.default_rng(37)
    domains = domains_of(chain(rng, [4, 12, 2]), np.ones((1, 2)), 0.5, 9)
    frontier, left = Frontier(domains, limit_bytes=50_000), []
    most = 0
    for _ in range(120):
        batch = domains.initial(np.zeros(int(rng.integers(1, 40)), np.int64))
        batch.margin[:] = rng.normal(size=len(batch))
        left.extend(batch.margin)
        frontier.put(batch)
        taken = frontier.take(int(rng.integers(1, 25)))
        left.sort()
        assert np.array_equal(np.sort(taken.margin), left[: len(taken)])
        del left[: len(taken)]
        assert len(frontier) == len(left)
        assert frontier.worst == (left[0] if left else np.inf)
        most = max(most, frontier.nbytes)
    assert 50_000 < most < 100_000  # some were forgotten, and it was never crowded
