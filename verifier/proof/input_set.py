"""The least value of linear forms over a set of inputs: a box, half-spaces and a ball; rigorous in float64.

Multipliers of half-spaces may be any numbers >= 0; they are found one half-space after the other, each exactly for the
others' numbers. A box and a ball are looked at apart, and the better bound counts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from verifier.proof.program import UNIT, gamma
from verifier.spec.problem import InputSet

#: Rounds over the half-spaces.
_ROUNDS = 3


@dataclass(frozen=True)
class Least:
    """Lower bounds [B, K] before rounding, what rounding may cost, and the magnitudes that were added up."""

    value: np.ndarray
    loss: np.ndarray
    size: np.ndarray


def least(forms: np.ndarray, lower: np.ndarray, upper: np.ndarray, inputs: InputSet | None) -> Least:
    """Of forms [B or 1, K, N] over boxes lower, upper [B, 1, N] cut by what else `inputs` asks for."""
    if inputs is None or inputs.is_box:
        return _over_box(forms, lower, upper)
    found = _over_box(forms, lower, upper)
    if inputs.row_coeffs is not None and inputs.row_limits is not None and len(inputs.row_coeffs):
        found = _better(found, _over_rows(forms, lower, upper, inputs.row_coeffs, inputs.row_limits))
    if inputs.ball is not None and inputs.ball.p in (1.0, 2.0, np.inf):
        found = _better(found, _over_ball(forms, inputs))
    return found


def _better(one: Least, other: Least) -> Least:
    first = one.value - one.loss >= other.value - other.loss
    pairs = ((one.value, other.value), (one.loss, other.loss), (one.size, other.size))
    return Least(*(np.where(first, a, b) for a, b in pairs))


def _over_box(forms: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> Least:
    most = np.maximum(np.abs(lower), np.abs(upper))
    size = (np.abs(forms) * most).sum(axis=2)
    return Least(np.minimum(forms * lower, forms * upper).sum(axis=2), gamma(forms.shape[2] + 4) * size, size)


def _over_rows(forms: np.ndarray, lower: np.ndarray, upper: np.ndarray, rows: np.ndarray, limits: np.ndarray) -> Least:
    """form x >= (form + y rows) x - y limits for y >= 0 and rows x <= limits."""
    multipliers = np.zeros((max(len(forms), len(lower)), forms.shape[1], len(rows)))
    whole = np.broadcast_to(forms, (*multipliers.shape[:2], forms.shape[2]))
    for _ in range(_ROUNDS if len(rows) > 1 else 1):
        for r, (row, limit) in enumerate(zip(rows, limits.tolist(), strict=True)):
            without = whole + multipliers @ rows - multipliers[:, :, r, None] * row
            multipliers[:, :, r] = _multiplier(without, row, limit, lower, upper)
    tilted = _over_box(whole + multipliers @ rows, lower, upper)
    most = np.maximum(np.abs(lower), np.abs(upper))
    size = ((np.abs(forms) + multipliers @ np.abs(rows)) * most).sum(axis=2) + multipliers @ np.abs(limits)
    loss = tilted.loss + gamma(2 * len(rows) + 8) * size
    return Least(tilted.value - multipliers @ limits, loss, tilted.size + size)


def _multiplier(forms: np.ndarray, row: np.ndarray, limit: float, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """The y >= 0 [B, K] for which the least of (forms + y row) x - y limit over the box is largest.

    It is concave in y; its slope row x - limit falls by |row_j| (upper_j - lower_j) where coefficient j changes sign.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        turns = np.where(row != 0, -forms / row, np.inf)
    turns = np.where(turns > 0, turns, np.inf)
    rising = (forms > 0) | ((forms == 0) & (row > 0))
    slope = (np.where(rising, lower, upper) * row).sum(axis=2) - limit
    order = np.argsort(turns, axis=2)
    falls = np.broadcast_to(np.abs(row) * (upper - lower), turns.shape)
    falls = np.where(np.isfinite(turns), falls, 0.0)
    after = slope[:, :, None] - np.cumsum(np.take_along_axis(falls, order, axis=2), axis=2)
    at = np.argmax(after <= 0, axis=2)
    found = np.take_along_axis(turns, np.take_along_axis(order, at[:, :, None], axis=2), axis=2)[:, :, 0]
    return np.where((slope > 0) & (after <= 0).any(axis=2) & np.isfinite(found), found, 0.0)


def _over_ball(forms: np.ndarray, inputs: InputSet) -> Least:
    """forms center - radius ||forms scale||_q with q dual to the ball's p."""
    ball = inputs.ball
    assert ball is not None
    scaled = np.abs(forms) * (1.0 if ball.scale is None else ball.scale)
    if ball.p == 1.0:
        reach = scaled.max(axis=2)
    elif ball.p == 2.0:
        reach = np.sqrt((scaled * scaled).sum(axis=2)) + 1e-150  # squares that underflow are smaller
    else:
        reach = scaled.sum(axis=2)
    size = (np.abs(forms) * np.abs(ball.center)).sum(axis=2) + ball.radius * reach
    value = (forms * ball.center).sum(axis=2) - ball.radius * reach
    return Least(value, (gamma(forms.shape[2] + 16) + 4 * UNIT) * size, size)
