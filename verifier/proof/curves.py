"""Lines below and above tanh and the sigmoid on an interval.

Both are, up to a constant, odd functions g, convex below zero and concave above; a line above g on [l, u] is a line
below it on [-u, -l], turned. All arrays are float64 [B, N].
Source: Singh et al. 2019 (DeepPoly), Zhang et al. 2018, arXiv:1811.00866, for tangents that touch where they can.
"""

from __future__ import annotations

import numpy as np

#: More than the errors of g, g' and of the lines' own arithmetic, for every unit of 1 + |l| + |u|.
_MARGIN = 1e-13
_HALVINGS = 40
#: The constant that makes the function odd.
CENTER = {"Tanh": 0.0, "Sigmoid": 0.5}
#: Error of the deployed function, in unit round-offs of its arithmetic.
DEPLOYED = {"Tanh": 32.0, "Sigmoid": 18.0}


def odd(curve: str, z: np.ndarray) -> np.ndarray:
    """g(z) = f(z) - CENTER."""
    return np.tanh(z) if curve == "Tanh" else 0.5 * np.tanh(0.5 * z)


def _slope(curve: str, z: np.ndarray) -> np.ndarray:
    g = odd(curve, z)
    return 1.0 - g * g if curve == "Tanh" else (0.5 - g) * (0.5 + g)


def line_below(curve: str, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(slope, offset) with slope z + offset <= g(z) for low <= z <= high.

    Where g starts convex, the tangent furthest up that stays below its end; where even the first one does not, or g is
    concave, the chord. A convex function lies above its tangents; above a line through its start, too, that is not
    steeper than it is there; a concave one above a line that it is above at both ends.
    """
    with np.errstate(invalid="ignore", over="ignore"):  # what is no number proves nothing
        return _below(curve, low, high)


def _below(curve: str, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    g_low, g_high = odd(curve, low), odd(curve, high)
    flat = high - low < 1e-9
    chord = np.where(flat, 0.0, (g_high - g_low) / np.where(flat, 1.0, high - low))
    left, right = low, np.minimum(high, 0.0)

    def fits(at: np.ndarray) -> np.ndarray:
        return odd(curve, at) + _slope(curve, at) * (high - at) <= g_high

    bowl = (low < 0) & ((high <= 0) | fits(low))
    near, far = left, np.maximum(right, left)
    # In a convex stretch every tangent is below; the one at its middle is as good as any.
    whole = high <= 0
    for _ in range(_HALVINGS):
        middle = 0.5 * (near + far)
        good = fits(middle)
        near, far = np.where(good, middle, near), np.where(good, far, middle)
    at = np.where(whole, 0.5 * (low + high), near)
    slope = np.where(bowl & ~flat, _slope(curve, at), chord)
    # A chord over the convex stretch must not be steeper than g at its start.
    slope = np.where(bowl | flat | (low >= 0), slope, np.minimum(slope, _slope(curve, low)))
    slope = np.where(flat, 0.0, slope)
    through_ends = np.minimum(g_low - slope * low, g_high - slope * high)
    tangent = odd(curve, at) - slope * at
    offset = np.where(bowl & ~flat, np.minimum(tangent, through_ends), through_ends)
    return slope, offset - _MARGIN * (1.0 + np.abs(low) + np.abs(high))


def line_above(curve: str, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(slope, offset) with slope z + offset >= g(z) for low <= z <= high."""
    slope, offset = line_below(curve, -high, -low)
    return slope, -offset
