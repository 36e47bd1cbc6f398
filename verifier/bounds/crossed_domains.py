"""Activation splitting past attention: what a root bound chose there is kept, as small matrices.

Where most of what a bound loses is lost outside the parts of a network that shortcuts cross, splitting
inside them is not worth its price: a subdomain's pass over every product of a transformer costs a
hundred times what it costs across ready-made matrices. So each clause is first bounded with every
parameter free; those inside the crossed parts then stay as they are, for all subdomains of the clause.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from verifier.bounds.backward import Shortcut
from verifier.bounds.crossing import shortcut_across
from verifier.bounds.domains import DomainBatch, DomainEngine
from verifier.bounds.engine import DomainBounds, FocusedEngine
from verifier.bounds.intermediate import optimise_neurons

#: Share of the loss outside the crossed parts from which on only that is split.
OUTSIDE_SHARE = 0.5
#: Steps of the ascent that follow on the parameters outside.
SETTLING = 12
#: The neurons that make up LOSS_SHARE of the loss, MOST_WORST at most, are optimised on their own first, for at
#: most this share of the time left (as far as that is below LONG_S seconds); worth it if they narrow to this.
LOSS_SHARE, MOST_WORST, WORST_ITERATIONS, WORST_SHARE, LONG_S, WORST_GAIN = 0.7, 256, 10, 0.15, 300.0, 0.98


class CrossedDomains:
    """DomainEngine over a DomainEngine with every neuron, and one with shortcuts for every clause.

    Batches of the first have as many parameters as `whole.space`; those of the others have fewer.
    """

    def __init__(self, whole: DomainEngine):
        self.whole = whole
        self.batch_size = whole.batch_size
        self._settled: dict[int, DomainEngine] = {}
        self._apart: bool | None = None

    def initial(self, clauses: np.ndarray) -> DomainBatch:
        """See engine.DomainEngine."""
        return self.whole.initial(clauses)

    def bound(self, batch: DomainBatch, iterations: int, stopped: Callable[[], bool]) -> DomainBounds:
        """See engine.DomainEngine."""
        if not self._is_whole(batch):
            return self._by_clause(batch, lambda engine, part: engine.bound(part, iterations, stopped))
        bounds = self.whole.bound(batch, iterations, stopped)
        if bool(bounds.closed.all()) or not self._worth_it(bounds.batch.select(~bounds.closed)):
            return bounds
        if not self._settled and self._tighten(bounds.batch.select(~bounds.closed), stopped):
            batch = replace(self.whole.initial(batch.clauses), margin=bounds.batch.margin)
            bounds = self.whole.bound(batch, iterations, stopped)
        return self._settle(bounds, stopped)

    def branch(self, batch: DomainBatch) -> DomainBatch:
        """See engine.DomainEngine."""
        if self._is_whole(batch):
            return self.whole.branch(batch)
        parts = [engine.branch(batch.select(index)) for engine, index in self._engines(batch)]
        return parts[0] if len(parts) == 1 else DomainBatch.join(parts)

    def join(self, parts: Sequence[DomainBatch]) -> DomainBatch:
        """See engine.DomainEngine."""
        return DomainBatch.join(parts)

    def refine(self, seconds: float, stopped: Callable[[], bool]) -> bool:
        """See engine.DomainEngine."""
        return self.whole.refine(seconds, stopped)

    def focus(self, spare: FocusedEngine | None) -> FocusedEngine | None:
        """See engine.DomainEngine."""
        return self.whole.focus(spare)

    def forget(self, batch: DomainBatch) -> DomainBatch:
        """See engine.DomainEngine."""
        return batch

    def _is_whole(self, batch: DomainBatch) -> bool:
        return not self._apart or batch.free.shape[-1] == self.whole.space.size

    def _engines(self, batch: DomainBatch) -> list[tuple[DomainEngine, np.ndarray]]:
        """The engines of a batch's clauses, and the positions that each is for."""
        return [(self._settled[c], np.flatnonzero(batch.clauses == c)) for c in np.unique(batch.clauses)]

    def _by_clause(
        self, batch: DomainBatch, bound: Callable[[DomainEngine, DomainBatch], DomainBounds]
    ) -> DomainBounds:
        engines = self._engines(batch)
        if len(engines) == 1:
            return bound(engines[0][0], batch)
        parts = [bound(engine, batch.select(index)) for engine, index in engines]
        back = np.argsort(np.concatenate([index for _, index in engines]), kind="stable")

        def joined(key: str) -> Any:
            return np.concatenate([getattr(part, key) for part in parts])[back]

        together = DomainBatch.join([part.batch for part in parts]).select(back)
        return DomainBounds(together, joined("row_margins"), joined("minimiser"), joined("closed"))

    def _worth_it(self, batch: DomainBatch) -> bool:
        """Whether the subdomains lose most outside the crossed parts; decided once, by the first that stay open."""
        if self._apart is None:
            losses = self.whole.losses(batch)
            kept = self._engine({})
            outside = sum(float(losses[:, self.whole.slices[name]].sum()) for name in kept.open)
            self._apart = outside > OUTSIDE_SHARE * float(losses.sum())
        return self._apart

    def _tighten(self, batch: DomainBatch, stopped: Callable[[], bool]) -> bool:
        """Optimise the bounds of the neurons that cost the unsplit box most; True where that gained much."""
        w = self.whole
        end = time.monotonic() + WORST_SHARE * min(w.engine.deadline - time.monotonic(), LONG_S)
        ordered, order = w.losses(batch).amax(0).sort(descending=True)
        enough = int((ordered.cumsum(0) < LOSS_SHARE * ordered.sum()).sum()) + 1
        worst = order[: min(enough, MOST_WORST)]
        chosen = {}
        for name, part in w.slices.items():
            inside = worst[(worst >= part.start) & (worst < part.stop)]
            if len(inside):
                chosen[name] = w.open[name][inside - part.start]
        domain = (w.lower, w.upper, w.shape)
        left = optimise_neurons(
            w.engine, w.found, domain, chosen, WORST_ITERATIONS, lambda: stopped() or time.monotonic() > end
        )
        self.whole = self._engine(None)
        return left < WORST_GAIN

    @torch.no_grad()
    def _settle(self, bounds: DomainBounds, stopped: Callable[[], bool]) -> DomainBounds:
        """The same subdomains in the form that keeps what was chosen in the crossed parts."""
        batch = bounds.batch
        margins, minimiser, closed = bounds.row_margins.copy(), bounds.minimiser.copy(), bounds.closed.copy()
        parts = []
        bare = self._engine({}) if closed.any() else None
        for i, clause in enumerate(batch.clauses):
            one = batch.select(np.array([i]))
            if closed[i] and bare is not None:  # only its margin is looked at
                engine = bare
            else:
                engine = self._settled[int(clause)] = self._engine(self._shortcuts(one))
                self.batch_size = engine.batch_size
            free = engine.space.part_of(self.whole.space, one.free)
            part = replace(engine.initial(batch.clauses[i : i + 1]), free=free, margin=one.margin)
            if not closed[i]:
                found = engine.bound(part, SETTLING, stopped)
                part = found.batch
                margins[i] = np.maximum(margins[i], found.row_margins[0])
                minimiser[i], closed[i] = found.minimiser[0], found.closed[0]
            parts.append(part)
        return DomainBounds(DomainBatch.join(parts), margins, minimiser, closed)

    def _shortcuts(self, one: DomainBatch) -> dict[str, Shortcut]:
        """Matrices across the crossed parts under one subdomain's parameters for its first row."""
        whole, network = self.whole, self.whole.network
        box = whole.enclosure(one)
        planes = whole.space.planes(box, one.free[:, :1], whole.space.fixed_planes(box))
        return {name: shortcut_across(network, box, planes, name, stop) for name, stop in network.shortcuts.items()}

    def _engine(self, shortcuts: dict[str, Shortcut] | None) -> DomainEngine:
        """Of the same box and clauses; None for every neuron, without shortcuts."""
        w = self.whole
        return DomainEngine(w.engine, w.found, w.lower, w.upper, w.clause_rows, w.limits, w.strict, w.shape, shortcuts)
