"""Which slopes a line below (above) a piecewise curved function may usefully have.

The lower convex hull of f over [l, u] leaves l with the smallest secant slope from l and
reaches u with the largest secant slope to u. Every slope between the two belongs to a line that
touches the hull; every other line is dominated. Upper lines are minus the lower lines of -f, so
everything here works on sign*f with sign = 1 or -1.

Nothing here needs to be exact: ops/curve.py computes a sound offset for whatever slope comes out.
Source: tangents and chords as in Zhang et al. 2018, arXiv:1811.00866 and Shi et al. 2024,
arXiv:2405.21063.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

#: halvings when looking for the tangent through an end; 10 leave the slope within about 0.2 % of the chord
_HALVINGS = 10
#: multiple of the chord's slope that replaces a vertical tangent
_VERTICAL = 64.0


@dataclass(frozen=True)
class Straight:
    """A piece on which f is slope*x + offset; `exact` when both numbers are stored without error."""

    slope: float
    offset: float | Tensor
    exact: bool = True


Piece = int | Straight  # +1 convex, -1 concave


@dataclass(frozen=True)
class Shape:
    """Where f changes curvature: pieces[k] lies between breaks[k-1] and breaks[k].

    A break is stored rounded, so a sliver shorter than an ulp may have the wrong curvature; that
    changes f by less than ulp^3, far below the slack every offset carries. At a break next to a
    straight piece f may have a kink. Tightness and speed only:

    reach: no tangent through an end touches f further than this from 0.
    odd: f(x) - f(0) is odd, so that a tangent through (a, f(a)) touches no further from 0 than |a|.
    vertical: f' may be infinite at an end.
    """

    breaks: tuple[float | Tensor, ...]
    pieces: tuple[Piece, ...]
    reach: float = float("inf")
    odd: bool = False
    vertical: bool = False


@dataclass(frozen=True)
class Point:
    """Abscissae with f and f' there, approximately."""

    x: Tensor
    value: Tensor
    slope: Tensor

    def signed(self, sign: int) -> Point:
        """The same point of sign*f."""
        return self if sign > 0 else Point(self.x, -self.value, -self.slope)


class Frame:
    """One call of `lines`: finite ends (l < u, inside the domain), breaks moved into [l, u]."""

    def __init__(self, lower: Tensor, upper: Tensor, shape: Shape, curve: Callable[[Tensor], tuple[Tensor, Tensor]]):
        self.curve, self.shape = curve, shape
        self.lower, self.upper = self.at(lower), self.at(upper)
        self.breaks = tuple(self.at(self._inside(point)) for point in shape.breaks)

    @cached_property
    def middle(self) -> Point:
        """The middle of the interval; only default slopes need it."""
        return self.at(0.5 * self.lower.x + 0.5 * self.upper.x)

    def at(self, x: Tensor) -> Point:
        """f and f' at x."""
        return Point(x, *self.curve(x))

    def _inside(self, point: float | Tensor) -> Tensor:
        lower, upper = self.lower.x, self.upper.x
        return torch.minimum(
            torch.maximum(torch.as_tensor(point, dtype=lower.dtype, device=lower.device), lower), upper
        )

    def section(self, k: int) -> tuple[Tensor, Tensor]:
        """Piece k's part of [lower, upper]; both ends equal where it has none."""
        p = self.breaks[k - 1].x if k > 0 else self.lower.x
        q = self.breaks[k].x if k < len(self.breaks) else self.upper.x
        return p, q

    def bends(self, k: int, sign: int) -> bool:
        """Whether sign*f is strictly convex on piece k."""
        piece = self.shape.pieces[k]
        return not isinstance(piece, Straight) and piece * sign > 0


def slope_range(frame: Frame, sign: int) -> tuple[Tensor, Tensor]:
    """(first, last) slope of the lower hull of sign*f, from the lower to the upper end."""
    best = _hull_ends(frame, sign)
    return best[0].slope, best[1].slope


def middle_slope(frame: Frame, sign: int) -> tuple[Tensor, Tensor, Tensor]:
    """`slope_range`, and the slope of the line that is highest in the middle of the interval."""
    first, last = _hull_ends(frame, sign)
    x = frame.middle.x
    tangent = torch.minimum(torch.maximum(sign * frame.middle.slope, first.slope), last.slope)
    middle = torch.where(x <= first.x, first.slope, torch.where(x >= last.x, last.slope, tangent))
    return first.slope, last.slope, middle


@dataclass(frozen=True)
class _Touch:
    """A slope of the hull and where a line of that slope through an end touches f again."""

    slope: Tensor
    x: Tensor

    def least(self, slope: Tensor, x: Tensor) -> _Touch:
        """The flatter of the two."""
        return _Touch(torch.minimum(self.slope, slope), torch.where(slope < self.slope, x, self.x))

    def most(self, slope: Tensor, x: Tensor) -> _Touch:
        """The steeper of the two."""
        return _Touch(torch.maximum(self.slope, slope), torch.where(slope > self.slope, x, self.x))


