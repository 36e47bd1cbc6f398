"""The subdomains a search still has to close, lowest margin first."""

from __future__ import annotations

from typing import Any

import numpy as np

from verifier.bounds.engine import DomainBatch, DomainEngine

#: Bytes of open subdomains above which new ones keep only bounds and splits; CROWDED times as many, and those nearest
#: to a proof come first.
FRONTIER_BYTES, CROWDED = 1 << 30, 2
#: Parts of the frontier above which small ones are joined.
MOST_PARTS = 48


class Frontier:
    """Open subdomains, taken lowest margin first; in parts, so that taking some copies only those.

    Args:
        limit_bytes: while more than this is held, new subdomains are put in the engine's short form. While
            CROWDED times as much is, those with the highest margins are taken first: their number hardly
            grows any further then.
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
        """Remove and return up to `count` subdomains."""
        everything = np.concatenate(self._margins)
        if self.nbytes > CROWDED * self._limit:
            everything = np.where(np.isfinite(everything), -everything, np.inf)  # those taken stay last
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
