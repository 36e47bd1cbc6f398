"""Label flips: at random, from one class to another, or where they hurt most."""

from __future__ import annotations

import numpy as np
from torch import nn

from verifier.data import Dataset
from verifier.training.poisoned import PoisonedDataset, changed_rows, count_rows
from verifier.training.predict import logits


def random_flips(data: Dataset, rate: float, seed: int = 0) -> PoisonedDataset:
    """A fraction `rate` of the rows, drawn at random, gets another label drawn at random.

    Raises:
        SpecError: rate outside (0, 1].
    """
    rng = np.random.default_rng(seed)
    rows = rng.choice(len(data), count_rows(rate, len(data), len(data), "rows"), replace=False)
    jump = rng.integers(1, len(data.classes), len(rows))
    flipped = (data.y[rows] + jump) % len(data.classes)
    return changed_rows(data, rows, data.x[rows], flipped, "random-flips", settings={"rate": rate, "seed": seed})


def targeted_flips(data: Dataset, source: int, target: int, rate: float, seed: int = 0) -> PoisonedDataset:
    """Rows of class `source` get the label `target`: a fraction `rate` of all rows, drawn at random.

    Raises:
        SpecError: the source class has fewer rows than that.
    """
    candidates = np.flatnonzero(data.y == source)
    count = count_rows(rate, len(candidates), len(data), f"rows of class {source}")
    rows = np.random.default_rng(seed).choice(candidates, count, replace=False)
    record = {"rate": rate, "seed": seed, "source": source, "target": target}
    return changed_rows(data, rows, data.x[rows], np.full(count, target), "targeted-flips", settings=record)


def loss_maximising_flips(data: Dataset, surrogate: nn.Module, rate: float) -> PoisonedDataset:
    """The flips that raise a clean-trained surrogate's total loss most, for a number of rows.

    Row i with true label y gains max_k (z_y - z_k), z its logits; the largest gains are taken.

    Source: the first greedy step of Xiao, Xiao & Eckert 2012 (adversarial label flips).
    """
    z = logits(surrogate, data.x)
    rival = np.where(np.arange(z.shape[1]) == data.y[:, None], np.inf, z).argmin(axis=1)
    every = np.arange(len(data))
    gain = z[every, data.y] - z[every, rival]
    rows = np.argsort(-gain, kind="stable")[: count_rows(rate, len(data), len(data), "rows")]
    return changed_rows(data, rows, data.x[rows], rival[rows], "loss-maximising-flips", settings={"rate": rate})
