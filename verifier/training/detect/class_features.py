"""Features of each class, in coordinates where the variation that classes share has unit size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch import nn

from verifier.data import Dataset
from verifier.training.predict import feature_layer, features

_RIDGE = 1e-2


@dataclass(frozen=True)
class Reading:
    """What of the network is read.

    Attributes:
        where: "early" (after the convolutions or the first hidden layer) or "last" (see
            `predict.feature_layer`). On small networks the last layer has forgotten the trigger.
        whiten: divide by the within-class variation of all other classes. Natural variation (thick
            and thin strokes) is shared and shrinks; a poisoned class alone varies along its trigger.
            False gives the raw features of the original papers.
    """

    where: str = "early"
    whiten: bool = True


EARLY_WHITENED = Reading()


def class_features(data: Dataset, model: nn.Module, reading: Reading) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(row indices [n], centred features [n, D], float64) of each class that has at least five rows."""
    read = features(model, data.x, reading.where).astype(np.float64)
    centred = read.copy()
    for label in np.unique(data.y):
        centred[data.y == label] -= read[data.y == label].mean(axis=0)
    for label in np.unique(data.y):
        own = data.y == label
        if np.sum(own) >= 5:
            points = centred[own]
            yield np.flatnonzero(own), points @ _whitener(centred[~own]) if reading.whiten else points


def _whitener(others: np.ndarray) -> np.ndarray:
    """Symmetric [D, D] inverse square root of the covariance, its small directions lifted by a ridge."""
    size = others.shape[1]
    if len(others) == 0:
        return np.eye(size)
    covariance = others.T @ others / len(others)
    mean = np.trace(covariance) / size
    if not mean > 0:
        return np.eye(size)
    values, vectors = np.linalg.eigh(covariance + _RIDGE * mean * np.eye(size))
    return vectors / np.sqrt(values) @ vectors.T


def layer_in_words(model: nn.Module, reading: Reading) -> str:
    """Which layer was read, for reports."""
    name = feature_layer(model, reading.where)[0]
    return f"input of layer '{name}'" + (", whitened by the other classes' variation" if reading.whiten else "")
