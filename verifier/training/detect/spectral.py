"""Spectral signatures: poisoned rows stand out along the top direction of their class's features."""

from __future__ import annotations

import numpy as np
from torch import nn

from verifier.data import Dataset
from verifier.training.detect.rows import RowScores
from verifier.training.predict import features, last_linear


def spectral_signatures(data: Dataset, model: nn.Module, expected: float = 0.05) -> RowScores:
    """Score each row by the squared projection of its centred features on its class's top singular vector.

    Args:
        model: trained on the suspicious data.
        expected: upper bound on the fraction of poisoned rows of the data set; of each class the
            1.5 * expected * n highest scores are flagged (n rows in all, at most half a class).
            A clean class loses as many, so `sure` says how far each score stands out.
    Returns:
        Scores in units of the class's median score.
    Source: Tran, Li & Madry 2018 (NeurIPS), arXiv:1811.00636.
    """
    read = features(model, data.x).astype(np.float64)
    scores, flagged = np.zeros(len(data)), np.zeros(len(data), dtype=bool)
    for label in np.unique(data.y):
        rows = np.flatnonzero(data.y == label)
        scores[rows] = centred_scores(read[rows])
        drop = min(int(np.ceil(1.5 * expected * len(data))), len(rows) // 2)
        flagged[rows[np.argsort(-scores[rows], kind="stable")[:drop]]] = True
    return RowScores("spectral signatures", scores, flagged, f"input of layer '{last_linear(model)[0]}'")


def centred_scores(features_: np.ndarray) -> np.ndarray:
    """Squared projections of centred features [n, D] on their top right-singular vector, over their median."""
    centred = features_ - features_.mean(axis=0)
    top = np.linalg.svd(centred, full_matrices=False)[2][0]
    squared = (centred @ top) ** 2
    middle = np.median(squared)
    return squared / middle if middle > 0 else squared
