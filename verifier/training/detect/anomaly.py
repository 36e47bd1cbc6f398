"""Outliers by the median absolute deviation, the yardstick of several detectors."""

from __future__ import annotations

import numpy as np

CONSISTENCY = 1.4826  # makes the median absolute deviation estimate a Gaussian's standard deviation


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
