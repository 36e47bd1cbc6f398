"""From a linear form in the inputs to its smallest value over an input set.

Everything is float64, and any multiplier used is sound, so only summation error remains: it is
below n 2^-53 times the sum of magnitudes, charged with a factor of two.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from verifier.bounds.backward import LinearForm
from verifier.spec.problem import InputSet


@dataclass(frozen=True)
class InputShape:
    """What an input set adds to its box, as float64 tensors: linear rows and an lp ball.

    row_coeffs [R, N_in] @ x <= row_limits [R]; ||(x - center) / scale||_p <= radius, p in {1, 2}.
    """

    row_coeffs: Tensor | None = None
    row_limits: Tensor | None = None
    center: Tensor | None = None
    scale: Tensor | None = None
    radius: float = 0.0
    p: float = 2.0

    @classmethod
    def of(cls, inputs: InputSet, device: torch.device) -> InputShape | None:
        """The extra constraints of an input set, or None when it is a plain box."""
        if inputs.is_box:
            return None

        def tensor(x: np.ndarray | None) -> Tensor | None:
            return None if x is None else torch.as_tensor(x, dtype=torch.float64, device=device)

        ball = inputs.ball
        if ball is None or np.isinf(ball.p):
            return cls(tensor(inputs.row_coeffs), tensor(inputs.row_limits))
        center = torch.as_tensor(ball.center, dtype=torch.float64, device=device)
        scale = torch.ones_like(center) if ball.scale is None else tensor(ball.scale)
        return cls(tensor(inputs.row_coeffs), tensor(inputs.row_limits), center, scale, ball.radius, ball.p)


def concretize(
    form: LinearForm, lower: Tensor, upper: Tensor, shape: InputShape | None = None
) -> tuple[Tensor, Tensor]:
    """Smallest value of the form on boxes [B, N_in] cut by `shape`, and the box minimiser.

    Returns:
        lower bounds float64 [B, S], rigorous if `form.error` is, -inf instead of NaN;
        minimisers over the box [B, S, N_in] in the form's dtype.
    """
    low, high = lower.double().unsqueeze(1), upper.double().unsqueeze(1)
    a = form.coeffs.double()
    value, size = _box_minimum(a, low, high)
    if shape is not None and shape.row_coeffs is not None:
        a, value, size = _with_rows(a, value, size, low, high, shape)
    if shape is not None and shape.center is not None:
        value = torch.maximum(value, _ball_minimum(form.coeffs.double(), shape, low, high))
    n = a.shape[-1]
    bound = value + form.offset - form.error
    bound = bound - (n + 8) * 2.0**-52 * (size + form.offset.abs() + form.error)
    minimiser = torch.where(form.coeffs >= 0, lower.unsqueeze(1), upper.unsqueeze(1))
    return torch.nan_to_num(bound, nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf), minimiser


class _BoxStep(torch.autograd.Function):
    """min a @ x over boxes: a [B, S, N_in], ends [B or 1, N_in] -> float64 [B, S] and the minimiser, its gradient."""

    @staticmethod
    def forward(ctx, a, low, high):  # type: ignore[no-untyped-def]
        minimiser = torch.where(a >= 0, low.unsqueeze(1), high.unsqueeze(1))
        ctx.save_for_backward(minimiser)
        ctx.mark_non_differentiable(minimiser)
        return (a * minimiser).sum(-1, dtype=torch.float64), minimiser

    @staticmethod
    def backward(ctx, grad, _):  # type: ignore[no-untyped-def]
        (minimiser,) = ctx.saved_tensors
        return grad.to(minimiser.dtype).unsqueeze(-1) * minimiser, None, None


def climb(form: LinearForm, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """`concretize` on boxes for an ascent: cheaper, without any rounding terms, so no claim."""
    value, minimiser = _BoxStep.apply(form.coeffs, lower, upper)
    return torch.nan_to_num(value + form.offset, nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf), minimiser


def _box_minimum(a: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """min a @ x over the box, and the sum of magnitudes that its rounding scales with."""
    value = (a.clamp(min=0) * low).sum(-1) + (a.clamp(max=0) * high).sum(-1)
    return value, (a.abs() * torch.maximum(low.abs(), high.abs())).sum(-1)


def _ball_minimum(a: Tensor, shape: InputShape, low: Tensor, high: Tensor) -> Tensor:
    """min a @ x over the box and the lp ball together, a lower bound that is exact up to rounding.

    With w = |a| scale and h_i the way from the center to the face of the box that x_i descends to, in
    units of scale, every m with 0 <= m <= w gives the bound (m is left to the ball, the rest to the box)

        a @ center - radius * ||m||_q - sum (w - m) h,   1/p + 1/q = 1;

    the best m is min(w, h / t) for p = 2 and min(w, t) for p = 1. p = 0: each of the `radius` features
    that gain most goes to its face of the box.
    """
    assert shape.center is not None and shape.scale is not None
    w = (a * shape.scale).abs()
    h = torch.where(a >= 0, shape.center - low, high - shape.center).clamp(min=0) / shape.scale
    if shape.p == 0:
        budget = max(0, min(int(shape.radius), a.shape[-1]))
        reach = (w * h).topk(budget, dim=-1).values.sum(-1)
    else:
        m = torch.minimum(w, _l2_share(w, h, shape.radius) if shape.p == 2 else _l1_share(w, h, shape.radius))
        dual = torch.linalg.vector_norm(m, dim=-1) if shape.p == 2 else m.amax(-1)
        reach = shape.radius * dual + ((w - m) * h).sum(-1)
    # The last term: w itself is rounded, and where m = w the difference hides it.
    size = (a * shape.center).abs().sum(-1) + reach + (w * h).sum(-1)
    margin = (a.shape[-1] + 16) * 2.0**-51 * size
    return (a * shape.center).sum(-1) - reach - margin


@torch.no_grad()
def _l2_share(w: Tensor, h: Tensor, radius: float) -> Tensor:
    """h / t with t such that the steps min(h, t w) have length `radius`: Newton from below, any t is sound."""
    t = radius / torch.linalg.vector_norm(w, dim=-1, keepdim=True)
    for _ in range(8):
        cut = t * w > h
        if not bool(cut.any()):
            break
        left = (radius**2 - torch.where(cut, h * h, 0.0).sum(-1, keepdim=True)).clamp(min=0)
        t = torch.fmax(t, (left / torch.where(cut, 0.0, w * w).sum(-1, keepdim=True)).sqrt())
    return torch.nan_to_num(h / t, nan=0.0)


@torch.no_grad()
def _l1_share(w: Tensor, h: Tensor, radius: float) -> Tensor:
    """The level above which the ways h add up to `radius`, [..., 1]; 0 where all of them together do not."""
    ordered, order = w.sort(dim=-1, descending=True)
    enough = h.gather(-1, order).cumsum(-1) >= radius
    level = ordered.gather(-1, enough.double().argmax(-1, keepdim=True))
    return torch.where(enough.any(-1, keepdim=True), level, 0.0)


def _with_rows(
    a: Tensor, value: Tensor, size: Tensor, low: Tensor, high: Tensor, shape: InputShape
) -> tuple[Tensor, Tensor, Tensor]:
    """Lagrangian bound with the input rows: coordinate ascent on the multipliers, each step exact.

    For one row g, t: phi(mu) = min_box (a + mu g) @ x - mu t is concave and piecewise linear with
    breakpoints -a_i / g_i; the best is where its slope changes sign. Source: METHODS section 1 (Clip).
    """
    assert shape.row_coeffs is not None and shape.row_limits is not None
    shift = torch.zeros_like(value)
    best = (value, a, shift)
    for _ in range(2):
        for g, t in zip(shape.row_coeffs, shape.row_limits, strict=True):
            mu = _best_multiplier(a, g, t, low, high).unsqueeze(-1)
            a = a + mu * g
            shift = shift + mu.squeeze(-1) * t
        minimum, magnitude = _box_minimum(a, low, high)
        value_now = minimum - shift - (a.shape[-1] + 8) * 2.0**-52 * (magnitude + shift.abs())
        better = value_now > best[0]
        best = (torch.where(better, value_now, best[0]), torch.where(better.unsqueeze(-1), a, best[1]), shift)
        size = torch.maximum(size, magnitude + shift.abs())
    return best[1], best[0], size


def _best_multiplier(a: Tensor, g: Tensor, t: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """argmax over mu >= 0 of min_box (a + mu g) @ x - mu t, [B, S]."""
    moving = g != 0
    if not bool(moving.any()):
        return torch.zeros(a.shape[:-1], dtype=a.dtype, device=a.device)
    a, g = a[..., moving], g[moving]
    low, high = low[..., moving], high[..., moving]
    breakpoints = (-a / g).clamp(min=0)
    order = breakpoints.argsort(-1)
    ordered = breakpoints.gather(-1, order)
    # Slope of phi just after mu = 0: sum g_i x_i(mu) - t with x_i at the minimising end.
    at_zero = torch.where((a > 0) | ((a == 0) & (g > 0)), low, high)
    slope = (g * at_zero).sum(-1) - t
    # Passing a positive breakpoint flips x_i from one end to the other: the slope falls by |g_i| (u_i - l_i).
    drop = torch.where(breakpoints > 0, g.abs() * (high - low), 0.0).gather(-1, order)
    after = slope.unsqueeze(-1) - drop.cumsum(-1)
    crossed = (after <= 0).double()
    first = crossed.argmax(-1, keepdim=True)
    mu = ordered.gather(-1, first).squeeze(-1)
    none = crossed.sum(-1) == 0  # slope stays positive: the rows are infeasible on the box; any mu is sound
    mu = torch.where(none, ordered[..., -1] * 2 + 1, mu)
    return torch.where(slope > 0, mu, torch.zeros_like(mu))
