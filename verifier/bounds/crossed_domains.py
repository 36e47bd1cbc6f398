"""Activation splitting past attention: what a root bound chose there is kept, as small matrices.

Where most of what a bound loses is lost outside the parts of a network that shortcuts cross, splitting
inside them is not worth its price: a subdomain's pass over every product of a transformer costs a
hundred times what it costs across ready-made matrices. So each clause is first bounded with every
parameter free; those inside the crossed parts then stay as they are, for all subdomains of the clause.
Before that, a clause that is nearly refuted has its neurons bounded where it can still hold.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from verifier.bounds.backward import Shortcut
from verifier.bounds.clause_bounds import copied, look
from verifier.bounds.crossing import shortcut_across
from verifier.bounds.domains import DomainBatch, DomainEngine
from verifier.bounds.engine import DomainBounds, FocusedEngine

#: Share of the loss outside the crossed parts from which on only that is split.
OUTSIDE_SHARE = 0.5
#: Steps of the ascent that follow on the parameters outside.
SETTLING = 12
#: Rounds of bounding neurons where a clause can hold, the steps of each, the share of the margin that one
#: must gain for the next, and their share of the time left; the steps on the clause after each round.
MOST_ROUNDS, CUT_OFF_ITERATIONS, LEAST_GAIN, CUT_OFF_SHARE, AFTERWARDS = 8, 8, 0.1, 0.3, 20
#: They start where what is missing is at most this share of all that relaxations cost: farther away, the
#: clause can hold almost everywhere. Times are shares of what is left up to LONG_S seconds.
NEAR, LONG_S = 0.25, 300.0


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
        if not self._is_fresh(batch):
            return self._by_clause(batch, lambda engine, part: engine.bound(part, iterations, stopped))
        bounds = self.whole.bound(batch, iterations, stopped)
        if bool(bounds.closed.all()):
            return bounds
        return self._settle(bounds, iterations, stopped)

    def branch(self, batch: DomainBatch) -> DomainBatch:
        """See engine.DomainEngine."""
        parts = [engine.branch(batch.select(index)) for engine, index in self._engines(batch)]
        return parts[0] if len(parts) == 1 else DomainBatch.join(parts)

    def join(self, parts: Sequence[DomainBatch]) -> DomainBatch:
        """See engine.DomainEngine."""
        return DomainBatch.join(parts)

    def refine(self, seconds: float, stopped: Callable[[], bool]) -> bool:
        """See engine.DomainEngine."""
        return self.whole.refine(seconds, stopped)

    def focus(self, spare: FocusedEngine | None) -> FocusedEngine | None:
        """See engine.DomainEngine; a look at one subdomain costs as much as splitting dozens here."""
        return None

    def forget(self, batch: DomainBatch) -> DomainBatch:
        """See engine.DomainEngine."""
        return batch

    def _is_fresh(self, batch: DomainBatch) -> bool:
        """Whether a batch is of unsplit boxes, of clauses that no engine was chosen for or with every parameter."""
        if bool((batch.depth > 0).any()) or batch.free.shape[-1] != self.whole.space.size:
            return False
        return bool(self._apart) or not self._settled.keys() >= set(batch.clauses.tolist())

    def _engines(self, batch: DomainBatch) -> list[tuple[DomainEngine, np.ndarray]]:
        """The engines of a batch's clauses, and the positions that each is for."""
        clauses = np.unique(batch.clauses)
        return [(self._settled.get(int(c), self.whole), np.flatnonzero(batch.clauses == c)) for c in clauses]

    def _by_clause(
        self, batch: DomainBatch, bound: Callable[[DomainEngine, DomainBatch], DomainBounds]
    ) -> DomainBounds:
        engines = self._engines(batch)
        if len(engines) == 1:
            return bound(engines[0][0], batch)
        bounds = _together([bound(engine, batch.select(index)) for engine, index in engines])
        back = np.argsort(np.concatenate([index for _, index in engines]), kind="stable")
        return DomainBounds(
            bounds.batch.select(back), bounds.row_margins[back], bounds.minimiser[back], bounds.closed[back]
        )

    def _worth_it(self, one: DomainBatch, engine: DomainEngine) -> bool:
        """Whether a subdomain loses most outside the crossed parts; decided once, by the first that stays open."""
        if self._apart is None:
            losses = engine.losses(one)
            kept = self._engine({})
            outside = sum(float(losses[:, engine.slices[name]].sum()) for name in kept.open)
            self._apart = outside > OUTSIDE_SHARE * float(losses.sum())
        return self._apart

    @torch.no_grad()
    def _settle(self, bounds: DomainBounds, iterations: int, stopped: Callable[[], bool]) -> DomainBounds:
        """The same clauses with engines of their own: bounded where they can hold, and past the crossed parts."""
        batch = bounds.batch
        margins, minimiser, closed = bounds.row_margins.copy(), bounds.minimiser.copy(), bounds.closed.copy()
        parts: list[DomainBatch] = []
        for i, clause in enumerate(batch.clauses):
            one = batch.select(np.array([i]))
            engine = self.whole
            if not closed[i]:
                engine, found = self._cut_off(one, int(closed.size - closed.sum()), iterations, stopped)
                if found is not None:
                    one = found.batch
                    margins[i] = np.maximum(margins[i], found.row_margins[0])
                    minimiser[i], closed[i] = found.minimiser[0], found.closed[0]
            if not closed[i]:
                apart = self._worth_it(one, engine)
                if apart:
                    past = self._engine(self._shortcuts(one, engine)).within(engine.found)
                    one, engine = self._reduced(one, past), past
                    found = engine.bound(one, SETTLING, stopped)
                    one = found.batch
                    margins[i] = np.maximum(margins[i], found.row_margins[0])
                    minimiser[i], closed[i] = found.minimiser[0], found.closed[0]
                self._settled[int(clause)] = engine
                self.batch_size = engine.batch_size
            parts.append(one)
        if self._apart:  # those that are closed come in the same form: only their margins are looked at
            bare = self._engine({})
            parts = [p if p.free.shape[-1] == bare.space.size else self._reduced(p, bare) for p in parts]
        return DomainBounds(DomainBatch.join(parts), margins, minimiser, closed)

    def _reduced(self, one: DomainBatch, engine: DomainEngine) -> DomainBatch:
        """An unsplit subdomain with the parameters of another engine."""
        free = engine.space.part_of(self.whole.space, one.free)
        return replace(engine.initial(one.clauses), free=free, margin=one.margin)

    def _cut_off(
        self, one: DomainBatch, sharing: int, iterations: int, stopped: Callable[[], bool]
    ) -> tuple[DomainEngine, DomainBounds | None]:
        """An engine with bounds that hold where one clause does, and its bounds; tightened while that gains.

        Args:
            sharing: clauses that share the time.
        """
        w, bounds = self.whole, None
        if not -float(one.margins[0]) <= NEAR * float(w.losses(one).sum()):
            return w, None
        found = copied(w.network, w.found)
        time_s = CUT_OFF_SHARE * min(w.engine.deadline - time.monotonic(), LONG_S) / sharing
        end = time.monotonic() + time_s
        engine = w.within(found)
        for _ in range(MOST_ROUNDS):
            before = float(one.margins[0])
            effort = (CUT_OFF_ITERATIONS, min(iterations, AFTERWARDS))
            engine, bounds = look(engine, found, one, effort, lambda: stopped() or time.monotonic() > end)
            one = bounds.batch
            if bounds.closed[0] or stopped() or time.monotonic() > end:
                break
            if float(one.margins[0]) < (1 - LEAST_GAIN) * before:
                break
        return engine, bounds

    def _shortcuts(self, one: DomainBatch, engine: DomainEngine) -> dict[str, Shortcut]:
        """Matrices across the crossed parts under one subdomain's parameters for its first row."""
        network, box = engine.network, engine.enclosure(engine.initial(one.clauses))
        planes = engine.space.planes(box, one.free[:, :1], engine.space.fixed_planes(box))
        return {name: shortcut_across(network, box, planes, name, stop) for name, stop in network.shortcuts.items()}

    def _engine(self, shortcuts: dict[str, Shortcut] | None) -> DomainEngine:
        """Of the same box and clauses; None for every neuron, without shortcuts."""
        w = self.whole
        return DomainEngine(w.engine, w.found, w.lower, w.upper, w.clause_rows, w.limits, w.strict, w.shape, shortcuts)


def _together(parts: Sequence[DomainBounds]) -> DomainBounds:
    """Several bounds as one."""

    def joined(key: str) -> Any:
        return np.concatenate([getattr(part, key) for part in parts])

    batch = DomainBatch.join([part.batch for part in parts])
    return DomainBounds(batch, joined("row_margins"), joined("minimiser"), joined("closed"))
