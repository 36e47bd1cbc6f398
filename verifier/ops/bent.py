"""Relu, LeakyRelu, PRelu and Abs: two rays that meet at the origin.

f(x) = x for x >= 0 and alpha*x for x < 0, with alpha = 0, alpha, slope, -1. For l < 0 < u and
alpha <= 1, f is convex: above lies the chord, below every line through the origin whose slope
is between alpha and 1. For alpha > 1 f is concave and the two change places.
Source: Zhang et al. 2018, arXiv:1811.00866 (adaptive lower slope, chord above).
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from verifier.graph.ir import Node
from verifier.ops.base import Elementwise, Lines, may_hold
from verifier.ops.rounding import attribute, enclose, tiny, underflow, unit


def _crosses_zero(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Masks (crossing, positive); NaN ends count as crossing, so that NaN lines come out."""
    positive = lower >= 0
    return ~(positive | (upper <= 0)), positive


class _Bent(Elementwise):
    """What all four share; subclasses name alpha."""

    free_lower: ClassVar[bool] = True
    kink_at_zero: ClassVar[bool] = True

    @abstractmethod
    def alpha(self, node: Node, like: Tensor) -> tuple[float | Tensor, float | Tensor]:
        """Slope for x < 0 and the error of storing it, as `rounding.attribute` gives them."""

    def interval(self, lower: Tensor, upper: Tensor, node: Node) -> tuple[Tensor, Tensor]:
        alpha, error = self.alpha(node, lower)
        inside = (lower < 0) & (upper > 0)
        (low_l, high_l), (low_u, high_u) = self._around(lower, alpha, error), self._around(upper, alpha, error)
        low, high = torch.minimum(low_l, low_u), torch.maximum(high_l, high_u)
        return torch.where(inside, low.clamp(max=0.0), low), torch.where(inside, high.clamp(min=0.0), high)

    def _around(self, x: Tensor, alpha: float | Tensor, error: float | Tensor) -> tuple[Tensor, Tensor]:
        """f(x) from below and above; only alpha * x rounds."""
        if isinstance(alpha, float) and abs(alpha) == 1.0:
            value = torch.where(x < 0, alpha * x, x)
            return value, value
        # 0 * -inf is 0 here; a NaN x takes the other branch
        left = torch.nan_to_num(alpha * x, nan=0.0, posinf=torch.inf, neginf=-torch.inf)
        low, high = enclose(left, x.abs().clamp(max=torch.finfo(x.dtype).max) * error)
        return torch.where(x < 0, low, x), torch.where(x < 0, high, x)

    def lines(
        self,
        lower: Tensor,
        upper: Tensor,
        node: Node,
        free_lower: Tensor | None = None,
        free_upper: Tensor | None = None,
    ) -> Lines:
        alpha, error = self.alpha(node, lower)
        if not isinstance(alpha, Tensor):
            alpha = lower.new_full((), alpha)
        one = torch.ones_like(alpha)
        share, left, right = _share(lower, upper)
        start_lower, start_upper = self.start(lower, upper, node)
        rays = []
        for free in (
            start_lower if free_lower is None else free_lower,
            start_upper if free_upper is None else free_upper,
        ):
            ray = torch.lerp(alpha, one, torch.clamp(free, torch.floor(share), torch.ceil(share)))
            rays.append(torch.clamp(ray, torch.minimum(alpha, one), torch.maximum(alpha, one)))
        # f - slope*x is (1 - slope)*upper at one end and (alpha - slope)*lower at the other: relative
        # errors only, however close the slope is to 1
        chord = torch.lerp(alpha, one, share)
        at_upper, at_lower = (1 - chord) * right, (alpha - chord) * left
        above = _grown(torch.maximum(at_upper, at_lower).clamp(min=0.0), left, right)
        below = -_grown(-torch.minimum(at_upper, at_lower).clamp(max=0.0), left, right)
        zero = torch.zeros_like(above)
        lines, convex = Lines(rays[0], zero, chord, above), alpha <= 1
        if may_hold(~convex):
            lines = Lines(
                torch.where(convex, rays[0], chord),
                torch.where(convex, zero, below),
                torch.where(convex, chord, rays[1]),
                torch.where(convex, above, zero),
            )
        pad = left.abs() * (2 * error) + tiny(lower) if isinstance(error, Tensor) or error else zero
        endless = torch.isinf(lower) & (right > 0) | torch.isinf(right)
        if may_hold(endless):
            low, high = self.interval(lower, upper, node)
            positive = lower >= 0
            slope, pad = positive.to(lower.dtype), torch.where(endless, 0.0, pad)
            lines = Lines(
                torch.where(endless, slope, lines.slope_lower),
                torch.where(endless, torch.where(positive, 0.0, low), lines.offset_lower),
                torch.where(endless, slope, lines.slope_upper),
                torch.where(endless, torch.where(positive, 0.0, high), lines.offset_upper),
            )
        return Lines(lines.slope_lower, lines.offset_lower - pad, lines.slope_upper, lines.offset_upper + pad)

    def start(self, lower: Tensor, upper: Tensor, node: Node) -> tuple[Tensor, Tensor]:
        """The ray under (over) the longer side, which is the smaller triangle of error."""
        longer = (upper > -lower).to(lower.dtype)
        return longer, longer

    def parallel(self, lower: Tensor, upper: Tensor, node: Node) -> tuple[Tensor, Tensor]:
        """The ray parallel to the chord, which halves how far apart the two lines get."""
        share, *_ = _share(lower, upper)
        return share, share

    def split_point(self, lower: Tensor, upper: Tensor, node: Node) -> Tensor:
        crossing, _ = _crosses_zero(lower, upper)
        return torch.where(crossing, 0.0, 0.5 * lower + 0.5 * upper)

    def exact_on(self, lower: Tensor, upper: Tensor, node: Node) -> Tensor:
        return (lower >= 0) | (upper <= 0)

    def deployed_error(self, lower: Tensor, upper: Tensor, node: Node, unit_roundoff: float) -> Tensor:
        """One rounding of alpha * x, and none where x is negative nowhere."""
        alpha, _ = self.alpha(node, lower)
        size = torch.maximum(lower.clamp(max=0).abs(), upper.clamp(max=0).abs())
        return torch.where(size > 0, (alpha * size).abs() * (2 * unit_roundoff) + underflow(unit_roundoff), 0.0)


