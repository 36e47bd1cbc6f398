"""Activation clustering: a class that holds poisoned rows falls into two clusters."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import nn

from verifier.data import Dataset
from verifier.errors import SpecError
from verifier.training.detect.class_features import EARLY_WHITENED, Reading, class_features, layer_in_words
from verifier.training.detect.rows import RowScores


@dataclass(frozen=True)
class Clustering:
    """Settings.

    Attributes:
        components: principal dimensions kept.
        rule: "size": the smaller cluster is flagged when it holds less than `share` of the class;
            "silhouette": when the mean silhouette exceeds `silhouette`; "both": when both hold.
        share, silhouette: the thresholds; half of a class can be poisoned in small data sets.
        seed: of 2-means.
        reading: which features.
    """

    components: int = 10
    rule: str = "both"
    share: float = 0.5
    silhouette: float = 0.4
    seed: int = 0
    reading: Reading = EARLY_WHITENED


def activation_clustering(data: Dataset, model: nn.Module, settings: Clustering | None = None) -> RowScores:
    """Split each class's features by 2-means and flag the smaller part where the rule finds a split.

    Args:
        model: trained on the suspicious data.
    Returns:
        Score of a row in the smaller cluster: the class's mean silhouette; 0 elsewhere.
    Raises:
        SpecError: unknown rule.
    Source: Chen et al. 2018, arXiv:1811.03728; principal instead of independent components, whose
        equal variances would hide the split that the whitening brings out.
    """
    settings = settings or Clustering()
    if settings.rule not in ("size", "silhouette", "both"):
        raise SpecError(f"clustering: rule: expected size, silhouette or both, got '{settings.rule}'")
    scores, flagged = np.zeros(len(data)), np.zeros(len(data), dtype=bool)
    for rows, points in class_features(data, model, settings.reading):
        small, silhouette = split_in_two(points, settings)
        scores[rows[small]] = max(silhouette, 0.0)
        few, apart = small.mean() < settings.share, silhouette > settings.silhouette
        flagged[rows[small]] = {"size": few, "silhouette": apart, "both": few and apart}[settings.rule]
    return RowScores("activation clustering", scores, flagged, layer_in_words(model, settings.reading))


def split_in_two(points: np.ndarray, settings: Clustering) -> tuple[np.ndarray, float]:
    """Membership of the smaller of two clusters, bool [n], and the mean silhouette, of points [n, D]."""
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA
    from sklearn.metrics import silhouette_score

    rank = int(np.linalg.matrix_rank(points - points.mean(axis=0)))
    if rank == 0:
        return np.zeros(len(points), dtype=bool), 0.0
    reduced = PCA(min(settings.components, rank), random_state=settings.seed).fit_transform(points)
    if len(np.unique(reduced, axis=0)) < 2:
        return np.zeros(len(points), dtype=bool), 0.0
    cluster = KMeans(2, n_init=10, random_state=settings.seed).fit_predict(reduced)
    small = cluster == np.argmin(np.bincount(cluster, minlength=2))
    return small, float(silhouette_score(reduced, cluster))
