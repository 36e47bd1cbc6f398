"""Deciding memberships in exact arithmetic: floats are rationals, and a witness gets no tolerance."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from verifier.spec.problem import Ball, Clause, InputSet
from verifier.spec.representable import hull_of_deployed_inputs

Value = float | Fraction


def row_slacks(
    coeffs: np.ndarray, limits: np.ndarray, values: np.ndarray, exact: Sequence[Value] | None = None
) -> list[Value]:
    """`coeffs @ values - limits` for every row: exactly where the sign is in doubt, else in doubles.

    Args:
        coeffs: float64 [M, N]; limits: float64 [M].
        values: float64 [N], finite.
        exact: the values as rationals where float64 does not hold them; None means `values` is exact.
    Returns:
        M numbers whose signs (and zeros) are exact.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # an infinite or NaN estimate is in doubt below
        approximate = coeffs @ values - limits
        # Twice the bound gamma_n of a dot product, plus the rounding of `values` themselves and underflow.
        size = np.abs(coeffs) @ np.abs(values) + np.abs(limits)
        error = size * (2 * coeffs.shape[1] + 8) * 2.0**-52 + 1e-300
    slacks: list[Value] = []
    for r, (estimate, doubt) in enumerate(zip(approximate.tolist(), error.tolist(), strict=True)):
        if abs(estimate) > doubt:
            slacks.append(estimate)
            continue
        source = values.tolist() if exact is None else exact
        total = -Fraction(float(limits[r]))
        for column in np.flatnonzero(coeffs[r]).tolist():
            total += Fraction(float(coeffs[r, column])) * Fraction(source[column])
        slacks.append(total)
    return slacks


def row_holds(slack: Value, strict: bool) -> bool:
    """True when a row with this slack is satisfied; NaN never is."""
    return bool(slack < 0 if strict else slack <= 0)


def clause_margin(clause: Clause, values: np.ndarray, exact: Sequence[Value] | None = None) -> tuple[bool, Value]:
    """Whether every row holds, and the largest slack (-inf for a clause without rows).

    A clause that reads a NaN or infinite value holds in no row that reads it.
    """
    read = np.any(clause.coeffs != 0, axis=0)
    if not np.all(np.isfinite(values[read])):
        return False, float("inf")
    safe = np.where(read, values, 0.0)
    slacks = row_slacks(clause.coeffs, clause.limits, safe, exact)
    holds = all(row_holds(slack, bool(strict)) for slack, strict in zip(slacks, clause.strict, strict=True))
    return holds, max(slacks, default=float("-inf"))


def outside(inputs: InputSet, x: np.ndarray, dtype: str) -> str:
    """Why x is not in the input set, or "" when it is; exact.

    Where the box holds no number of `dtype`, the rounded ends count as inside, as the program is
    given them (`hull_of_deployed_inputs`).

    Args:
        x: float64 [N_in], each entry a number of `dtype`.
        dtype: the program's number type; an l0 ball counts features that leave the rounded center.
    """
    inside = (x >= inputs.lower) & (x <= inputs.upper)
    if not np.all(inside) and _nearly_inside(inputs, x):
        lower, upper = hull_of_deployed_inputs(inputs.lower, inputs.upper, dtype)
        inside = (x >= lower) & (x <= upper)
    if not np.all(inside):
        i = int(np.argmin(inside))
        return f"input {i} is {float(x[i])!r}, outside [{float(inputs.lower[i])!r}, {float(inputs.upper[i])!r}]"
    if inputs.row_coeffs is not None and inputs.row_limits is not None:
        strict = np.zeros(len(inputs.row_limits), bool) if inputs.row_strict is None else inputs.row_strict
        for r, slack in enumerate(row_slacks(inputs.row_coeffs, inputs.row_limits, x)):
            if not row_holds(slack, bool(strict[r])):
                return f"linear input row {r} exceeds its limit by {float(slack):.3g}"
    if inputs.ball is not None and not _in_ball(inputs.ball, x, dtype):
        return f"the l{inputs.ball.p:g} distance from the center exceeds {inputs.ball.radius!r}"
    return ""


def _nearly_inside(inputs: InputSet, x: np.ndarray) -> bool:
    """Whether rounding the ends to float32 could reach x: a cheap way out when cases are many."""
    gap = np.maximum(inputs.lower - x, x - inputs.upper)
    return bool(np.all(gap <= 2.0**-22 * (np.abs(inputs.lower) + np.abs(inputs.upper)) + 2.0**-140))


def _in_ball(ball: Ball, x: np.ndarray, dtype: str) -> bool:
    if ball.p == 0:
        moved = (x != ball.center) & (x != ball.center.astype(dtype).astype(np.float64))
        return int(np.count_nonzero(moved)) <= ball.radius
    scale = np.ones_like(ball.center) if ball.scale is None else ball.scale
    steps = [
        abs(Fraction(a) - Fraction(c)) / Fraction(s)
        for a, c, s in zip(x.tolist(), ball.center.tolist(), scale.tolist(), strict=True)
        if a != c
    ]
    radius = Fraction(float(ball.radius))
    if ball.p == 1:
        return sum(steps) <= radius
    if ball.p == 2:
        return sum(step * step for step in steps) <= radius * radius
    return all(step <= radius for step in steps)