def _share(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(share, left, right): the interval's parts left <= 0 <= right of 0, and the share of the right one.

    The share is relu's chord slope: 0 or 1 on stable neurons, 0 where an end is infinite.
    `left` is finite, so that 0 * left is 0. NaN stays NaN in left or right. No masks: selecting by
    a random mask costs as much as twenty arithmetic operations.
    """
    left, right = lower.clamp(max=0.0), upper.clamp(min=0.0)
    width = right - left
    share = torch.nan_to_num(right / (width + (width == 0).to(width.dtype)), nan=0.0)
    return share, left.clamp(min=torch.finfo(lower.dtype).min), right


def _grown(offset: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """offset >= 0 rounded up; unchanged on stable neurons, whose lines are exact."""
    crossing = torch.minimum(right, -left).sign()
    return offset * (1 + 8 * unit(offset)) + tiny(offset) * crossing


class Relu(Elementwise):
    """max(x, 0). The hot rule of most networks, so it is written out instead of passing alpha = 0."""

    free_lower: ClassVar[bool] = True
    kink_at_zero: ClassVar[bool] = True

    def value(self, x: Tensor, node: Node) -> Tensor:
        return torch.relu(x)

    def never_negative(self, node: Node) -> bool:
        return True

    def interval(self, lower: Tensor, upper: Tensor, node: Node) -> tuple[Tensor, Tensor]:
        return torch.relu(lower), torch.relu(upper)

    def lines(
        self,
        lower: Tensor,
        upper: Tensor,
        node: Node,
        free_lower: Tensor | None = None,
        free_upper: Tensor | None = None,
    ) -> Lines:
        share, left, right = _share(lower, upper)
        free = (upper > -lower).to(lower.dtype) if free_lower is None else free_lower
        # floor(share) = ceil(share) on a stable neuron: 0 or 1 whatever `free` is
        below = torch.clamp(free, torch.floor(share), torch.ceil(share))
        offset = torch.maximum((1 - share) * right, -share * left)
        return Lines(below, torch.zeros_like(below), share, _grown(offset, left, right))

    def start(self, lower: Tensor, upper: Tensor, node: Node) -> tuple[Tensor, Tensor]:
        """1 if upper > -lower else 0: the smaller triangle of error."""
        longer = (upper > -lower).to(lower.dtype)
        return longer, longer

    def parallel(self, lower: Tensor, upper: Tensor, node: Node) -> tuple[Tensor, Tensor]:
        """The chord's slope, which halves how far apart the two lines get."""
        share, *_ = _share(lower, upper)
        return share, share

    def split_point(self, lower: Tensor, upper: Tensor, node: Node) -> Tensor:
        crossing, _ = _crosses_zero(lower, upper)
        return torch.where(crossing, 0.0, 0.5 * lower + 0.5 * upper)

    def exact_on(self, lower: Tensor, upper: Tensor, node: Node) -> Tensor:
        return (lower >= 0) | (upper <= 0)

    def deployed_error(self, lower: Tensor, upper: Tensor, node: Node, unit_roundoff: float) -> Tensor:
        """Zero: a comparison does not round."""
        return torch.zeros_like(lower)


class LeakyRelu(_Bent):
    """x for x >= 0, alpha * x for x < 0; alpha may be negative or above 1."""

    def alpha(self, node: Node, like: Tensor) -> tuple[float | Tensor, float | Tensor]:
        return attribute(node, "alpha", like)

    def value(self, x: Tensor, node: Node) -> Tensor:
        return torch.where(x < 0, attribute(node, "alpha", x)[0] * x, x)


class PRelu(_Bent):
    """LeakyRelu with one slope per channel or element."""

    def alpha(self, node: Node, like: Tensor) -> tuple[float | Tensor, float | Tensor]:
        return attribute(node, "slope", like)

    def value(self, x: Tensor, node: Node) -> Tensor:
        return torch.where(x < 0, attribute(node, "slope", x)[0] * x, x)


class Abs(_Bent):
    """|x|: alpha = -1, and nothing rounds."""

    def alpha(self, node: Node, like: Tensor) -> tuple[float | Tensor, float | Tensor]:
        return -1.0, 0.0

    def value(self, x: Tensor, node: Node) -> Tensor:
        return x.abs()

    def never_negative(self, node: Node) -> bool:
        return True

    def deployed_error(self, lower: Tensor, upper: Tensor, node: Node, unit_roundoff: float) -> Tensor:
        return torch.zeros_like(lower)
