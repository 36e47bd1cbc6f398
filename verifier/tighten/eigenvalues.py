"""Rigorous lower bounds of the smallest eigenvalue of a symmetric matrix."""

from __future__ import annotations

import numpy as np

from verifier.errors import NetworkError
from verifier.tighten.rounding import UNIT_ROUNDOFF, gamma

# Shifts tried below the approximate eigenvalue, each this many times the one before.
_WIDENINGS, _GROWTH = 12, 8.0


def smallest_eigenvalue_bound(matrix: np.ndarray) -> float:
    """A number <= the smallest eigenvalue of the symmetric float64 matrix [N, N].

    An approximate eigenvalue proposes a shift s. If Cholesky's method runs to its end on
    B = A - s I in floating point, then A >= s - alpha trace(B) with alpha = gamma / (1 - gamma),
    whatever the order of its sums. Where every shift fails, Gershgorin's circles give the answer.

    Raises:
        NetworkError: the matrix holds NaN or infinite values, or is not exactly symmetric.
    Source: Rump 2006, Verification of positive definiteness, BIT 46.
    """
    if not np.all(np.isfinite(matrix)) or not np.array_equal(matrix, matrix.T):
        raise NetworkError("eigenvalue bound: expected a finite, exactly symmetric matrix")
    size = matrix.shape[0]
    diagonal = np.diagonal(matrix)
    off = np.abs(matrix).sum(axis=1) - np.abs(diagonal)
    radius = off + gamma(size) * (np.abs(matrix).sum(axis=1)) * 4.0
    circles = float(np.min(diagonal - radius - 4.0 * UNIT_ROUNDOFF * (np.abs(diagonal) + radius)))
    guess = float(np.linalg.eigvalsh(matrix)[0])
    step = 4.0 * UNIT_ROUNDOFF * max(float(np.linalg.norm(matrix)), 1e-290)
    for _ in range(_WIDENINGS):
        shift = guess - step
        shifted = matrix.copy()
        shifted[np.diag_indices(size)] -= shift
        moved = np.diagonal(shifted)
        if moved.min() > 0.0 and _factorises(shifted):
            share = gamma(size + 2)
            lost = 2.0 * share / (1.0 - share) * float(moved.sum()) + 2.0 * UNIT_ROUNDOFF * float(moved.max())
            found = shift - lost * (1.0 + 2.0**-20) - size * 1e-290
            return max(circles, found - 2.0 * UNIT_ROUNDOFF * abs(found))
        step *= _GROWTH
    return circles


def _factorises(matrix: np.ndarray) -> bool:
    try:
        factor = np.linalg.cholesky(matrix)
    except np.linalg.LinAlgError:
        return False
    return bool(np.all(np.isfinite(factor)))
