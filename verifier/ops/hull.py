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

import torch
from torch import Tensor

#: halvings when looking for the tangent through an end
_HALVINGS = 14
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
    straight piece f may have a kink.
    """

    breaks: tuple[float | Tensor, ...]
    pieces: tuple[Piece, ...]


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
    """One call of `lines`: finite ends (l < u, inside the domain), breaks moved into [l, u], middle."""

    def __init__(self, lower: Tensor, upper: Tensor, shape: Shape, curve: Callable[[Tensor], tuple[Tensor, Tensor]]):
        self.curve, self.shape = curve, shape
        self.lower, self.upper = self.at(lower), self.at(upper)
        self.middle = self.at(0.5 * lower + 0.5 * upper)
        self.breaks = tuple(self.at(self._inside(point)) for point in shape.breaks)

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


@dataclass(frozen=True)
class SlopeRange:
    """Slopes of the hull at both ends of the interval, and of the line that is best in its middle."""

    low: Tensor
    high: Tensor
    middle: Tensor


def slope_range(frame: Frame, sign: int, reach: float = float("inf")) -> SlopeRange:
    """Slopes of the lower hull of sign*f; no tangent touches further than `reach` from 0."""
    lower, upper = frame.lower.signed(sign), frame.upper.signed(sign)
    chord = _secant(lower, upper)
    low, high = (chord, upper.x), (chord, lower.x)  # (slope, where the hull is met)
    for k in range(len(frame.shape.pieces)):
        if frame.bends(k, sign):
            low = _least(low, *_from_lower(frame, sign, k, reach))
            high = _most(high, *_to_upper(frame, sign, k, reach))
    for k, point in enumerate(frame.breaks):
        if not (frame.bends(k, sign) or frame.bends(k + 1, sign)):  # else a tangent ends at this break
            kink = point.signed(sign)
            inside = (lower.x < kink.x) & (kink.x < upper.x)
            low = _least(low, torch.where(inside, _secant(lower, kink), torch.inf), kink.x)
            high = _most(high, torch.where(inside, _secant(kink, upper), -torch.inf), kink.x)
    least, most = _steepness(frame, sign)
    cap = _VERTICAL * chord.abs()
    first, last = torch.maximum(low[0], least), torch.minimum(high[0], most)
    first, last = torch.where(torch.isinf(first), -cap, first), torch.where(torch.isinf(last), cap, last)
    first, last = torch.minimum(first, last), torch.maximum(first, last)
    limit = torch.finfo(chord.dtype).max ** 0.5
    first, last = (torch.nan_to_num(s, nan=0.0).clamp(-limit, limit) for s in (first, last))
    tangent = torch.minimum(torch.maximum(sign * frame.middle.slope, first), last)
    x = frame.middle.x
    return SlopeRange(first, last, torch.where(x <= low[1], first, torch.where(x >= high[1], last, tangent)))


def _least(best: tuple[Tensor, Tensor], slope: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    better = slope < best[0]
    return torch.where(better, slope, best[0]), torch.where(better, x, best[1])


def _most(best: tuple[Tensor, Tensor], slope: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    better = slope > best[0]
    return torch.where(better, slope, best[0]), torch.where(better, x, best[1])


def _from_lower(frame: Frame, sign: int, k: int, reach: float) -> tuple[Tensor, Tensor]:
    """Smallest secant slope from the lower end into convex piece k, and where it touches."""
    p, q = frame.section(k)
    lower, there = frame.lower.signed(sign), p < q
    if k == 0 or not bool((there & (p > lower.x)).any()):
        return torch.where(there, lower.slope, torch.inf), lower.x
    x = _tangent(frame, sign, lower, p, q, reach)
    slope = torch.where(x > lower.x, _secant(lower, frame.at(x).signed(sign)), lower.slope)
    return torch.where(there, slope, torch.inf), x


def _to_upper(frame: Frame, sign: int, k: int, reach: float) -> tuple[Tensor, Tensor]:
    """Largest secant slope from convex piece k to the upper end, and where it touches."""
    p, q = frame.section(k)
    upper, there = frame.upper.signed(sign), p < q
    if k == len(frame.breaks) or not bool((there & (q < upper.x)).any()):
        return torch.where(there, upper.slope, -torch.inf), upper.x
    x = _tangent(frame, sign, upper, p, q, reach)
    slope = torch.where(x < upper.x, _secant(frame.at(x).signed(sign), upper), upper.slope)
    return torch.where(there, slope, -torch.inf), x


@torch.no_grad()
def _tangent(frame: Frame, sign: int, end: Point, p: Tensor, q: Tensor, reach: float) -> Tensor:
    """The x in [p, q] whose tangent to the convex sign*f passes through `end`, by bisection."""
    rightwards = end.x is frame.upper.x
    lo, hi = p, q
    if reach < float("inf"):
        lo, hi = (torch.minimum(torch.maximum(x.clamp(-reach, reach), p), q) for x in (p, q))
    for _ in range(_HALVINGS):
        x = 0.5 * lo + 0.5 * hi
        value, slope = frame.curve(x)
        below = sign * (value + slope * (end.x - x)) <= end.value
        go_right = below if rightwards else ~below
        lo, hi = torch.where(go_right, x, lo), torch.where(go_right, hi, x)
    return lo if rightwards else hi


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
