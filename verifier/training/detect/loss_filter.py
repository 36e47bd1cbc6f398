"""Loss filtering: rows that a model trained on other rows finds surprising."""

from __future__ import annotations

import numpy as np

from verifier.data import Dataset
from verifier.training.detect.rows import RowScores
from verifier.training.poisoned import count_rows
from verifier.training.predict import cross_entropies
from verifier.training.train import Progress, Recipe, train


def loss_filter(
    data: Dataset, recipe: Recipe, *, expected: float = 0.05, folds: int = 5, progress: Progress | None = None
) -> RowScores:
    """Flag the rows with the largest held-out loss: 1.5 * expected of the data set.

    Each row is judged by a model trained without its fold, since a model that saw a mislabelled
    row has memorised it. Finds mislabelled rows; a backdoor's rows explain each other across folds,
    so it misses those. This defence trains `folds` models by the given recipe.

    Args:
        expected: upper bound on the fraction of poisoned rows.
        folds: at least two.
    """
    order = np.random.default_rng(recipe.seed).permutation(len(data))
    scores = np.zeros(len(data))
    for number, fold in enumerate(np.array_split(order, folds)):
        model = train(None, data.without(fold), recipe).model
        scores[fold] = cross_entropies(model, data.subset(fold))
        if progress is not None:
            progress((number + 1) / folds, f"fold {number + 1} of {folds}")
    flagged = np.zeros(len(data), dtype=bool)
    count = count_rows(min(1.5 * expected, 1.0), len(data), len(data), "rows")
    flagged[np.argsort(-scores, kind="stable")[:count]] = True
    return RowScores(
        "loss filter", scores, flagged, f"cross-entropy under models trained without the row, {folds} folds"
    )
