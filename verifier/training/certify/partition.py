"""Deep partition aggregation: many models on disjoint parts vote, so a few poisoned rows move few votes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from torch import nn

from verifier.data import Dataset
from verifier.errors import SpecError
from verifier.training.predict import labels
from verifier.training.train import Progress, Recipe, train


@dataclass(frozen=True)
class Ensemble:
    """Models trained on the parts; None where a part held no row (such a part votes for class 0)."""

    models: tuple[nn.Module | None, ...]
    classes: int

    def votes(self, x: np.ndarray) -> np.ndarray:
        """int64 [m, C]: votes for each class on rows x [m, *shape]."""
        counts = np.zeros((len(x), self.classes), dtype=np.int64)
        for model in self.models:
            said = np.zeros(len(x), dtype=np.int64) if model is None else labels(model, x)
            counts[np.arange(len(x)), said] += 1
        return counts


def row_hashes(data: Dataset) -> list[bytes]:
    """A digest of each row's values and label; nothing else about the data set enters."""
    return [
        hashlib.sha256(row.tobytes() + int(label).to_bytes(8, "little")).digest()
        for row, label in zip(data.x, data.y, strict=True)
    ]


def partition(data: Dataset, parts: int) -> list[np.ndarray]:
    """Row indices of each part, by the digest of the row alone; sorted by digest inside a part.

    Neither the part of a row nor its place there depends on the order of the data or, beyond
    shifting it, on other rows: the certificate rests on this.
    """
    if parts < 1:
        raise SpecError(f"partitions: expected at least 1, got {parts}")
    digests = row_hashes(data)
    members: list[list[int]] = [[] for _ in range(parts)]
    for row in sorted(range(len(data)), key=lambda i: digests[i]):
        members[int.from_bytes(digests[row], "big") % parts].append(row)
    return [np.array(rows, dtype=np.int64) for rows in members]


def deep_partition(data: Dataset, recipe: Recipe, parts: int, progress: Progress | None = None) -> Ensemble:
    """Train one model on each part, all by the same seeded recipe.

    Source: Levine & Feizi 2021, arXiv:2006.14768 (DPA).
    """
    models: list[nn.Module | None] = []
    for number, rows in enumerate(partition(data, parts)):
        models.append(train(None, data.subset(rows), recipe).model if len(rows) else None)
        if progress is not None:
            progress((number + 1) / parts, f"part {number + 1} of {parts}: {len(rows)} rows")
    return Ensemble(tuple(models), len(data.classes))


def certified_votes(votes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Prediction and certified number of rows, both int64 [m], from votes [m, C].

    The prediction (most votes, the lowest class among equals) is the same for every data set that
    differs by at most that many insertions and deletions of rows; a changed row is one of each.
        radius = floor((n1 - n2 - [c2 < c1]) / 2), the smallest over the other classes c2.
    """
    votes = np.asarray(votes, dtype=np.int64)
    if votes.ndim != 2 or votes.shape[1] < 2:
        raise SpecError(f"votes: expected [m, C] with at least two classes, got {votes.shape}")
    winner = votes.argmax(axis=1)
    classes = np.arange(votes.shape[1])
    most = votes[np.arange(len(votes)), winner]
    lead = most[:, None] - votes - (classes[None] < winner[:, None])
    lead[np.arange(len(votes)), winner] = np.iinfo(np.int64).max
    return winner, lead.min(axis=1) // 2


def certified_curve(labels_: np.ndarray, radii: np.ndarray, truth: np.ndarray) -> list[tuple[int, float]]:
    """(poisoned rows r, fraction of rows right and certified against r) for r = 0, 1, ... until it is 0."""
    right = radii[labels_ == truth]
    top = int(right.max(initial=-1))
    return [(r, float(np.sum(right >= r)) / max(len(truth), 1)) for r in range(top + 2)]
