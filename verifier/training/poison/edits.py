"""Budgeted edits: add mislabelled rows, delete the rows that matter, move features towards another class."""

from __future__ import annotations

import numpy as np
from torch import nn

from verifier.data import Dataset
from verifier.training.poisoned import Budget, PoisonedDataset, changed_rows, count_rows
from verifier.training.predict import logits


def add_mislabelled(data: Dataset, rate: float, noise: float = 0.05, seed: int = 0) -> PoisonedDataset:
    """Append noisy copies of random rows under a wrong label, `rate` of the size of the data.

    Args:
        noise: standard deviation added to the copies, in units of the valid range's width where that
            is finite, else in the data's own units.
    """
    rng = np.random.default_rng(seed)
    rows = rng.choice(len(data), count_rows(rate, len(data), len(data), "rows"), replace=False)
    width = np.asarray(data.valid[1] - data.valid[0], dtype=np.float64)
    width = np.where(np.isfinite(width), width, 1.0)
    x = np.clip(data.x[rows] + noise * width * rng.normal(size=data.x[rows].shape), *data.valid)
    y = (data.y[rows] + rng.integers(1, len(data.classes), len(rows))) % len(data.classes)
    grown = data.with_rows(np.concatenate([data.x, x]), np.concatenate([data.y, y]))
    touched = np.arange(len(data), len(grown))
    budget = Budget(len(rows), len(rows) / len(data), relabelled=len(rows))
    record = {"rate": rate, "noise": noise, "seed": seed}
    return PoisonedDataset(grown, touched, budget, "added-rows", settings=record)


def delete_informative(data: Dataset, surrogate: nn.Module, rate: float) -> PoisonedDataset:
    """Remove the rows nearest to the surrogate's decision boundary, `rate` of the data.

    They carry the boundary: the margin z_y - max_k z_k is smallest in absolute value.
    """
    z = logits(surrogate, data.x)
    own = np.arange(z.shape[1]) == data.y[:, None]
    margin = np.abs(z[own] - np.where(own, -np.inf, z).max(axis=1))
    removed = np.sort(np.argsort(margin, kind="stable")[: count_rows(rate, len(data) - 1, len(data), "rows")])
    budget = Budget(len(removed), len(removed) / len(data))
    nothing = np.zeros(0, dtype=np.int64)
    return PoisonedDataset(data.without(removed), nothing, budget, "deleted-rows", removed, {"rate": rate})


def shift_features(data: Dataset, rate: float, radius: float, seed: int = 0) -> PoisonedDataset:
    """Move random rows towards the mean of another class, each value by at most `radius`; labels stay.

    Args:
        radius: data's units.
    """
    rng = np.random.default_rng(seed)
    rows = rng.choice(len(data), count_rows(rate, len(data), len(data), "rows"), replace=False)
    present = np.unique(data.y)
    means = {int(k): data.x[data.y == k].mean(axis=0) for k in present}
    others = np.array([rng.choice(present[present != k]) if np.any(present != k) else k for k in data.y[rows]])
    step = np.stack([means[int(k)] for k in others]) - data.x[rows]
    x = data.x[rows] + np.clip(step, -radius, radius)
    record = {"rate": rate, "radius": radius, "seed": seed}
    return changed_rows(data, rows, x, data.y[rows], "shifted-features", settings=record)
