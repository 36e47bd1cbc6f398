"""How the rows are spread over the clients of a federation."""

from __future__ import annotations

import numpy as np

from verifier.data import Dataset
from verifier.errors import SpecError


def dirichlet_shards(data: Dataset, clients: int, concentration: float = 0.5, seed: int = 0) -> list[np.ndarray]:
    """Row indices of each client; each class is divided by its own Dirichlet draw.

    Every row goes to exactly one client and every client gets at least one row (taken from the
    largest shard where its own draw is empty). Small concentrations make clients one-sided.

    Raises:
        SpecError: more clients than rows, or a concentration <= 0.
    Source: Hsu, Qi & Brown 2019, arXiv:1909.06335.
    """
    if not 0 < clients <= len(data):
        raise SpecError(f"clients: expected 1..{len(data)} (the rows), got {clients}")
    if not concentration > 0:
        raise SpecError(f"concentration: expected a positive number, got {concentration}")
    rng = np.random.default_rng(seed)
    shards: list[list[int]] = [[] for _ in range(clients)]
    for label in range(len(data.classes)):
        rows = rng.permutation(np.flatnonzero(data.y == label))
        shares = rng.dirichlet(np.full(clients, concentration))
        cuts = np.round(np.cumsum(shares)[:-1] * len(rows)).astype(int)
        for shard, part in zip(shards, np.split(rows, cuts), strict=True):
            shard.extend(part.tolist())
    for shard in shards:
        if not shard:
            shard.append(max(shards, key=len).pop())
    return [np.array(sorted(shard), dtype=np.int64) for shard in shards]
