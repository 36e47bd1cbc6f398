"""How far a float sum can be off, whatever its order, from the largest partial sums of each length.

The usual gamma_n * sum |t_i| lets every one of the n - 1 additions round a number as large as all terms
together. A partial sum of k terms is no larger than the k largest of one sign, though, and rounding is at
most u times the power of two below it. Which order of additions is worst is then a small recursion.
Source: Higham 2002, section 4.2, for the partial sums; the recursion runs over all binary trees.
"""

from __future__ import annotations

import numpy as np


def ordered_error(
    low: np.ndarray, high: np.ndarray, constant: np.ndarray | None, size: np.ndarray, fused: int, unit: float
) -> np.ndarray:
    """Rounding of sums of products and a constant, in any order, underflow apart.

    Args:
        low, high: bounds of the products, float64 [R, n].
        constant: magnitude [R] of what is added to them, in one piece or in pieces that came with the products.
        size: sum of |terms|, the constant's included, [R].
        fused: roundings of every product beyond its own, by operations fused into it.
        unit: unit round-off.
    Returns:
        float64 [R].
    """
    count = low.shape[1] + 3 + fused
    # The partial sums that are rounded differ from the exact ones by less than 2 n u of the whole.
    spare = 2 * count * unit * size
    if constant is not None:
        # One more term; but its pieces may also have come with the others, so any partial sum may hold them.
        own = constant.reshape(-1, 1)
        low, high, spare = np.concatenate([low, -own], axis=1), np.concatenate([high, own], axis=1), spare + constant
    # A factor applied after the sum moves its partial sums away from the powers of two they were rounded below.
    additions = worst_additions(low, high, spare, binades=fused == 0)
    return (additions + (1 + fused) * size) * (unit * (1 + 8 * count * unit))


def worst_additions(low: np.ndarray, high: np.ndarray, spare: np.ndarray, *, binades: bool = True) -> np.ndarray:
    """The largest sum of the additions' roundings, in units of u, over all orders of adding n terms up.

    An addition that completes k terms rounds by at most u * g(k), where g(k) is the largest power of two
    not above the largest |sum of k terms| + spare. Every order is a binary tree whose inner nodes are
    additions, so the worst is T(n) for

        T(1) = 0,   T(m) = g(m) + max over a of T(a) + T(m - a).

    Args:
        low, high: bounds of the terms, float64 [R, n].
        spare: what rounding may already have added to any partial sum, [R].
        binades: off where partial sums are only known up to a factor, so that g(k) is the largest sum itself.
    Returns:
        float64 [R], rounded up.
    """
    rows, n = low.shape
    largest = np.maximum(_largest_sums(high), _largest_sums(-low)) * (1 + n * 2.0**-51) + spare
    steps = largest  # [n, R]
    if binades:
        _, exponent = np.frexp(largest)
        steps = np.where(largest > 0, np.ldexp(1.0, exponent - 1), 0.0)
    steps = np.where(np.isfinite(largest), steps, np.inf)
    worst = np.zeros((n + 1, rows))
    for m in range(2, n + 1):
        half = m // 2
        parts = worst[1 : half + 1] + worst[m - half : m][::-1]
        worst[m] = parts.max(axis=0) + steps[m - 1]
    return worst[n] * (1 + n * 2.0**-51)


def _largest_sums(terms: np.ndarray) -> np.ndarray:
    """Largest sum of k of the terms [R, n], at least 0, for k = 1 to n: [n, R]; rounding is left to the caller."""
    ordered = -np.sort(-terms, axis=1)
    # Up to the last positive term the sums grow; the rounding of later ones scales with that peak.
    peak = np.clip(ordered, 0.0, None).sum(axis=1, keepdims=True)
    sums = np.cumsum(ordered, axis=1) + terms.shape[1] * 2.0**-52 * (peak + np.abs(ordered).sum(axis=1, keepdims=True))
    return np.clip(sums, 0.0, None).T
