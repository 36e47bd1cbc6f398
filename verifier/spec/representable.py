"""Which inputs the deployed program can really be given: float32 (or float64) numbers in a box."""

from __future__ import annotations

import numpy as np

from verifier.spec.problem import Ball, Case, InputSet, Problem

_REPAIR_ROUNDS = 40
_MAX_OVERSHOOT = 10


def float_ceiling(values: np.ndarray, dtype: str) -> np.ndarray:
    """Smallest numbers of `dtype` that are >= values (float64), as float64, same shape."""
    return _directed(values, dtype, np.inf)


def float_floor(values: np.ndarray, dtype: str) -> np.ndarray:
    """Largest numbers of `dtype` that are <= values (float64), as float64, same shape."""
    return _directed(values, dtype, -np.inf)


def _directed(values: np.ndarray, dtype: str, direction: float) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if dtype == "float64":
        return values
    with np.errstate(over="ignore", under="ignore"):
        near = values.astype(dtype)
        wrong = near < values if direction > 0 else near > values
        return np.where(wrong, np.nextafter(near, np.array(direction, dtype)), near).astype(np.float64)


def below(value: float, dtype: str) -> float:
    """The largest number of `dtype` strictly below `value`."""
    nearest = float(float_floor(np.array(value), dtype))
    return nearest if nearest < value else float(np.nextafter(np.array(nearest, dtype), np.array(-np.inf, dtype)))


def hull_of_deployed_inputs(lower: np.ndarray, upper: np.ndarray, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Widen the dimensions that hold no number of `dtype` to what the program is really given.

    A property may fix an input to a decimal such as 0.208333, which no float32 equals. Read to
    the letter no input of the program satisfies it; what everyone means is that the program runs
    on the rounded value. Such a dimension becomes the hull of [lower, upper] and of the roundings
    of both ends. A dimension that holds at least one float needs nothing: the program's inputs
    there are exactly the floats inside. Empty dimensions (lower > upper) stay empty.

    Args:
        lower, upper: float64, any equal shapes.
        dtype: the program's input type, "float32" or "float64".
    Returns:
        New lower and upper ends.
    """
    if dtype == "float64":
        return lower, upper
    bare = (float_ceiling(lower, dtype) > upper) & (lower <= upper)
    if not np.any(bare):
        return lower, upper
    with np.errstate(over="ignore", under="ignore"):
        ends = np.stack([lower, upper]).astype(dtype).astype(np.float64)
    new_lower = np.where(bare, np.minimum(lower, ends.min(axis=0)), lower)
    new_upper = np.where(bare, np.maximum(upper, ends.max(axis=0)), upper)
    return new_lower, new_upper


def with_deployed_inputs(problem: Problem, dtype: str) -> Problem:
    """The problem with `hull_of_deployed_inputs` applied to every box; `exact_real` stays as it is."""
    if problem.exact_real:
        return problem
    cases = []
    for case in problem.cases:
        box = case.inputs
        lower, upper = hull_of_deployed_inputs(box.lower, box.upper, dtype)
        if lower is not box.lower or upper is not box.upper:
            box = InputSet(lower, upper, box.row_coeffs, box.row_limits, box.ball, box.row_strict)
        cases.append(Case(box, case.clauses))
    return Problem(tuple(cases), problem.output_size, problem.exact_real, problem.notes)


def snap_to_valid(inputs: InputSet, x: np.ndarray, dtype: str = "float32") -> np.ndarray:
    """Nearest points of `dtype` inside the box, nudged into rows and ball where rounding left them.

    The box always holds on return unless it is empty (a dimension without a number of `dtype` gets
    a rounded end, see `hull_of_deployed_inputs`); rows and ball are repaired on a best-effort
    basis, and replay decides.

    Args:
        inputs: the set; N_in features.
        x: points, [N_in] or [B, N_in], any float type; NaN becomes the lower end.
    Returns:
        Points of `dtype`, same shape.
    """
    lower, upper = hull_of_deployed_inputs(inputs.lower, inputs.upper, dtype)
    low, high = float_ceiling(lower, dtype), float_floor(upper, dtype)
    x = np.asarray(x, dtype=np.float64)
    x = np.where(np.isnan(x), lower, x)

    def onto_box(points: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore", under="ignore"):
            clipped = np.clip(points, lower, upper).astype(dtype).astype(np.float64)
        return np.minimum(np.maximum(clipped, low), np.maximum(high, low))

    snapped = onto_box(x)
    for attempt in range(_REPAIR_ROUNDS if not inputs.is_box else 0):
        slack = 2.0 ** (min(attempt, _MAX_OVERSHOOT) - 24)
        moved = _towards_rows(inputs, snapped, slack)
        moved = moved if inputs.ball is None else towards_ball(inputs.ball, moved, slack)
        if moved is snapped:
            break
        snapped = onto_box(moved)
    return snapped.astype(dtype)


def _towards_rows(inputs: InputSet, x: np.ndarray, slack: float) -> np.ndarray:
    """One sweep of projections onto violated rows, overshooting by the relative `slack`."""
    if inputs.row_coeffs is None or inputs.row_limits is None:
        return x
    for coeffs, limit in zip(inputs.row_coeffs, inputs.row_limits, strict=True):
        excess = x @ coeffs - limit
        if np.any(excess > 0) and np.any(coeffs):
            overshoot = slack * (np.abs(x) @ np.abs(coeffs) + 1e-30)
            step = np.where(excess > 0, excess + overshoot, 0.0) / (coeffs @ coeffs)
            x = x - np.multiply.outer(step, coeffs)
    return x


def towards_ball(ball: Ball, x: np.ndarray, slack: float) -> np.ndarray:
    """Points [..., N_in] outside a ball scaled towards its center, to 1 - slack of its radius; p = 0 keeps the largest
    moves. Where none is outside, x itself.
    """
    scale = np.ones_like(ball.center) if ball.scale is None else ball.scale
    step = (x - ball.center) / scale
    if ball.p == 0:
        keep = int(ball.radius)
        if np.all(np.count_nonzero(step, axis=-1) <= keep):
            return x
        order = np.argsort(-np.abs(step), axis=-1, kind="stable")
        rank = np.argsort(order, axis=-1, kind="stable")
        return np.where(rank < keep, x, ball.center)
    size = np.linalg.norm(step, ord=ball.p, axis=-1)
    target = ball.radius * (1 - slack)
    # Replay decides in exact arithmetic, so a norm within its own rounding error of the radius counts as outside.
    outside = size > ball.radius * (1 - 2.0**-46)
    if not np.any(outside):
        return x
    factor = np.where(outside, target / np.where(size > 0, size, 1.0), 1.0)
    return ball.center + (x - ball.center) * np.expand_dims(factor, -1)
