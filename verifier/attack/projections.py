"""Exact projections onto balls and hyperplanes inside a box, batched over rows.

Every function works on perturbations [R, *S] whose box contains zero (lower <= 0 <= upper). With
a_i = |u_i| and c_i the distance from 0 to the box face on u_i's side, all of them reduce to the
root of one monotone piecewise-linear function, found by sorting its breakpoints or, where it is
concave, by finitely many Newton steps; no tolerance. Sums run in float64, because float32 prefix
sums lose the last breakpoints.
"""

from __future__ import annotations

import torch
from torch import Tensor

from verifier.errors import SpecError

NORMS = (0.0, 1.0, 2.0, float("inf"))
#: Newton steps at most (each caps at least one more entry; about six are taken), and a t that reaches every cap.
MOST_NEWTON, ENDLESS = 100, 1e300


def norm(delta: Tensor, p: float) -> Tensor:
    """lp size of each row of delta [R, *S] -> [R]; p = 0 counts nonzero entries."""
    flat = delta.flatten(1)
    if p == 0:
        return (flat != 0).sum(1).to(flat.dtype)
    if p == 1:
        return flat.abs().sum(1)
    if p == 2:
        return flat.square().sum(1).sqrt()
    if p == float("inf"):
        return flat.abs().amax(1)
    raise SpecError(f"norm: expected p in 0, 1, 2, inf, got {p}")


def dual(p: float) -> float:
    """q with 1/p + 1/q = 1: the norm that measures gradients when p measures perturbations."""
    return {1.0: float("inf"), 2.0: 2.0, float("inf"): 1.0, 0.0: float("inf")}[float(p)]


def along(value: Tensor, like: Tensor) -> Tensor:
    """value [R] reshaped to broadcast over the trailing axes of like [R, *S]."""
    return value.reshape(-1, *([1] * (like.ndim - 1)))


