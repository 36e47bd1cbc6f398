"""Sin and Cos: f(x) = sin(x + phase).

On intervals of at most half a period, moved by a multiple k of pi to around 0, the function is
(-1)^k times an S-shaped piece, convex left of 0 and concave right of it: that gives the slopes.
The offset is rigorous in the original coordinate. sin(x + phase) - s*x has its local minima at
x + phase = -arccos(s) + 2*pi*n, where it is -sqrt(1 - s^2) - s*x; on half a period at most one
of them lies inside the interval. Longer intervals get constants.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from verifier.graph.ir import Node
from verifier.ops.base import Elementwise, Lines
from verifier.ops.curve import LIBRARY
from verifier.ops.hull import Frame, Shape, middle_slope
from verifier.ops.rounding import down, unit

_HALF_WAVE = Shape((0.0,), (1, -1), odd=True)


class _Wave(Elementwise):
    """sin(x + phase)."""

    free_lower: ClassVar[bool] = True
    free_upper: ClassVar[bool] = True
    phase: ClassVar[float]

    def interval(self, lower: Tensor, upper: Tensor, node: Node) -> tuple[Tensor, Tensor]:
        at_lower, at_upper = self.value(lower, node), self.value(upper, node)
        pad = LIBRARY * 2 * unit(lower)
        low = (torch.minimum(at_lower, at_upper) - pad).clamp(min=-1.0)
        high = (torch.maximum(at_lower, at_upper) + pad).clamp(max=1.0)
        low = torch.where(self._holds(lower, upper, -0.5 * math.pi), -1.0, low)
        high = torch.where(self._holds(lower, upper, 0.5 * math.pi), 1.0, high)
        endless = (torch.isinf(lower) | torch.isinf(upper)) & ~(torch.isnan(lower) | torch.isnan(upper))
        return torch.where(endless, -1.0, low), torch.where(endless, 1.0, high)

    def _holds(self, lower: Tensor, upper: Tensor, angle: float) -> Tensor:
        """True where x + phase = angle + 2*pi*n may happen in [lower, upper]."""
        shift = (angle - self.phase) / (2 * math.pi)
        first, last = lower / (2 * math.pi) - shift, upper / (2 * math.pi) - shift
        margin = 8 * unit(lower) * (torch.maximum(first.abs(), last.abs()) + 2)
        return torch.floor(last + margin) >= torch.ceil(first - margin)

    def lines(
        self,
        lower: Tensor,
        upper: Tensor,
        node: Node,
        free_lower: Tensor | None = None,
        free_upper: Tensor | None = None,
    ) -> Lines:
        low, high = self.interval(lower, upper, node)
        below, above, short = self._ranges(lower, upper)
        slope_l = below[2] if free_lower is None else below[0] + free_lower * (below[1] - below[0])
        slope_u = above[2] if free_upper is None else above[0] + free_upper * (above[1] - above[0])
        l, u = torch.where(short, lower, 0.0), torch.where(short, upper, 1.0)
        offset_l = self._offset(l, u, slope_l, 1, node)
        offset_u = -self._offset(l, u, slope_u, -1, node)
        return Lines(
            torch.where(short, slope_l, 0.0),
            torch.where(short, offset_l, low),
            torch.where(short, -slope_u, 0.0),
            torch.where(short, offset_u, high),
        )

    def start(self, lower: Tensor, upper: Tensor, node: Node) -> tuple[Tensor, Tensor]:
        """The lines closest to f in the middle of the interval."""
        below, above, _ = self._ranges(lower, upper)
        found = []
        for first, last, middle in (below, above):
            span = last - first
            share = (middle - first) / torch.where(span > 0, span, 1.0)
            found.append(torch.where(span > 0, share, 0.5).clamp(0.0, 1.0))
        return found[0], found[1]

    def split_point(self, lower: Tensor, upper: Tensor, node: Node) -> Tensor:
        """The inflection nearest to the middle, if it lies in the middle half, else the middle."""
        middle = torch.nan_to_num(0.5 * lower + 0.5 * upper)
        inflection = torch.round((middle + self.phase) / math.pi) * math.pi - self.phase
        near = (inflection - middle).abs() < 0.25 * (upper - lower)
        return torch.where(near & torch.isfinite(upper - lower), inflection, middle)

    def deployed_error(self, lower: Tensor, upper: Tensor, node: Node, unit_roundoff: float) -> Tensor:
        """A few ulp of 1: 0.9 in float32 and 4.9 in float64 were measured, any argument."""
        return torch.full_like(lower, 24 * unit_roundoff)

    def _ranges(self, lower: Tensor, upper: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], Tensor]:
        """(low, high, middle) slopes of lines below f and below -f, and the mask of short intervals."""
        # far out, a float no longer tells the angle well enough to place the critical point
        known = torch.maximum(lower.abs(), upper.abs()) < 2.0**-9 / unit(lower)
        short = known & (lower < upper) & (upper - lower <= math.pi)
        l, u = torch.where(short, lower, 0.0), torch.where(short, upper, 1.0)
        turns = torch.round((0.5 * l + 0.5 * u + self.phase) / math.pi)
        shift = turns * math.pi - self.phase
        l, u = l - shift, u - shift
        short = short & (l < u)  # far from 0 the shift may swallow a narrow interval
        u = torch.where(short, u, l + 1.0)
        frame = Frame(l, u, _HALF_WAVE, lambda x: (torch.sin(x), torch.cos(x)))
        one, two = middle_slope(frame, 1), middle_slope(frame, -1)
        even = turns.remainder(2) == 0
        below = tuple(torch.where(even, a, b) for a, b in zip(one, two, strict=True))
        above = tuple(torch.where(even, b, a) for a, b in zip(one, two, strict=True))
        return below, above, short

    def _offset(self, lower: Tensor, upper: Tensor, slope: Tensor, sign: int, node: Node) -> Tensor:
        """A number at most min over [l, u] of sign*f(x) - slope*x, for any slope."""
        offset = torch.minimum(
            self._gap(lower, slope, sign * self.value(lower, node)),
            self._gap(upper, slope, sign * self.value(upper, node)),
        )
        with torch.no_grad():
            # -f is f with the phase moved by pi
            angle = -torch.arccos(slope.clamp(-1.0, 1.0)) - self.phase - (math.pi if sign < 0 else 0.0)
            margin = 16 * unit(slope) * (torch.maximum(lower.abs(), upper.abs()) + 8)
            n = torch.floor((upper + margin - angle) / (2 * math.pi) + margin)
            x = angle + n * (2 * math.pi)
            inside = (slope.abs() <= 1) & (x + margin >= lower) & (x - margin <= upper)
            value = -torch.sqrt((1 - slope) * (1 + slope).clamp(min=0.0))
        critical = self._gap(x, slope, value) - 2 * margin * slope.abs()
        return torch.where(inside, torch.minimum(offset, critical), offset)

    def _gap(self, x: Tensor, slope: Tensor, value: Tensor) -> Tensor:
        """value - slope*x rounded down, `value` being off by a library function's error."""
        product = slope * x
        return down(value - product, product.abs() + 1, 3 + 2 * LIBRARY)


class Sin(_Wave):
    """sin(x), x in radians."""

    phase: ClassVar[float] = 0.0

    def value(self, x: Tensor, node: Node) -> Tensor:
        return torch.sin(x)


class Cos(_Wave):
    """cos(x), x in radians."""

    phase: ClassVar[float] = 0.5 * math.pi

    def value(self, x: Tensor, node: Node) -> Tensor:
        return torch.cos(x)
