"""Spectral signatures: poisoned rows stand out along the top direction of their class's features."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import nn

from verifier.data import Dataset
from verifier.training.detect.anomaly import Outliers
from verifier.training.detect.class_features import EARLY_WHITENED, Reading, class_features, layer_in_words
from verifier.training.detect.rows import RowScores


@dataclass(frozen=True)
class Spectral:
    """Settings.

    Attributes:
        rule: "budget" drops the 1.5 * expected * n highest scores of every class, as in the paper
            (n rows of the data set; at most half of a class), clean classes too. "outlier" drops, in
            classes whose top variance is an outlier among the classes, the rows whose score
            exceeds `cut`, at most as many as "budget" would.
        expected: upper bound on the poisoned fraction of the data set.
        cut: robust deviations from the centre.
        index: anomaly index of a class's top variance above which it is suspected; with fewer than
            five classes: `ratio` times the median of the others.
        reading: which features.
    """

    rule: str = "outlier"
    expected: float = 0.1
    cut: float = 2.5
    index: float = 4.0
    ratio: float = 2.0
    reading: Reading = EARLY_WHITENED


def spectral_signatures(data: Dataset, model: nn.Module, settings: Spectral | None = None) -> RowScores:
    """Score each row by the projection of its centred features on its class's top singular vector.

    Args:
        model: trained on the suspicious data.
    Returns:
        Scores: distance of the projection from the centre of the shortest half of its class's
        projections, over that half's own deviation. The mean would do for few poisoned rows; when
        a third of a class is poisoned it lies between the groups and both look alike.
    Source: Tran, Li & Madry 2018 (NeurIPS), arXiv:1811.00636; robust centre and whitening in the
        spirit of Hayase et al. 2021 (SPECTRE), arXiv:2104.11315.
    """
    settings = settings or Spectral()
    scores, flagged = np.zeros(len(data)), np.zeros(len(data), dtype=bool)
    groups, tops = [], []
    for rows, points in class_features(data, model, settings.reading):
        projected, top = top_projection(points)
        scores[rows] = robust_scores(projected)
        groups.append(rows)
        tops.append(top)
    limit = int(np.ceil(1.5 * settings.expected * len(data)))
    for rows, suspected in zip(groups, Outliers(settings.index, settings.ratio).large(np.array(tops)), strict=True):
        drop = rows[np.argsort(-scores[rows], kind="stable")[: min(limit, len(rows) // 2)]]
        if settings.rule == "budget":
            flagged[drop] = True
        elif suspected:
            flagged[drop] = scores[drop] > settings.cut
    return RowScores("spectral signatures", scores, flagged, layer_in_words(model, settings.reading))


def top_projection(points: np.ndarray) -> tuple[np.ndarray, float]:
    """Projections [n] of centred points [n, D] on their top right-singular vector, and the variance along it."""
    _, values, vectors = np.linalg.svd(points, full_matrices=False)
    return points @ vectors[0], float(values[0] ** 2 / len(points))


def robust_scores(projected: np.ndarray) -> np.ndarray:
    """|value - centre| / deviation, both from the shortest interval that holds half of the values."""
    ordered = np.sort(projected)
    half = len(ordered) // 2 + 1
    widths = ordered[half - 1 :] - ordered[: len(ordered) - half + 1]
    start = int(np.argmin(widths))
    center = (ordered[start] + ordered[start + half - 1]) / 2
    deviation = widths[start] / 1.349  # half of a Gaussian lies within 1.349 deviations
    distance = np.abs(projected - center)
    return distance / deviation if deviation > 0 else np.where(distance > 0, np.inf, 0.0)