def onto_ball(delta: Tensor, p: float, radius: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Closest point (Euclidean) to delta in {‖d‖_p <= radius, lower <= d <= upper}.

    Args:
        delta, lower, upper: [R, *S] with lower <= 0 <= upper.
        radius: [R], >= 0; inf leaves the box alone.
    Returns:
        [R, *S]; exact up to the rounding of the result for p = 1, 2, inf, and the best support
        for p = 0.
    Source: p = 1: Croce & Hein 2021, arXiv:2103.01208, by sorting.
    """
    if p == float("inf"):
        r = along(radius, delta)
        return torch.minimum(torch.maximum(delta, torch.maximum(lower, -r)), torch.minimum(upper, r))
    clipped = torch.minimum(torch.maximum(delta, lower), upper)
    outside = norm(clipped, p) > radius
    if not bool(outside.any()):
        return clipped
    solve = {0.0: _onto_l0, 1.0: _onto_l1, 2.0: _onto_l2}[float(p)]
    if bool(outside.all()):
        return solve(delta, clipped, radius, lower, upper)
    rows = outside.nonzero()[:, 0]
    clipped[rows] = solve(delta[rows], clipped[rows], radius[rows], lower[rows], upper[rows])
    return clipped


def onto_hyperplane(w: Tensor, gap: Tensor, p: float, lower: Tensor, upper: Tensor) -> Tensor:
    """Smallest lp perturbation d inside the box with <w, d> = gap, or the nearest approach to it.

    Args:
        w: normals [R, *S]; gap: signed distance still to go [R].
        lower, upper: [R, *S] with lower <= 0 <= upper.
    Returns:
        d [R, *S]. Where the box does not reach the hyperplane, d is the box corner closest to it.
    Source: Croce & Hein 2020, arXiv:1907.02044, section 2.2 (here for p = 0, 1, 2, inf).
    """
    flip = along(torch.where(gap < 0, -1.0, 1.0).to(w), w)
    direction = (w * flip).flatten(1)
    caps = torch.where(direction > 0, upper.flatten(1), -lower.flatten(1))
    weight = direction.abs().double()
    caps = torch.where(weight > 0, caps, torch.zeros_like(caps)).double()
    size = {
        0.0: _fill_fewest,
        1.0: _fill_heaviest,
        2.0: _grow_proportional,
        float("inf"): _grow_uniform,
    }[float(p)](weight, caps, gap.abs().double())
    return (size.to(w.dtype) * direction.sign()).reshape(w.shape)


def _reach(u: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    return torch.where(u > 0, upper, -lower).flatten(1).double()


def _onto_l1(u: Tensor, clipped: Tensor, radius: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Root of sum_i [(a_i - t)+ - (a_i - c_i - t)+] = radius: breakpoints a_i and a_i - c_i."""
    a = u.flatten(1).abs().double()
    c = _reach(u, lower, upper)
    points, order = torch.cat([a, a - c], dim=1).sort(dim=1, descending=True)
    signs = torch.cat([torch.ones_like(a), -torch.ones_like(c)], dim=1).gather(1, order)
    # c may be infinite: its breakpoint lies at -inf, is never reached, and must not enter a product
    signs = torch.where(points.isfinite(), signs, torch.zeros_like(signs))
    points = torch.where(points.isfinite(), points, torch.full_like(points, -1e300))
    slope = signs.cumsum(1)
    mass = (signs * points).cumsum(1)
    value = mass - points * slope
    r = radius.double()[:, None]
    last = ((value <= r) & (points >= 0)).sum(1, keepdim=True).clamp_min(1) - 1
    at = slope.gather(1, last)
    t = torch.where(at > 0, (mass.gather(1, last) - r) / at.clamp_min(1), points.gather(1, last)).clamp_min(0)
    size = torch.minimum((a - t).clamp_min(0), c)
    return (size.to(u.dtype) * u.flatten(1).sign()).reshape(u.shape)


def _onto_l2(u: Tensor, clipped: Tensor, radius: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Root of sum_i min(s a_i, c_i)^2 = radius^2 in s: breakpoints c_i / a_i."""
    a = u.flatten(1).abs().double()
    c = _reach(u, lower, upper)
    return _scaled_to(a, c, radius.double()).to(u.dtype).mul(u.flatten(1).sign()).reshape(u.shape)


def _scaled_to(a: Tensor, c: Tensor, radius: Tensor) -> Tensor:
    ratio = torch.where(a > 0, c / a.clamp_min(1e-300), torch.full_like(a, float("inf")))
    points, order = ratio.sort(dim=1)
    squares = a.gather(1, order).square()
    finite_c = torch.where(points.isfinite(), c.gather(1, order), torch.zeros_like(c))
    capped = finite_c.square().cumsum(1)
    free = squares.flip(1).cumsum(1).flip(1) - squares
    # value at breakpoint k: everything up to k sits at its cap, the rest is scaled by points[k]
    value = capped + points.square() * free
    value = torch.where(points.isfinite(), value, torch.full_like(value, float("inf")))
    r2 = radius.square()[:, None]
    below = (value <= r2).sum(1, keepdim=True)
    done = torch.where(below > 0, capped.gather(1, (below - 1).clamp_min(0)), torch.zeros_like(r2))
    rest = squares.flip(1).cumsum(1).flip(1).gather(1, below.clamp_max(a.shape[1] - 1))
    scale = ((r2 - done).clamp_min(0) / rest.clamp_min(1e-300)).sqrt()
    scale = torch.where(below < a.shape[1], scale, torch.ones_like(scale))
    return torch.minimum(a * scale, c)


def _onto_l0(u: Tensor, clipped: Tensor, radius: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Keep the entries whose removal costs most: u^2 - (u - clip(u))^2."""
    gain = (u.square() - (u - clipped).square()).flatten(1)
    return keep_largest(clipped, gain, radius)


def keep_largest(delta: Tensor, gain: Tensor, count: Tensor) -> Tensor:
    """delta [R, *S] with all but the floor(count) [R] entries of largest gain [R, N] set to zero."""
    k = count.floor().clamp(0, gain.shape[1]).long()
    most = int(k.max()) if k.numel() else 0
    if most == 0:
        return torch.zeros_like(delta)
    top = gain.topk(most, dim=1).indices
    chosen = torch.arange(most, device=delta.device)[None] < k[:, None]
    keep = torch.zeros_like(gain, dtype=torch.bool).scatter_(1, top, chosen)
    return torch.where(keep.reshape(delta.shape), delta, torch.zeros_like(delta))


def _grow_uniform(weight: Tensor, caps: Tensor, gap: Tensor) -> Tensor:
    """linf: smallest t with sum_i w_i min(t, c_i) = gap."""
    return _grow(weight, torch.ones_like(gap)[:, None], caps, gap)


def _grow_proportional(weight: Tensor, caps: Tensor, gap: Tensor) -> Tensor:
    """l2: smallest t with sum_i w_i min(t w_i, c_i) = gap."""
    return _grow(weight, weight, caps, gap)


def _grow(weight: Tensor, rate: Tensor, caps: Tensor, gap: Tensor) -> Tensor:
    """min(t r_i, c_i) [R, N] for the smallest t with sum_i w_i min(t r_i, c_i) = gap; the caps where none is enough.

    The sum is concave and piecewise linear in t, so Newton's steps from 0 never pass the root and end on it as soon
    as the set of capped entries stays as it was: a few passes over the entries, where sorting costs dozens.
    """
    t, growing = torch.zeros_like(gap), None
    supply = weight * rate
    for _ in range(MOST_NEWTON):
        size = torch.minimum(t[:, None] * rate, caps)
        slope = torch.where(size < caps, supply, 0.0).sum(1)
        if growing is not None and bool((slope == growing).all()):
            break
        growing, short = slope, (gap - (weight * size).sum(1)).clamp_min(0)
        t = torch.where(slope > 0, t + short / slope, ENDLESS)
    return torch.minimum(t[:, None] * rate, caps)


def _fill_heaviest(weight: Tensor, caps: Tensor, gap: Tensor) -> Tensor:
    """l1: fill coordinates by falling weight until the gap is covered."""
    return _fill(weight, caps, gap, weight)


def _fill_fewest(weight: Tensor, caps: Tensor, gap: Tensor) -> Tensor:
    """l0: fill coordinates by falling weight * cap."""
    bounded = torch.where(caps.isfinite(), caps, torch.full_like(caps, 1e150))
    return _fill(weight, caps, gap, weight * bounded)


def _fill(weight: Tensor, caps: Tensor, gap: Tensor, priority: Tensor) -> Tensor:
    order = priority.argsort(dim=1, descending=True, stable=True)
    w, c = weight.gather(1, order), caps.gather(1, order)
    gains = w * torch.where(c.isfinite(), c, torch.full_like(c, 1e150))
    before = gains.cumsum(1) - gains
    need = (gap[:, None] - before).clamp_min(0)
    size = torch.where(w > 0, torch.minimum(need / w.clamp_min(1e-300), c), torch.zeros_like(c))
    return torch.zeros_like(size).scatter_(1, order, size)
