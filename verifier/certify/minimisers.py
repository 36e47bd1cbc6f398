"""Where a linear form is smallest on a box cut by an lp ball: proposals for counterexamples, no part of any proof."""

from __future__ import annotations

import math

import numpy as np

from verifier.spec.problem import InputSet


def minimisers(coeffs: np.ndarray, inputs: InputSet) -> np.ndarray:
    """A minimiser of each row of coeffs [S, N_in] over the input set (its rows aside), float64 [S, N_in].

    With w = |a| scale and h the way to the face of the box that a descends to, both in units of the
    scale, the steps are: h for a box alone; min(h, t w) of the right length for l2; the largest w
    first, each as far as h allows, for l1; the features that gain most for l0.
    """
    corners = np.where(coeffs >= 0, inputs.lower, inputs.upper)
    ball = inputs.ball
    if ball is None or math.isinf(ball.p):
        return corners
    scale = np.ones_like(ball.center) if ball.scale is None else ball.scale
    h = np.maximum(np.where(coeffs >= 0, ball.center - inputs.lower, inputs.upper - ball.center), 0.0) / scale
    w = np.abs(coeffs) * scale
    if ball.p == 2:
        steps = _scaled_to(ball.radius, w, h)
    else:
        order = np.argsort(-(w if ball.p == 1 else w * h), axis=-1, kind="stable")
        if ball.p == 1:
            ordered = np.take_along_axis(h, order, -1)
            spent = ordered.cumsum(-1) - ordered
            taken = np.clip(ball.radius - spent, 0.0, ordered)
        else:
            taken = np.take_along_axis(h, order, -1) * (np.arange(h.shape[-1]) < int(ball.radius))
        steps = np.empty_like(h)
        np.put_along_axis(steps, order, taken, -1)
    return ball.center - np.sign(coeffs) * steps * scale


def _scaled_to(radius: float, w: np.ndarray, h: np.ndarray) -> np.ndarray:
    """min(h, t w) of length `radius`, or h where that is shorter; t by bisection on its logarithm."""
    low, high = np.full((*w.shape[:-1], 1), -100.0), np.full((*w.shape[:-1], 1), 100.0)
    for _ in range(60):
        middle = 0.5 * (low + high)
        short = np.linalg.norm(np.minimum(h, np.exp2(middle) * w), axis=-1, keepdims=True) < radius
        low, high = np.where(short, middle, low), np.where(short, high, middle)
    return np.minimum(h, np.exp2(low) * w)
