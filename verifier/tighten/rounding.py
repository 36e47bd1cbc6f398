"""Error terms of float64 sums and dot products, and outward rounding of what they bound.

For a dot product of length n in any summation order the error is at most
gamma_n * sum |a_i x_i| with gamma_n = n u / (1 - n u), u = 2^-53 (Higham, Accuracy and Stability
of Numerical Algorithms, chapter 3). The sum of magnitudes is itself computed, so every use
widens it by `WIDEN`; products that underflow are covered by `TINY` each.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

UNIT_ROUNDOFF = 2.0**-53
WIDEN = 1.0 + 2.0**-30
TINY = 1e-300


def gamma(terms: int) -> float:
    """gamma_n for sums of n products in float64, rounded up; valid for n < 2^50."""
    nu = (terms + 2) * UNIT_ROUNDOFF
    return nu / (1.0 - nu) * WIDEN


def dot_error(magnitude: np.ndarray | float, terms: int) -> np.ndarray:
    """At least the error of a computed sum of `terms` products whose magnitudes sum to `magnitude`."""
    return np.asarray(magnitude) * (WIDEN * gamma(terms)) + (terms + 1) * TINY


def sum_down(terms: np.ndarray, axis: int = -1) -> np.ndarray:
    """A lower bound of the exact sum along `axis`; NaN stays NaN."""
    total = terms.sum(axis=axis)
    return total - dot_error(np.abs(terms).sum(axis=axis), terms.shape[axis])


def row_terms(matrix: sparse.csr_matrix) -> int:
    """Most stored entries in a row."""
    return int(np.max(np.diff(matrix.indptr), initial=0))


def with_data(matrix: sparse.csr_matrix, data: np.ndarray) -> sparse.csr_matrix:
    """The same pattern with other numbers.

    scipy's own abs() and maximum() first add up repeated entries *in place*, which rounds.
    """
    return sparse.csr_matrix((data, matrix.indices, matrix.indptr), shape=matrix.shape)


def matvec_interval(matrix: sparse.csr_matrix, lower: np.ndarray, upper: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An enclosure of {matrix @ x : lower <= x <= upper}, rounded outward; float64 [rows] each."""
    positive, negative = with_data(matrix, np.maximum(matrix.data, 0)), with_data(matrix, np.minimum(matrix.data, 0))
    error = dot_error(
        with_data(matrix, np.abs(matrix.data)) @ np.maximum(np.abs(lower), np.abs(upper)), 2 * row_terms(matrix) + 2
    )
    return positive @ lower + negative @ upper - error, positive @ upper + negative @ lower + error
