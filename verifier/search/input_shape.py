"""Input sets that are more than a box, for input splitting: linear rows and lp balls on sub-boxes.

Two uses of the same constraints: boxes shrink to where the set can still be, and a linear form's
minimum over a box is raised to its minimum over the part of the box inside the set. Plain numpy.
Each minimum is rounded down by more than its summation error; every multiplier is a valid one, so
only tightness, never soundness, hangs on how it was found.
"""

from __future__ import annotations

import numpy as np

from verifier.spec.problem import Ball, InputSet

_EPS = 2.0**-50


def shrink(inputs: InputSet, lower: np.ndarray, upper: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes [B, N_in] cut to the input set's rows and ball, outward: (lower, upper, bool [B] not empty)."""
    lower, upper = lower.copy(), upper.copy()
    if inputs.row_coeffs is not None and inputs.row_limits is not None:
        for row, limit in zip(inputs.row_coeffs, inputs.row_limits, strict=True):
            shrink_to_halfspace(np.broadcast_to(row, lower.shape), np.full(len(lower), limit), lower, upper)
    if inputs.ball is not None:
        _shrink_to_ball(inputs.ball, lower, upper)
    return lower, upper, np.logical_and.reduce(lower <= upper, axis=1)


def shrink_to_halfspace(coeffs: np.ndarray, limit: np.ndarray, low: np.ndarray, high: np.ndarray) -> None:
    """Shrink boxes [B, N] in place to coeffs [B, N] @ x <= limit [B], outward by the rounding of the sums."""
    ends = np.where(coeffs > 0, low, high)
    products = coeffs * ends
    total = products.sum(axis=1)
    magnitude = np.abs(products).sum(axis=1) + np.abs(limit)
    slack = limit + (coeffs.shape[1] + 8) * 2.0**-50 * magnitude - total  # >= 0 where feasible
    usable = np.isfinite(slack)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        reach = slack[:, None] / np.abs(coeffs)
    reach = reach * (1 + 2.0**-50) + 2.0**-50 * (np.abs(low) + np.abs(high))
    ok = usable[:, None] & (coeffs != 0) & np.isfinite(reach)
    np.copyto(high, np.minimum(high, low + reach), where=ok & (coeffs > 0))
    np.copyto(low, np.maximum(low, high - reach), where=ok & (coeffs < 0))
    impossible = usable & (slack < 0)
    high[impossible], low[impossible] = -np.inf, np.inf


def _shrink_to_ball(ball: Ball, low: np.ndarray, high: np.ndarray) -> None:
    """What the other features' forced distances leave for each one; p = 0 fixes the rest at the center."""
    if np.isinf(ball.p):
        return
    center, scale = ball.center, np.ones_like(ball.center) if ball.scale is None else ball.scale
    away = np.maximum(np.maximum(low - center, center - high), 0.0)
    if ball.p == 0:
        forced = (away > 0).sum(axis=1)
        spent = forced >= ball.radius
        fixed = spent[:, None] & (away == 0)
        np.copyto(low, np.broadcast_to(center, low.shape), where=fixed)
        np.copyto(high, np.broadcast_to(center, high.shape), where=fixed)
        dead = forced > ball.radius
    else:
        power = away / scale if ball.p == 1 else (away / scale) ** 2
        total = power.sum(axis=1)
        budget = ball.radius if ball.p == 1 else ball.radius**2
        slack = _EPS * (low.shape[1] + 8) * (budget + total)
        left = np.maximum(budget + slack - total, 0.0)[:, None] + power
        reach = (left if ball.p == 1 else np.sqrt(left)) * scale * (1 + 4 * _EPS)
        reach = reach + 4 * _EPS * (np.abs(center) + reach)
        np.copyto(low, np.maximum(low, center - reach))
        np.copyto(high, np.minimum(high, center + reach))
        dead = total > budget + slack
    high[dead], low[dead] = -np.inf, np.inf


def form_minimum(inputs: InputSet, coeffs: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """At most min coeffs[b, s] @ x over the part of box b inside the set, [B, S].

    Args:
        coeffs: [B, S, N_in]; low, high: [B, N_in], low <= high.
    """
    found = np.full(coeffs.shape[:2], -np.inf)
    low, high = low[:, None, :], high[:, None, :]
    with np.errstate(all="ignore"):
        if inputs.ball is not None and not np.isinf(inputs.ball.p):
            found = np.fmax(found, _over_ball(inputs.ball, coeffs, low, high))
        if inputs.row_coeffs is not None and inputs.row_limits is not None and len(inputs.row_limits):
            found = np.fmax(found, _over_rows(inputs.row_coeffs, inputs.row_limits, coeffs, low, high))
    return found


def _over_ball(ball: Ball, a: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """From the box's point nearest the center, as far against `a` as the ball's remaining budget allows.

    p = 1 is exact (a fractional knapsack); p = 2 is the smaller of the box's and the ball's reach; p = 0
    moves the features with the largest gains.
    """
    center, scale = ball.center, np.ones_like(ball.center) if ball.scale is None else ball.scale
    nearest = np.clip(center, low, high)
    away = np.abs(nearest - center)
    room = np.where(a > 0, nearest - low, high - nearest)
    gain = np.abs(a) * room
    if ball.p == 0:
        forced = away > 0
        left = np.maximum(ball.radius - forced.sum(axis=-1), 0)
        optional = np.sort(np.where(forced, 0.0, gain), axis=-1)[..., ::-1]
        taken = np.arange(a.shape[-1]) < left[..., None]
        reach = np.where(forced, gain, 0.0).sum(-1) + (optional * taken).sum(-1)
    elif ball.p == 1:
        left = np.maximum(ball.radius - (away / scale).sum(axis=-1), 0.0)
        cost = room / scale
        order = np.argsort(-np.abs(a) * scale, axis=-1)
        costs, gains = (np.take_along_axis(v, order, axis=-1) for v in (np.broadcast_to(cost, a.shape), gain))
        before = np.cumsum(costs, axis=-1) - costs
        share = np.clip((left[..., None] - before) / np.where(costs > 0, costs, 1.0), 0.0, 1.0)
        reach = (gains * share).sum(axis=-1) * (1 + (a.shape[-1] + 8) * _EPS)
        reach = reach + (a.shape[-1] + 8) * _EPS * ball.radius * (np.abs(a) * scale).max(axis=-1)
    else:
        left = np.sqrt(np.maximum(ball.radius**2 * (1 + 16 * _EPS) - ((away / scale) ** 2).sum(axis=-1), 0.0))
        round_reach = left * (1 + 8 * _EPS) * np.sqrt(((a * scale) ** 2).sum(axis=-1))
        reach = np.minimum(round_reach, gain.sum(axis=-1))
    start = a * nearest
    size = np.abs(start).sum(axis=-1) + reach
    return start.sum(axis=-1) - reach - (a.shape[-1] + 8) * _EPS * size


def _over_rows(rows: np.ndarray, limits: np.ndarray, a: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Lagrangian bound: coordinate ascent over the rows' multipliers, each step exact."""
    shift = np.zeros(a.shape[:2])
    best = np.full(a.shape[:2], -np.inf)
    for _ in range(2):
        for row, limit in zip(rows, limits, strict=True):
            mu = np.nan_to_num(best_multiplier(a, row, limit, low, high), nan=0.0, posinf=0.0)
            a = a + mu[..., None] * row
            shift = shift + mu * limit
            products = a * np.where(a > 0, low, high)
            # a itself was rounded once per step: relative to the magnitudes summed here.
            size = np.abs(products).sum(-1) + np.abs(shift) + mu * (np.abs(row) * np.maximum(-low, high)).sum(-1)
            size = size + (np.abs(a) * np.maximum(np.abs(low), np.abs(high))).sum(-1)
            best = np.fmax(best, products.sum(-1) - shift - (a.shape[-1] + 16) * _EPS * size)
    return best


def best_multiplier(
    a: np.ndarray, g: np.ndarray, t: np.ndarray | float, low: np.ndarray, high: np.ndarray
) -> np.ndarray:
    """argmax over mu >= 0 of min_box (a + mu g) @ x - mu t: where the concave function's slope turns.

    a, g, low, high broadcast to [..., N], t to the result's [...].
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        breaks = np.where(g != 0, np.maximum(-a / g, 0.0), 0.0)
    order = np.argsort(breaks, axis=-1)
    at_zero = np.where((a > 0) | ((a == 0) & (g > 0)), low, high)
    slope = (g * at_zero).sum(axis=-1) - t
    drop = np.take_along_axis(np.where(breaks > 0, np.abs(g) * (high - low), 0.0), order, axis=-1)
    crossed = slope[..., None] - np.cumsum(drop, axis=-1) <= 0
    ordered = np.take_along_axis(breaks, order, axis=-1)
    mu = np.take_along_axis(ordered, crossed.argmax(axis=-1)[..., None], axis=-1)[..., 0]
    # The slope never turns: no point of the box meets the row, and any multiplier is valid.
    mu = np.where(crossed.any(axis=-1), mu, 2 * ordered[..., -1] + 1)
    return np.where(slope > 0, mu, 0.0)
