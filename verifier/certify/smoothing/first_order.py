"""Certificates that use the gradient of the smoothed classifier as well as its value.

With g(x) = E f(x + sigma z), z standard normal, sigma * grad g(x) = E f z. Among all f with
E f >= p and E f z along the shift >= -slope, the one that loses most under a shift of r standard
deviations accepts an interval [a, b] of the coordinate along it (a convex exponential lies below
a rising line exactly on an interval). So g(x + shift) >= Phi(b - r) - Phi(a - r) whenever
Phi(b) - Phi(a) <= p and phi(b) - phi(a) >= slope. Without slope information a = -inf, and
the Neyman-Pearson radius sigma Phi^-1(p) comes back.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import optimize, special

from verifier.certify.smoothing.confidence import SAFETY_REL
from verifier.errors import SpecError


def gaussian_l2_first_order(p_top: float, slope: float, sigma: float) -> float:
    """l2 radius from the top class's probability and the norm of its gradient.

    Args:
        p_top: lower bound on g(x), in [0, 1].
        slope: upper bound on sigma * ||grad g(x)||_2 = ||E f z||_2, >= 0, dimensionless.
        sigma: standard deviation of the noise, in input units, > 0.
    Returns:
        A radius in input units, rounded down; at least the Neyman-Pearson one to round-off, and 0
        for p_top <= 1/2.
    Raises:
        SpecError: arguments out of range.
    Source: Mohapatra et al. 2020, arXiv:2010.06651 (first-order certificate, l2).
    """
    if not (0.0 <= p_top <= 1.0 and slope >= 0.0 and sigma > 0.0):
        raise SpecError(f"first-order radius: p_top {p_top}, slope {slope}, sigma {sigma} out of range")
    if p_top <= 0.5:
        return 0.0
    p = p_top - SAFETY_REL
    low, high = _worst_interval(p, slope + SAFETY_REL)

    def excess(r: float) -> float:
        return float(special.ndtr(high - r) - special.ndtr(low - r)) - 0.5 - SAFETY_REL

    if not excess(0.0) > 0.0:
        return 0.0
    # The interval's centre is <= 0, so its probability falls as r grows: one sign change.
    left, right = 0.0, 1.0
    while excess(right) > 0.0:
        left, right = right, 2.0 * right
        if right > 64.0:
            return sigma * left
    for _ in range(60):
        middle = 0.5 * (left + right)
        left, right = (middle, right) if excess(middle) > 0.0 else (left, middle)
    return sigma * left * (1.0 - SAFETY_REL)


def slope_upper_bound(
    mean_first: np.ndarray, mean_second: np.ndarray, count_first: int, count_second: int, alpha: float
) -> float:
    """Upper confidence bound on ||E f z||_2 from two independent sample means of f z.

    For any unit vector w, ln E exp(-t (f w.z - E f w.z)) <= exp(t^2/2) - 1, because
    e^-s - 1 + s >= 0 and 0 <= f <= 1. Chernoff's bound then limits, with probability
    1 - alpha/2 each, first.second - v.second and v.second - ||v||^2 for v = E f z; the two
    give a quadratic inequality in ||v||. The error grows with the fourth root of the dimension
    only, where estimating every coordinate would cost the square root.

    Args:
        mean_first, mean_second: float64 [N], means of f z over disjoint halves of the samples.
        count_first, count_second: sizes of the halves, > 0.
        alpha: probability of a wrong bound, in (0, 1).
    Source: Mohapatra et al. 2020, arXiv:2010.06651 (product of two means); constants derived here.
    """
    if not (0.0 < alpha < 1.0 and count_first > 0 and count_second > 0):
        raise SpecError(f"slope bound: alpha {alpha}, counts {count_first} and {count_second} out of range")
    first = np.asarray(mean_first, dtype=np.float64).reshape(-1)
    second = np.asarray(mean_second, dtype=np.float64).reshape(-1)
    reach_first = _chernoff_reach(count_first, alpha / 2.0)
    reach_second = _chernoff_reach(count_second, alpha / 2.0)
    limit = float(first @ second) + reach_first * float(np.linalg.norm(second))
    limit += SAFETY_REL * float(np.abs(first) @ np.abs(second) + 1.0)
    inner = reach_second**2 + 4.0 * limit
    if inner <= 0.0:
        return reach_second
    return 0.5 * (reach_second + math.sqrt(inner)) * (1.0 + SAFETY_REL)


def _chernoff_reach(count: int, alpha: float) -> float:
    """t with P(mean of `count` samples < expectation - t) <= alpha, from psi(s) = exp(s^2/2) - 1."""
    budget = math.log(1.0 / alpha) / count
    start = math.sqrt(2.0 * budget)

    def reach(s: float) -> float:
        return (budget + math.expm1(0.5 * s * s)) / s

    found = optimize.minimize_scalar(reach, bounds=(0.05 * start, start), method="bounded")
    return min(reach(start), float(found.fun)) * (1.0 + SAFETY_REL)


def _worst_interval(p: float, slope: float) -> tuple[float, float]:
    """[a, b] with Phi(b) - Phi(a) <= p and phi(b) - phi(a) >= slope, as far right of -inf as possible."""

    def right_end(tail: float) -> float:
        return float(special.ndtri(p + tail)) if p + tail < 1.0 else math.inf

    def slope_of(tail: float) -> float:
        return _density(right_end(tail)) - _density(float(special.ndtri(tail)))

    if slope_of(0.0) <= slope:
        return -math.inf, right_end(0.0)
    # slope_of falls from phi(b) at tail 0 to 0 at the symmetric interval.
    left, right = 0.0, 0.5 * (1.0 - p)
    for _ in range(200):
        middle = 0.5 * (left + right)
        left, right = (middle, right) if slope_of(middle) >= slope else (left, middle)
    return float(special.ndtri(left)), right_end(left)


def _density(z: float) -> float:
    return math.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi) if math.isfinite(z) else 0.0
