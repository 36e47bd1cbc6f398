"""Lines around any function made of a few convex, concave and straight pieces.

The slope is chosen freely, from approximate arithmetic (ops/hull.py); the offset is then computed
*from the slope actually stored*, so that soundness does not depend on how the slope came about.
For the lower line of f with slope s, the offset is the minimum of g(x) = f(x) - s*x, piece by piece:

- on a concave or straight piece g is smallest at an end;
- on a convex piece [p, q], for any d in it, g(x) >= g(d) + (f'(d) - s)*(x - d). With f'(d)
  close to s this loses next to nothing, and a badly chosen d only loses tightness.

The free parameter moves the slope linearly over the range of slopes that touch the hull; the
offset is then a concave function of it, and its derivative is minus the point that is touched.
The upper line is minus the lower line of -f.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from verifier.graph.ir import Node
from verifier.ops.base import Elementwise, Lines
from verifier.ops.hull import Frame, Point, Shape, Straight, middle_slope, slope_range
from verifier.ops.rounding import down, enclose, tiny, underflow, unit

#: allowance for a library function, in epsilons (two unit round-offs) of its result
LIBRARY = 8


class Curve(Elementwise):
    """An elementwise function given by its value, slope, shape and inverse slope."""

    free_lower: ClassVar[bool] = True
    free_upper: ClassVar[bool] = True
    #: f stays within these everywhere
    least: ClassVar[float] = -float("inf")
    greatest: ClassVar[float] = float("inf")
    #: (a, b) with |f_deployed - f| <= u * (a * |f| + b), at least four times the error measured for
    #: ONNX Runtime 1.2x on x86 in float32 and (where it has a kernel) float64, 2 million points each
    deployed: ClassVar[tuple[float, float]]

    @abstractmethod
    def curve(self, x: Tensor, node: Node) -> tuple[Tensor, Tensor]:
        """f(x) and f'(x), each within `errors`."""

    @abstractmethod
    def shape(self, node: Node, like: Tensor) -> Shape:
        """Breaks and pieces."""

    @abstractmethod
    def touch(self, slope: Tensor, piece: int, node: Node) -> Tensor:
        """About the x on curved piece `piece` with f'(x) = slope; beyond its end where slopes never get there."""

    def errors(self, x: Tensor, value: Tensor, slope: Tensor, node: Node) -> tuple[Tensor, Tensor]:
        """At least the errors of what `curve` returned; underflow is allowed for by the caller."""
        scale = LIBRARY * 2 * unit(x)
        return value.abs() * scale, slope.abs() * scale

    def allowance(self, node: Node) -> tuple[float, float]:
        """`deployed`, where it depends on attributes."""
        return self.deployed

    def turns(self, node: Node) -> tuple[float, ...]:
        """Where f has a local extremum inside its domain, rounded."""
        return ()

    def domain(self, lower: Tensor, upper: Tensor, node: Node) -> Tensor | None:
        """Bool mask: f is defined on all of [lower, upper]; None where that is always so."""
        return None

    def interval(self, lower: Tensor, upper: Tensor, node: Node) -> tuple[Tensor, Tensor]:
        domain = self.domain(lower, upper, node)
        l, u = (lower, upper) if domain is None else (torch.where(domain, x, 1.0) for x in (lower, upper))
        low, high = self._around(l, node)
        low_u, high_u = self._around(u, node)
        low, high = torch.minimum(low, low_u), torch.maximum(high, high_u)
        for turn in self.turns(node):
            point = torch.as_tensor(turn, dtype=lower.dtype, device=lower.device)
            inside = (l < point) & (point < u)
            low_t, high_t = self._around(point, node)
            low = torch.where(inside, torch.minimum(low, low_t), low)
            high = torch.where(inside, torch.maximum(high, high_t), high)
        if domain is not None:
            unknown = torch.where(torch.isnan(lower) | torch.isnan(upper), torch.nan, torch.inf).to(low)
            low, high = torch.where(domain, low, -unknown), torch.where(domain, high, unknown)
        return low, high

    def lines(
        self,
        lower: Tensor,
        upper: Tensor,
        node: Node,
        free_lower: Tensor | None = None,
        free_upper: Tensor | None = None,
    ) -> Lines:
        frame, proper = self._frame(lower, upper, node)
        slope_l, offset_l = self._support(frame, 1, node, free_lower)
        slope_u, offset_u = self._support(frame, -1, node, free_upper)
        slope_u, offset_u = -slope_u, -offset_u
        fine = proper & (offset_l - offset_l == 0) & (offset_u - offset_u == 0)  # finite
        if not bool(fine.all()):
            low, high = self.interval(lower, upper, node)
            slope_l, slope_u = torch.where(fine, slope_l, 0.0), torch.where(fine, slope_u, 0.0)
            offset_l, offset_u = torch.where(fine, offset_l, low), torch.where(fine, offset_u, high)
        for straight, inside in self._straight(lower, upper, node):
            if not straight.exact:
                continue
            slope_l, slope_u = (torch.where(inside, straight.slope, s) for s in (slope_l, slope_u))
            offset_l, offset_u = (torch.where(inside, straight.offset, b) for b in (offset_l, offset_u))
        return Lines(slope_l, offset_l, slope_u, offset_u)

    def start(self, lower: Tensor, upper: Tensor, node: Node) -> tuple[Tensor, Tensor]:
        """The lines that are closest to f in the middle of the interval: least area between them."""
        frame, _ = self._frame(lower, upper, node)
        found = []
        for sign in (1, -1):
            first, last, middle = middle_slope(frame, sign)
            span = last - first
            share = (middle - first) / torch.where(span > 0, span, 1.0)
            found.append(torch.where(span > 0, share, 0.5).clamp(0.0, 1.0))
        return found[0], found[1]

    def split_point(self, lower: Tensor, upper: Tensor, node: Node) -> Tensor:
        """A break in the middle four fifths, if there is one, else the middle."""
        l = torch.where(torch.isinf(lower), 2 * upper.clamp(max=0.0) - 1, lower)
        l = torch.where(torch.isinf(lower) & torch.isinf(upper), -1.0, l)
        u = torch.where(torch.isinf(upper), 2 * l.clamp(min=0.0) + 1, upper)
        best = 0.5 * l + 0.5 * u
        for point in self.shape(node, lower).breaks:
            near = (point > 0.9 * l + 0.1 * u) & (point < 0.1 * l + 0.9 * u)
            best = torch.where(near, point, best)
        return best

    def exact_on(self, lower: Tensor, upper: Tensor, node: Node) -> Tensor:
        exact = lower == upper
        for _, inside in self._straight(lower, upper, node):  # inexactly stored ones too: only rounding is left
            exact = exact | inside
        return exact

    def deployed_error(self, lower: Tensor, upper: Tensor, node: Node, unit_roundoff: float) -> Tensor:
        """u * (relative * |f| + absolute) and underflow, see `deployed`."""
        low, high = self.interval(lower, upper, node)
        relative, absolute = self.allowance(node)
        size = torch.maximum(low.abs(), high.abs())
        return (relative * unit_roundoff) * size + (absolute * unit_roundoff + underflow(unit_roundoff))

    def frame(self, lower: Tensor, upper: Tensor, node: Node) -> Frame:
        """The interval as ops/hull.py wants it; finite lower < upper inside the domain."""
        return Frame(lower, upper, self.shape(node, lower), lambda x: self.curve(x, node))

    def _frame(self, lower: Tensor, upper: Tensor, node: Node) -> tuple[Frame, Tensor]:
        """A frame with a harmless interval wherever the mask, returned too, is False."""
        width = upper - lower
        proper = (width > 0) & (width < torch.inf)
        domain = self.domain(lower, upper, node)
        if domain is not None:
            proper = proper & domain
        if not bool(proper.all()):
            lower, upper = torch.where(proper, lower, 0.5), torch.where(proper, upper, 1.0)
        return self.frame(lower, upper, node), proper

    def _around(self, x: Tensor, node: Node) -> tuple[Tensor, Tensor]:
        """f(x) from below and from above."""
        value, slope = self.curve(x, node)
        low, high = enclose(value, self.errors(x, value, slope, node)[0])
        return low.clamp(self.least, self.greatest), high.clamp(self.least, self.greatest)

    def _straight(self, lower: Tensor, upper: Tensor, node: Node) -> list[tuple[Straight, Tensor]]:
        """The straight pieces, each with the mask of intervals inside it."""
        shape = self.shape(node, lower)
        found = []
        for k, piece in enumerate(shape.pieces):
            if isinstance(piece, Straight):
                inside = lower <= upper
                if k > 0:
                    inside = inside & (lower >= shape.breaks[k - 1])
                if k < len(shape.breaks):
                    inside = inside & (upper <= shape.breaks[k])
                found.append((piece, inside))
        return found

    def _support(self, frame: Frame, sign: int, node: Node, free: Tensor | None) -> tuple[Tensor, Tensor]:
        """Slope and sound offset of a line below sign*f."""
        if free is None:
            _, _, slope = middle_slope(frame, sign)
        else:
            first, last = slope_range(frame, sign)
            slope = first + free * (last - first)
        offset = torch.minimum(self._gap(frame.lower, slope, sign, node), self._gap(frame.upper, slope, sign, node))
        for k, point in enumerate(frame.breaks):
            if not (frame.bends(k, sign) or frame.bends(k + 1, sign)):  # else part of a convex piece
                offset = torch.minimum(offset, self._gap(point, slope, sign, node))
        for k in range(len(frame.shape.pieces)):
            if frame.bends(k, sign):
                offset = torch.minimum(offset, self._convex_offset(frame, sign, slope, k, node))
        return slope, offset

    def _convex_offset(self, frame: Frame, sign: int, slope: Tensor, k: int, node: Node) -> Tensor:
        """The tangent inequality at a point near the minimum of sign*f - slope*x on convex piece k."""
        p, q = frame.section(k)
        with torch.no_grad():
            d = torch.nan_to_num(self.touch(sign * slope, k, node), nan=0.0)
            at = frame.at(torch.minimum(torch.maximum(d, p), q))
            error = self.errors(at.x, at.value, at.slope, node)[1]
            error = error + 4 * unit(slope) * (at.slope.abs() + slope.abs()) + tiny(slope)
            excess = sign * at.slope - slope
            loss = torch.maximum(
                (error - excess).clamp(min=0.0) * (q - at.x), (error + excess).clamp(min=0.0) * (at.x - p)
            )
            loss = torch.where(p < q, loss * (1 + 16 * unit(slope)) + tiny(slope), 0.0)
        return self._gap(at, slope, sign, node, loss)

    def _gap(self, at: Point, slope: Tensor, sign: int, node: Node, loss: Tensor | float = 0.0) -> Tensor:
        """sign*f(x) - slope*x - loss, rounded down."""
        product = slope * at.x
        error = self.errors(at.x, at.value, at.slope, node)[0] + loss
        return down(sign * at.value - product - error, at.value.abs() + product.abs() + error, 3)
