"""Shrinking boxes to where an unsafe point can still be, by the linear forms of failed bounds.

A clause holds at a point only if every row's form is at most its limit there. Each such half-space moves
one end of each input, and so does the sum of several with multipliers >= 0 ("surrogate"), which can
exclude a box that no row excludes alone. Source: Zhou et al. 2025, arXiv:2512.11087.
"""

from __future__ import annotations

import numpy as np

from verifier.bounds.engine import BoxBounds
from verifier.search.input_shape import best_multiplier, shrink_to_halfspace
from verifier.spec.groups import ClauseRows


def clip(
    bounds: BoxBounds, rows: ClauseRows, limits: np.ndarray, proved: np.ndarray, lower: np.ndarray, upper: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shrink boxes [B, N_in] for the clauses that are still open there; their hull where there are several.

    Args:
        limits: [B, S]; proved: bool [B, C], clauses that no point of the box satisfies.
    Returns:
        new ends [B, N_in], and bool [B, C], the clauses that some point may satisfy: none where a box is done.
    """
    new_low, new_high = np.full(lower.shape, np.inf), np.full(lower.shape, -np.inf)
    is_open = ~proved
    for clause in range(rows.count):
        at = np.flatnonzero(is_open[:, clause])
        own = np.flatnonzero(rows.clause == clause)
        low, high = lower[at], upper[at]
        halfspaces = [(bounds.coeffs[at, s], limits[at, s] - bounds.offset[at, s]) for s in own]
        alive = _shrink(halfspaces, low, high)
        is_open[at, clause] = alive
        at, low, high = at[alive], low[alive], high[alive]
        new_low[at], new_high[at] = np.minimum(new_low[at], low), np.maximum(new_high[at], high)
    return new_low, new_high, is_open


def _shrink(halfspaces: list[tuple[np.ndarray, np.ndarray]], low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Shrink boxes [B, N] in place to all the half-spaces; bool [B], those that are not empty then."""
    with np.errstate(all="ignore"):  # the ends of an empty box are infinite
        for coeffs, limit in halfspaces:
            shrink_to_halfspace(coeffs, limit, low, high)
        alive = np.logical_and.reduce(low <= high, axis=1)
        if len(halfspaces) > 1 and alive.any():
            ends = low[alive], high[alive]
            shrink_to_halfspace(*surrogate([(a[alive], t[alive]) for a, t in halfspaces], *ends), *ends)
            low[alive], high[alive] = ends
            alive = np.logical_and.reduce(low <= high, axis=1)
    return alive


def surrogate(
    halfspaces: list[tuple[np.ndarray, np.ndarray]], low: np.ndarray, high: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """One half-space coeffs [B, N] @ x <= limit [B] that holds on the box wherever all of them do.

    Starts from the one that the box violates most and adds the others in turn, each times the multiplier
    that raises the smallest value of coeffs @ x - limit over the box most.
    """
    size = np.maximum(np.abs(low), np.abs(high))
    with np.errstate(all="ignore"):
        # In units of its own reach, or the largest numbers would decide which one is first.
        least = np.stack([(a * np.where(a > 0, low, high)).sum(1) - t for a, t in halfspaces])
        reach = np.stack([(np.abs(a) * (high - low)).sum(1) for a, _ in halfspaces])
        first = np.nan_to_num(least / reach, nan=-np.inf).argmax(axis=0)
        every = np.arange(len(low))
        coeffs = np.stack([a for a, _ in halfspaces])[first, every]
        limit = np.stack([t for _, t in halfspaces])[first, every]
        for number, (a, t) in enumerate(halfspaces):
            factor = best_multiplier(coeffs, a, t, low, high)
            factor = np.where((first == number) | ~np.isfinite(factor), 0.0, factor)[:, None]
            terms = np.abs(coeffs) + factor * np.abs(a)
            shift = factor[:, 0] * t
            rounding = (coeffs.shape[1] + 8) * 2.0**-50 * ((terms * size).sum(1) + np.abs(limit) + np.abs(shift))
            sums = coeffs + factor * a, limit + shift + rounding
            usable = (factor[:, 0] > 0) & np.isfinite(sums[1]) & np.isfinite(sums[0]).all(axis=1)
            coeffs, limit = np.where(usable[:, None], sums[0], coeffs), np.where(usable, sums[1], limit)
    return coeffs, limit