def _hull_ends(frame: Frame, sign: int) -> tuple[_Touch, _Touch]:
    lower, upper = frame.lower.signed(sign), frame.upper.signed(sign)
    chord = _secant(lower, upper)
    first, last = _Touch(chord, upper.x), _Touch(chord, lower.x)
    for k in range(len(frame.shape.pieces)):
        if frame.bends(k, sign):
            first = first.least(*_from_end(frame, sign, k, lower, k == 0))
            last = last.most(*_from_end(frame, sign, k, upper, k == len(frame.breaks)))
    for k, point in enumerate(frame.breaks):
        if not (frame.bends(k, sign) or frame.bends(k + 1, sign)):  # else a tangent ends at this break
            kink = point.signed(sign)
            inside = (lower.x < kink.x) & (kink.x < upper.x)
            first = first.least(torch.where(inside, _secant(lower, kink), torch.inf), kink.x)
            last = last.most(torch.where(inside, _secant(kink, upper), -torch.inf), kink.x)
    least, most = _steepness(frame, sign)
    low, high = torch.maximum(first.slope, least), torch.minimum(last.slope, most)
    if frame.shape.vertical:
        cap = _VERTICAL * chord.abs()
        low, high = torch.where(torch.isinf(low), -cap, low), torch.where(torch.isinf(high), cap, high)
    limit = torch.finfo(chord.dtype).max ** 0.5
    low, high = (torch.nan_to_num(s, nan=0.0).clamp(-limit, limit) for s in (low, high))
    return _Touch(torch.minimum(low, high), first.x), _Touch(torch.maximum(low, high), last.x)


def _from_end(frame: Frame, sign: int, k: int, end: Point, has_end: bool) -> tuple[Tensor, Tensor]:
    """Extreme secant slope between an end and convex piece k, and where it touches.

    has_end: the end lies in piece k whenever that is not empty, so that the tangent is at the end.
    """
    p, q = frame.section(k)
    there = p < q
    none = torch.inf if end.x is frame.lower.x else -torch.inf
    slope = torch.where(there, end.slope, none)
    apart = there & ((p > end.x) | (q < end.x))
    if has_end or not bool(apart.any()):
        return slope, end.x
    # only some intervals reach over a break: the search runs on those
    apart = apart.expand_as(slope)
    picked = Point(*(v.expand_as(slope)[apart] for v in (end.x, end.value, end.slope)))
    near, far = (p, q) if end.x is frame.lower.x else (q, p)
    at = _tangent(frame, sign, picked, near.expand_as(slope)[apart], far.expand_as(slope)[apart])
    secant = _secant(picked, at) if end.x is frame.lower.x else _secant(at, picked)
    return slope.masked_scatter(apart, secant), end.x.expand_as(slope).masked_scatter(apart, at.x)


@torch.no_grad()
def _tangent(frame: Frame, sign: int, end: Point, near: Tensor, far: Tensor) -> Point:
    """Where a tangent through `end` touches the convex sign*f between far and near, by bisection.

    Tangents at points far from the end pass below it; the answer is the nearest that still does,
    or the far end of the piece when even that passes above.
    """
    reach = end.x.abs() if frame.shape.odd else torch.full_like(end.x, frame.shape.reach)
    reach = reach.clamp(max=frame.shape.reach)
    x = torch.maximum(torch.minimum(far, torch.maximum(reach, near)), torch.minimum(-reach, near))
    step = near - x
    for _ in range(_HALVINGS):
        step = 0.5 * step
        at = frame.at(x + step).signed(sign)
        below = at.value + at.slope * (end.x - at.x) <= end.value
        x = x + step * below.to(x.dtype)
    return frame.at(x).signed(sign)


def _secant(left: Point, right: Point) -> Tensor:
    """Slope from left to right (left.x <= right.x), harmless where they meet."""
    width = right.x - left.x
    return (right.value - left.value) / torch.where(width > 0, width, 1.0)


def _steepness(frame: Frame, sign: int) -> tuple[Tensor, Tensor]:
    """Smallest and largest slope of sign*f on the interval: keeps rounded secants in bounds."""
    slopes = [sign * point.slope for point in (frame.lower, frame.upper, *frame.breaks)]
    slopes += [slopes[0].new_tensor(sign * p.slope) for p in frame.shape.pieces if isinstance(p, Straight)]
    least = most = slopes[0]
    for slope in slopes[1:]:
        least, most = torch.minimum(least, slope), torch.maximum(most, slope)
    return least, most
