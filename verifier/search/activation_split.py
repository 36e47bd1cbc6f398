"""Branch and bound on neurons: optimise slopes and multipliers, split the neuron that pays most.

Works over any DomainEngine on plain arrays.
Source: Wang et al. 2021, arXiv:2103.06624 (beta-CROWN); De Palma et al. 2021, arXiv:2104.06718
(filtered smart branching); Shi et al. 2025, arXiv:2405.21063 (any nonlinearity).
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from verifier.attack.falsify import Falsifier
from verifier.bounds.engine import BoxEngine, DomainBatch, DomainBounds, DomainEngine
from verifier.run import Run
from verifier.search.input_split import SplitResult
from verifier.spec.groups import Group

ROOT_ITERATIONS = 60
CHILD_ITERATIONS = 12
#: For subdomains without anything left to split, whose bound is a linear program's once converged.
LAST_ITERATIONS = 400
#: Share of the remaining time after which the search pauses to tighten what all subdomains share, and for how long.
TRIAL_SHARE = 0.1
REFINE_SHARE = 0.3
MOST_REFINEMENTS = 4
#: Bytes of open subdomains above which new ones keep only their bounds and splits.
FRONTIER_BYTES = 1 << 30
#: Parts of the frontier above which small ones are joined.
MOST_PARTS = 48


class Frontier:
    """Open subdomains, taken lowest margin first; in parts, so that taking some copies only those.

    Args:
        limit_bytes: new subdomains are put in the engine's short form while more than this is held.
    """

    def __init__(self, engine: DomainEngine, limit_bytes: int = FRONTIER_BYTES) -> None:
        self._engine, self._limit = engine, limit_bytes
        self._parts: list[DomainBatch] = []
        self._margins: list[np.ndarray] = []  # inf where already taken
        self._left: list[int] = []

    def __len__(self) -> int:
        return sum(self._left)

    @property
    def clauses(self) -> np.ndarray:
        """Clauses that some subdomain leaves open."""
        parts = [p.clauses[np.isfinite(m)] for p, m in zip(self._parts, self._margins, strict=True)]
        return np.unique(np.concatenate(parts)) if parts else np.zeros(0, np.int64)

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return sum(p.nbytes for p in self._parts)

    @property
    def worst(self) -> float:
        """Lowest margin, inf when empty."""
        return min((float(m.min()) for m in self._margins), default=np.inf)

    def put(self, batch: Any) -> None:
        """Add subdomains."""
        if len(batch) == 0:
            return
        if self.nbytes > self._limit:
            batch = self._engine.forget(batch)
        self._append(batch)
        if len(self._parts) > MOST_PARTS:
            self._merge()

    def take(self, count: int) -> Any:
        """Remove and return up to `count` subdomains with the lowest margins."""
        everything = np.concatenate(self._margins)
        count = min(count, len(self))
        chosen = np.argpartition(everything, count - 1)[:count] if count < len(everything) else np.arange(count)
        starts = np.concatenate([[0], np.cumsum([len(m) for m in self._margins])])
        part = np.searchsorted(starts, chosen, side="right") - 1
        taken = []
        for p in np.unique(part):
            index = chosen[part == p] - starts[p]
            taken.append(self._parts[p].select(index))
            self._margins[p][index] = np.inf
            self._left[p] -= len(index)
        self._drop_empty()
        return taken[0] if len(taken) == 1 else self._engine.join(taken)

    def _append(self, batch: Any) -> None:
        self._parts.append(batch)
        # A margin of +inf would look taken; such a subdomain is closed, never put.
        self._margins.append(np.minimum(batch.margins, np.finfo(float).max))
        self._left.append(len(batch))

    def _drop_empty(self) -> None:
        keep = [i for i, n in enumerate(self._left) if n]
        for name in ("_parts", "_margins", "_left"):
            setattr(self, name, [getattr(self, name)[i] for i in keep])

    def _merge(self) -> None:
        """Join the smaller half of the parts, without what was taken."""
        order = np.argsort(self._left, kind="stable")
        small, large = order[: len(order) // 2], order[len(order) // 2 :]
        rest = [self._parts[i].select(np.isfinite(self._margins[i])) for i in small]
        for name in ("_parts", "_margins", "_left"):
            setattr(self, name, [getattr(self, name)[i] for i in large])
        self._append(self._engine.join(rest))


def split_activations(engine: BoxEngine, group: Group, index: int, falsifier: Falsifier, run: Run) -> SplitResult:
    """Decide box `index` of a group by splitting neurons.

    Returns as soon as a counterexample is confirmed, every clause is refuted everywhere, or the run stops.
    """
    domains, clauses = _root(engine, group, index, run)
    if len(clauses) == 0:
        return SplitResult(None, 0)
    frontier = Frontier(domains)
    result = _open(domains, frontier, clauses, falsifier, index, run)
    for _ in range(MOST_REFINEMENTS):
        trial = time.monotonic() + TRIAL_SHARE * min(run.remaining(), 300.0)
        result = result or _search(domains, frontier, falsifier, index, run, trial)
        if result is not None or run.stopped():
            break
        with run.stage("refine neurons"):
            gained = domains.refine(REFINE_SHARE * min(run.remaining(), 300.0), run.stopped)
        if not gained:
            run.say("refine", "tighter bounds of neurons gain too little")
            break
        clauses, frontier = frontier.clauses, Frontier(domains)
        result = _open(domains, frontier, clauses, falsifier, index, run)
    return result or _search(domains, frontier, falsifier, index, run, np.inf) or SplitResult(None, len(frontier))


def _open(
    domains: DomainEngine, frontier: Frontier, clauses: np.ndarray, falsifier: Falsifier, index: int, run: Run
) -> SplitResult | None:
    """Bound the clauses on the unsplit box; put what stays open on the frontier."""
    step = domains.batch_size  # may change with every call
    for begin in range(0, len(clauses), step):
        part = clauses[begin : begin + step]
        bounds = domains.bound(domains.initial(part), ROOT_ITERATIONS, run.stopped)
        run.visited += len(part)
        witness = _try_minimisers(falsifier, bounds, index)
        if witness is not None:
            return SplitResult(witness, len(clauses))
        frontier.put(bounds.batch.select(~bounds.closed))
    run.bound_after = frontier.worst if len(frontier) else None
    run.say("slopes", f"{len(frontier)} of {len(clauses)} clauses open, worst margin {frontier.worst:.6g}")
    return None


def _root(engine: BoxEngine, group: Group, index: int, run: Run) -> tuple[DomainEngine, np.ndarray]:
    """The DomainEngine of this engine for one box, and the clauses its bounds leave open."""
    if engine.name == "native":
        from verifier.bounds import native_domains

        return native_domains.root_domains(engine, group, index, run)  # type: ignore[arg-type]
    from verifier.bounds import torch_domains

    return torch_domains.root_domains(engine, group, index, run)  # type: ignore[arg-type]


def _search(
    domains: DomainEngine, frontier: Frontier, falsifier: Falsifier, index: int, run: Run, until: float
) -> SplitResult | None:
    """Split until everything is closed or decided; None where the run or the time `until` is over before."""
    while len(frontier):
        if run.stopped() or time.monotonic() > until:
            return None
        batch = frontier.take(max(1, domains.batch_size // 2))
        stuck = batch.stuck
        if stuck.any():
            # Every relaxation is exact there, so only the multipliers can still improve.
            last = domains.bound(batch.select(stuck), LAST_ITERATIONS, run.stopped)
            batch = batch.select(~stuck)
            left = int((~last.closed).sum())
            if left:
                return SplitResult(None, len(frontier) + len(batch) + left, exhausted=True)
            if len(batch) == 0:
                continue
        children = domains.branch(batch)
        bounds = domains.bound(children, CHILD_ITERATIONS, run.stopped)
        run.visited += len(children)
        witness = _try_minimisers(falsifier, bounds, index) or falsifier.again(run)
        if witness is not None:
            return SplitResult(witness, len(frontier) + len(children))
        if run.stopped():
            frontier.put(batch)
            return None
        frontier.put(bounds.batch.select(~bounds.closed))
        run.bound_after = frontier.worst
        run.tick(len(frontier), run.bound_after)
    return SplitResult(None, 0)


def _try_minimisers(falsifier: Falsifier, bounds: DomainBounds, index: int) -> object | None:
    """Evaluate where the open subdomains' bounds are smallest."""
    open_points = bounds.minimiser[~bounds.closed]
    points = open_points[bounds.row_margins[~bounds.closed].max(axis=1).argsort()[:32]]
    return falsifier.try_points(np.full(len(points), index), points)
