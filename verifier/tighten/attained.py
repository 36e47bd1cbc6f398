"""Values that rows over the outputs do attain on an input set: the other side of every lower bound."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from verifier.bounds.engine import BoxEngine
from verifier.spec.problem import InputSet
from verifier.spec.representable import towards_ball

_STARTS, _STEPS = 16, 60
#: Points evaluated at once, so that many rows of a large network fit in memory.
_BATCH = 1024


@dataclass(frozen=True)
class Attained:
    """Smallest values found, float64 [S], and where, [S, N_in]; inf and NaN where no point was found."""

    values: np.ndarray
    points: np.ndarray


def attained(
    engine: BoxEngine,
    inputs: InputSet,
    rows: np.ndarray,
    *,
    seed: int = 0,
    time_limit_s: float | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Attained:
    """Small values of rows [S, N_out] @ outputs over an input set, by sampling and projected gradient descent.

    Every value is the network's own at a point of the set, so it is never below a true lower bound.
    A set with linear rows keeps only the points that satisfy them.

    Source: Madry et al. 2018, arXiv:1706.06083 (sign steps, decaying).
    """
    rng = np.random.default_rng(seed)
    stop = np.inf if time_limit_s is None else time.monotonic() + time_limit_s
    best = Attained(np.full(len(rows), np.inf), np.full((len(rows), inputs.size), np.nan))
    half = 0.5 * (inputs.upper - inputs.lower)
    for begin in range(0, len(rows), max(1, _BATCH // _STARTS)):
        index = np.repeat(np.arange(begin, min(begin + max(1, _BATCH // _STARTS), len(rows))), _STARTS)
        share = rng.random((len(index), inputs.size))
        share[::_STARTS] = 0.5
        points = projected(inputs, inputs.lower + share * (inputs.upper - inputs.lower))
        momentum = np.zeros_like(points)
        for step in range(_STEPS + 1):
            _keep_best(engine, inputs, rows, index, points, best)
            if step == _STEPS or time.monotonic() > stop or cancelled():
                break
            gradient = engine.gradient(points, rows[index])
            size = np.abs(gradient).max(axis=1, keepdims=True)
            flat = size[:, 0] == 0
            gradient[flat] = rng.standard_normal((int(flat.sum()), inputs.size))
            momentum = 0.75 * momentum + gradient / np.where(size > 0, size, 1.0)
            length = (1 - step / _STEPS) ** 1.5 + 0.002
            points = projected(inputs, points - length * half * np.sign(momentum))
    return best


def projected(inputs: InputSet, points: np.ndarray) -> np.ndarray:
    """Points [P, N_in] moved into the box and the ball; linear rows are not looked at."""
    points = np.clip(points, inputs.lower, inputs.upper)
    if inputs.ball is None or np.isinf(inputs.ball.p):
        return points
    # A hair inside, so that rounding does not leave the ball.
    return np.clip(towards_ball(inputs.ball, points, 2.0**-40), inputs.lower, inputs.upper)


def _keep_best(
    engine: BoxEngine, inputs: InputSet, rows: np.ndarray, index: np.ndarray, points: np.ndarray, best: Attained
) -> None:
    values = np.einsum("ij,ij->i", engine.evaluate(points), rows[index])
    if inputs.row_coeffs is not None and inputs.row_limits is not None:
        values = np.where(np.all(points @ inputs.row_coeffs.T <= inputs.row_limits, axis=1), values, np.inf)
    values = np.where(np.isnan(values), np.inf, values)
    for i in np.argsort(values):
        if not values[i] < np.inf:
            break
        if values[i] < best.values[index[i]]:
            best.values[index[i]], best.points[index[i]] = values[i], points[i]
