"""Input sets beyond boxes as linear rows: half-spaces, l1 balls and l0 budgets; l2 balls as cuts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import sparse

from verifier.spec.problem import Ball, InputSet
from verifier.tighten.model import RowBuffer
from verifier.tighten.rounding import dot_error

NewColumns = Callable[[np.ndarray, np.ndarray], np.ndarray]


def add_input_rows(inputs: InputSet, columns: np.ndarray, rows: RowBuffer, new_columns: NewColumns) -> None:
    """Append the rows of everything linear in an input set; an l2 ball adds none, see `l2_cut`.

    l1: |x_i - c_i| <= s_i t_i, sum t <= radius, exact. l0: -(c_i - l_i) t_i <= x_i - c_i <= (u_i - c_i) t_i,
    t in [0, 1], sum t <= budget, the linear relaxation of the choice of features.
    """
    if inputs.row_coeffs is not None and inputs.row_limits is not None:
        coeffs = sparse.csr_matrix(np.asarray(inputs.row_coeffs, dtype=np.float64))
        block = sparse.csr_matrix((coeffs.data, columns[coeffs.indices], coeffs.indptr), shape=_wide(coeffs, columns))
        limits = np.asarray(inputs.row_limits, dtype=np.float64)
        rows.append(block, np.full(limits.size, -np.inf), limits)
    ball = inputs.ball
    if ball is None or ball.p not in (0, 1):
        return
    down, up, most = _reach(inputs, ball)
    size = columns.size
    share = new_columns(np.zeros(size), np.full(size, most))
    one, infinite = np.ones(size), np.full(size, np.inf)
    center = np.asarray(ball.center, dtype=np.float64)
    rows.append_terms([(columns, one), (share, -up)], -infinite, center)
    rows.append_terms([(columns, -one), (share, -down)], -infinite, -center)
    total = sparse.csr_matrix((one, share, [0, size]), shape=(1, int(share[-1]) + 1))
    limit = float(np.floor(ball.radius)) if ball.p == 0 else ball.radius
    rows.append(total, np.array([-np.inf]), np.array([limit]))


def l2_cut(ball: Ball, columns: np.ndarray, point: np.ndarray, width: int) -> tuple[sparse.csr_matrix, float] | None:
    """A half-space (row [1, width], upper limit) that holds the l2 ball and cuts off `point`.

    For any g: g.(x - c) <= radius * ||g * s||_2; here g points from the center to `point`.
    None when the point lies in the ball, up to a relative 1e-6.
    """
    center = np.asarray(ball.center, dtype=np.float64)
    scale = np.ones_like(center) if ball.scale is None else np.asarray(ball.scale, dtype=np.float64)
    offset = (point - center) / scale
    distance = float(np.linalg.norm(offset))
    if not distance > ball.radius * (1.0 + 1e-6) or not np.isfinite(distance):
        return None
    normal = offset / distance / scale
    reach = float(np.linalg.norm(normal * scale)) * ball.radius
    size = reach + float(np.abs(normal) @ np.abs(center))
    limit = reach + float(normal @ center) + 4.0 * float(dot_error(size, center.size + 8))
    row = sparse.csr_matrix((normal, columns, [0, columns.size]), shape=(1, width))
    return row, limit


def _reach(inputs: InputSet, ball: Ball) -> tuple[np.ndarray, np.ndarray, float]:
    """How far one unit of share moves each feature down and up, and the largest share of one feature."""
    center = np.asarray(ball.center, dtype=np.float64)
    if ball.p == 0:
        down, up = (np.nextafter(d, np.inf) for d in (center - inputs.lower, inputs.upper - center))
        return np.maximum(down, 0.0), np.maximum(up, 0.0), 1.0
    scale = np.ones_like(center) if ball.scale is None else np.asarray(ball.scale, dtype=np.float64)
    return scale, scale, float(ball.radius)


def _wide(coeffs: sparse.csr_matrix, columns: np.ndarray) -> tuple[int, int]:
    return coeffs.shape[0], int(columns.max(initial=0)) + 1
