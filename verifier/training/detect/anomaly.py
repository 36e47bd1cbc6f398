"""Outliers by the median absolute deviation, the yardstick of several detectors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

CONSISTENCY = 1.4826  # makes the median absolute deviation estimate a Gaussian's standard deviation
#: Below this many values an index means little.
FEW = 5


def anomaly_indices(values: np.ndarray) -> np.ndarray:
    """Distance of each value from the median, in consistent median absolute deviations, float64 [n].

    Signed: negative below the median. Zero where all deviations vanish. With two values every
    index is +-0.67, so no threshold can single one out; callers treat few classes separately.

    Source: Wang et al. 2019 (Neural Cleanse, S&P), after Hampel 1974.
    """
    values = np.asarray(values, dtype=np.float64)
    center = np.median(values)
    scale = CONSISTENCY * np.median(np.abs(values - center))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(values == center, 0.0, (values - center) / scale) if scale > 0 else np.zeros_like(values)


@dataclass(frozen=True)
class Outliers:
    """Which of some values, one a class, stand out.

    Attributes:
        index: anomaly index beyond which a value does.
        ratio: with fewer than FEW values: share or multiple of the others' median beyond which one does.
    """

    index: float
    ratio: float

    def small(self, values: np.ndarray) -> np.ndarray:
        """bool [n]: far below the others."""
        if len(values) < FEW:
            return values < self.ratio * _medians_of_others(values)
        return anomaly_indices(values) < -self.index

    def large(self, values: np.ndarray) -> np.ndarray:
        """bool [n]: far above the others."""
        if len(values) < FEW:
            return values > self.ratio * _medians_of_others(values)
        return anomaly_indices(values) > self.index


def _medians_of_others(values: np.ndarray) -> np.ndarray:
    """For each value the median of the rest; inf for a value alone."""
    return np.array([np.median(np.delete(values, k)) if len(values) > 1 else np.inf for k in range(len(values))])
