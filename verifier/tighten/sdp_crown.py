"""SDP-CROWN: linear bounds of a relu layer on an l2 ball, coupling its neurons, in closed form."""

from __future__ import annotations

import numpy as np

from verifier.errors import ShapeError, SpecError
from verifier.tighten.rounding import dot_error


def relu_offset_on_ball(
    coeffs: np.ndarray, slope: np.ndarray, center: np.ndarray, radius: float, multiplier: float
) -> float:
    """An offset with coeffs @ relu(x) >= slope @ x + offset for all ||x - center||_2 <= radius.

        offset = -1/2 [lambda (radius^2 - ||center||^2) + ||phi||^2 / lambda],
        phi_i = min(coeffs_i - slope_i - lambda center_i, slope_i + lambda center_i, 0).

    Args:
        coeffs, slope, center: float64 [N]; any slope and any multiplier lambda > 0 are valid.
    Returns:
        The offset, rounded down.
    Raises:
        ShapeError: lengths differ.  SpecError: radius < 0 or multiplier <= 0.
    Source: Chiu et al. 2025, SDP-CROWN, arXiv:2506.06665.
    """
    if not coeffs.shape == slope.shape == center.shape or coeffs.ndim != 1:
        raise ShapeError(f"SDP-CROWN: expected three vectors [N], got {coeffs.shape}, {slope.shape}, {center.shape}")
    if not (radius >= 0 and multiplier > 0):
        raise SpecError(f"SDP-CROWN: expected radius >= 0 and multiplier > 0, got {radius} and {multiplier}")
    shifted = multiplier * center
    phi = np.minimum(np.minimum(coeffs - slope - shifted, slope + shifted), 0.0)
    size = np.abs(coeffs) + np.abs(slope) + np.abs(shifted)
    offset = -0.5 * (multiplier * (radius**2 - float(center @ center)) + float(phi @ phi) / multiplier)
    magnitude = multiplier * (radius**2 + float(center @ center)) + 4.0 * float(size @ size) / multiplier
    return float(offset - dot_error(magnitude, 4 * center.size + 16))


def best_multiplier(coeffs: np.ndarray, slope: np.ndarray, center: np.ndarray, radius: float) -> float:
    """A multiplier > 0 that makes `relu_offset_on_ball` nearly as large as it can be.

    The offset is concave in 1/lambda's neighbourhood only piecewise, so a logarithmic grid picks
    the start and golden sections refine it; any result is valid.
    """
    grid = np.logspace(-6.0, 6.0, 49) * max(float(np.abs(coeffs).max(initial=0.0)), 1e-12) / max(radius, 1e-12)
    values = [relu_offset_on_ball(coeffs, slope, center, radius, float(g)) for g in grid]
    best = int(np.argmax(values))
    left, right = np.log(grid[max(best - 1, 0)]), np.log(grid[min(best + 1, grid.size - 1)])
    ratio = 0.5 * (np.sqrt(5.0) - 1.0)
    for _ in range(40):
        low, high = right - ratio * (right - left), left + ratio * (right - left)
        better_low = relu_offset_on_ball(coeffs, slope, center, radius, float(np.exp(low))) > relu_offset_on_ball(
            coeffs, slope, center, radius, float(np.exp(high))
        )
        left, right = (left, high) if better_low else (low, right)
    return float(np.exp(0.5 * (left + right)))
