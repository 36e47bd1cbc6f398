"""Branch and bound on neurons: optimise slopes and multipliers, split the neuron that pays most.

Source: Wang et al. 2021, arXiv:2103.06624 (beta-CROWN); De Palma et al. 2021, arXiv:2104.06718
(filtered smart branching); Shi et al. 2025, arXiv:2405.21063 (any nonlinearity).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from verifier.attack.falsify import Falsifier
from verifier.bounds.concretize import InputShape
from verifier.bounds.domains import DomainBatch, DomainBounds, DomainEngine
from verifier.bounds.intermediate import optimise_intermediate
from verifier.bounds.torch_engine import TorchEngine
from verifier.run import Run
from verifier.search.input_split import SplitResult
from verifier.spec.groups import Group

ROOT_ITERATIONS = 60
CHILD_ITERATIONS = 12
#: For subdomains without anything left to split, whose bound is a linear program's once converged.
LAST_ITERATIONS = 400
#: Share of the remaining time that optimising intermediate bounds may take.
INTERMEDIATE_SHARE = 0.15


class Frontier:
    """Open subdomains, taken lowest margin first."""

    def __init__(self) -> None:
        self._parts: list[DomainBatch] = []

    def __len__(self) -> int:
        return sum(len(p) for p in self._parts)

    @property
    def worst(self) -> float:
        """Lowest margin, inf when empty."""
        return min((float(p.margin.min()) for p in self._parts), default=np.inf)

    def put(self, batch: DomainBatch) -> None:
        """Add subdomains."""
        if len(batch):
            self._parts.append(batch)

    def take(self, count: int) -> DomainBatch:
        """Remove and return up to `count` subdomains with the lowest margins."""
        everything = DomainBatch.join(self._parts) if len(self._parts) > 1 else self._parts[0]
        if len(everything) <= count:
            self._parts = []
            return everything
        order = everything.margin.argsort()
        self._parts = [everything.select(order[count:])]
        return everything.select(order[:count])


def split_activations(engine: TorchEngine, group: Group, index: int, falsifier: Falsifier, run: Run) -> SplitResult:
    """Decide box `index` of a group by splitting neurons.

    Returns as soon as a counterexample is confirmed, every clause is refuted everywhere, or the run stops.
    """
    domains, clauses = _root(engine, group, index, run)
    if len(clauses) == 0:
        return SplitResult(None, 0)
    batch_size = _batch_size(engine, domains)
    frontier = Frontier()
    for part in clauses.split(batch_size):
        bounds = domains.bound(domains.initial(part), ROOT_ITERATIONS, run.stopped)
        run.visited += len(part)
        witness = _try_minimisers(falsifier, bounds, index)
        if witness is not None:
            return SplitResult(witness, len(clauses))
        frontier.put(bounds.batch.select(~bounds.closed))
    run.bound_after = frontier.worst if len(frontier) else None
    run.say("slopes", f"{len(frontier)} of {len(clauses)} clauses open, worst margin {frontier.worst:.6g}")
    return _search(domains, frontier, batch_size, falsifier, index, run)


def _root(engine: TorchEngine, group: Group, index: int, run: Run) -> tuple[DomainEngine, Tensor]:
    """Bounds of the whole box with default slopes, and the clauses they leave open."""
    lower, upper = engine.boxes(group.lower[index : index + 1], group.upper[index : index + 1])
    shape = None if group.inputs is None else InputShape.of(group.inputs, engine.device)
    with run.stage("intermediate bounds"):
        found = engine.enclose(lower, upper, shape)
    members = [np.flatnonzero(group.rows.clause == c) for c in range(group.rows.count)]
    wide = max(len(m) for m in members)
    padded = np.stack([np.resize(m, wide) for m in members])
    limits = torch.as_tensor(group.limits[index][padded], device=engine.device)
    strict = torch.as_tensor(group.rows.strict[padded], device=engine.device)
    rows = engine.tensor(group.rows.coeffs[padded])

    def open_clauses(note: str) -> Tensor:
        value, _ = engine.bound_rows(rows.flatten(0, 1).unsqueeze(0), found, lower, upper, shape)
        margins = value.reshape(len(members), wide) - limits
        left = (~torch.where(strict, margins >= 0, margins > 0).any(1)).nonzero().squeeze(1)
        run.bound_after = float(margins.max(1).values.min())
        run.say("bounds", f"{note}: {len(left)} of {len(members)} clauses open, worst margin {run.bound_after:.6g}")
        return left

    left = open_clauses("default slopes")
    run.bound_before = run.bound_after
    run.visited += 1
    if len(left):
        with run.stage("intermediate slopes"):
            share = INTERMEDIATE_SHARE * min(run.remaining(), 300.0)
            stable = optimise_intermediate(engine, found, lower, upper, shape, run, share)
        left = open_clauses(f"{stable} more neurons stable")
    return DomainEngine(engine, found, lower, upper, rows, limits, strict, shape), left


def _batch_size(engine: TorchEngine, domains: DomainEngine) -> int:
    """Subdomains bounded at once: the ascent keeps about a dozen copies of every layer's coefficients."""
    network = engine.network
    rows = domains.clause_rows.shape[1]
    per_domain = 14 * rows * sum(n.size for n in network.graph.nodes.values()) * torch.finfo(engine.dtype).bits // 8
    return int(np.clip(4 * engine.memory_bytes // per_domain, 1, 256))


def _search(
    domains: DomainEngine, frontier: Frontier, batch_size: int, falsifier: Falsifier, index: int, run: Run
) -> SplitResult:
    while len(frontier):
        if run.stopped():
            break
        batch = frontier.take(max(1, batch_size // 2))
        stuck = batch.candidates[:, 0] < 0
        if bool(stuck.any()):
            # Every relaxation is exact there, so only the multipliers can still improve.
            last = domains.bound(batch.select(stuck), LAST_ITERATIONS, run.stopped)
            batch = batch.select(~stuck)
            left = int((~last.closed).sum())
            if left:
                return SplitResult(None, len(frontier) + len(batch) + left, exhausted=True)
            if len(batch) == 0:
                continue
        children = _branch(domains, batch)
        bounds = domains.bound(children, CHILD_ITERATIONS, run.stopped)
        run.visited += len(children)
        witness = _try_minimisers(falsifier, bounds, index)
        if witness is not None:
            return SplitResult(witness, len(frontier) + len(children))
        if run.stopped():
            frontier.put(batch)
            break
        frontier.put(bounds.batch.select(~bounds.closed))
        run.bound_after = frontier.worst
        run.tick(len(frontier), run.bound_after)
    return SplitResult(None, len(frontier))


def _branch(domains: DomainEngine, batch: DomainBatch) -> DomainBatch:
    """Children of every subdomain at the candidate whose worse child is best, judged by a quick bound."""
    candidates = batch.candidates
    b, k = candidates.shape
    points = domains.split_points(batch, candidates.clamp(min=0))
    best = torch.zeros(b, dtype=torch.int64, device=candidates.device)
    best_score = torch.full((b,), -torch.inf, dtype=torch.float64, device=candidates.device)
    if k > 1:
        for j in range(k):
            children = domains.split(batch, candidates[:, j].clamp(min=0), points[:, j])
            margins = domains.quick(children).reshape(2, b)
            score = margins.min(0).values + 0.01 * margins.max(0).values.clamp(max=1e6)
            better = (candidates[:, j] >= 0) & (score > best_score)
            best = torch.where(better, j, best)
            best_score = torch.where(better, score, best_score)
    rows = torch.arange(b, device=candidates.device)
    return domains.split(batch, candidates[rows, best], points[rows, best])


def _try_minimisers(falsifier: Falsifier, bounds: DomainBounds, index: int) -> object | None:
    """Evaluate where the open subdomains' bounds are smallest."""
    open_points = bounds.minimiser[~bounds.closed]
    order = bounds.row_margins[~bounds.closed].max(1).values.argsort()[:32]
    points = open_points[order].double().cpu().numpy()
    return falsifier.try_points(np.full(len(points), index), points)
