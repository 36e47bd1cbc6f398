"""Sign, Floor, Ceil, Round, Greater and GreaterEqual: monotone staircases.

On [l, u] let the first jump be at first, from f(l) to the level above, and the last jump at
last, from the level below to f(u). Every line above passes above the corners (first, level
after) and (last, f(u)) and the end (l, f(l)); its slope is free between 0 and that of the
line from the end to the first corner. Lines below mirror this.

Pieces are closed intervals. At a jump f has one value, but a bound must hold on both sides: after a
split of Sign at 0, the piece [l, 0] still contains sign(0) = 0 and its lines cover {-1, 0}. Floor,
Greater and GreaterEqual behave likewise at their jumps.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from verifier.graph.ir import Node
from verifier.ops.base import Elementwise, Lines
from verifier.ops.rounding import attribute, down, up

#: intervals this narrow get constants; a tilted line would be too steep to be of use
_NARROW = 1e-12


@dataclass(frozen=True)
class _Stair:
    """Corners of f on intervals with a jump; a harmless staircase wherever `jumps` is False."""

    jumps: Tensor
    lower: Tensor
    upper: Tensor
    low: Tensor
    high: Tensor
    first: Tensor
    after: Tensor
    last: Tensor
    before: Tensor
    steepest_lower: Tensor
    steepest_upper: Tensor


class _Staircase(Elementwise):
    """A nondecreasing piecewise constant f."""

    free_lower: ClassVar[bool] = True
    free_upper: ClassVar[bool] = True

    @abstractmethod
    def jumps(self, low: Tensor, high: Tensor, node: Node) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(first, level after first, last, level before last) of the jumps from f(l)=low to f(u)=high > low."""

    def interval(self, lower: Tensor, upper: Tensor, node: Node) -> tuple[Tensor, Tensor]:
        return self.value(lower, node), self.value(upper, node)

    def lines(
        self,
        lower: Tensor,
        upper: Tensor,
        node: Node,
        free_lower: Tensor | None = None,
        free_upper: Tensor | None = None,
    ) -> Lines:
        stair = self._stair(lower, upper, node)
        if free_lower is None or free_upper is None:
            start_lower, start_upper = self._start(stair)
            free_lower = start_lower if free_lower is None else free_lower
            free_upper = start_upper if free_upper is None else free_upper
        slope_u = torch.where(stair.jumps, free_upper * stair.steepest_upper, 0.0)
        slope_l = torch.where(stair.jumps, free_lower * stair.steepest_lower, 0.0)
        offset_u = _above(stair.lower, stair.low, slope_u)
        offset_u = torch.maximum(offset_u, _above(stair.first, stair.after, slope_u))
        offset_u = torch.maximum(offset_u, _above(stair.last, stair.high, slope_u))
        offset_l = _below(stair.upper, stair.high, slope_l)
        offset_l = torch.minimum(offset_l, _below(stair.first, stair.low, slope_l))
        offset_l = torch.minimum(offset_l, _below(stair.last, stair.before, slope_l))
        low, high = self.interval(lower, upper, node)
        return Lines(
            slope_l,
            torch.where(slope_l > 0, offset_l, low),
            slope_u,
            torch.where(slope_u > 0, offset_u, high),
        )

    def start(self, lower: Tensor, upper: Tensor, node: Node) -> tuple[Tensor, Tensor]:
        """One jump: tilt only towards the longer side; several: the slope of the staircase."""
        return self._start(self._stair(lower, upper, node))

    def _start(self, stair: _Stair) -> tuple[Tensor, Tensor]:
        middle = 0.5 * stair.lower + 0.5 * stair.upper
        single = stair.first == stair.last
        mean = (stair.high - stair.after) / torch.where(single, 1.0, stair.last - stair.first)
        several_l, several_u = ((mean / s).clamp(0.0, 1.0) for s in (stair.steepest_lower, stair.steepest_upper))
        lower = torch.where(single, (middle > stair.last).to(mean.dtype), several_l)
        upper = torch.where(single, (middle < stair.first).to(mean.dtype), several_u)
        return torch.where(stair.jumps, lower, 0.0), torch.where(stair.jumps, upper, 0.0)

    def surrogate(self, x: Tensor, node: Node) -> Tensor:
        """Straight through: the value of f, the gradient of the identity.

        Source: Bengio et al. 2013, arXiv:1308.3432.
        """
        return self.value(x, node).detach() + (x - x.detach())

    def split_point(self, lower: Tensor, upper: Tensor, node: Node) -> Tensor:
        """The jump nearest to the middle: one jump less in either half, and none left of a single one."""
        stair = self._stair(lower, upper, node)
        middle = torch.nan_to_num(0.5 * lower + 0.5 * upper)
        at = stair.first + torch.round(middle - stair.first)  # jumps are one apart
        at = torch.minimum(torch.maximum(at, stair.first), stair.last)
        return torch.where(stair.jumps & (at > lower) & (at < upper), at, middle)

    def exact_on(self, lower: Tensor, upper: Tensor, node: Node) -> Tensor:
        low, high = self.interval(lower, upper, node)
        return low == high

    def deployed_error(self, lower: Tensor, upper: Tensor, node: Node, unit_roundoff: float) -> Tensor:
        """Zero: x is the deployed number itself, and a comparison does not round."""
        return torch.zeros_like(lower)

    def _stair(self, lower: Tensor, upper: Tensor, node: Node) -> _Stair:
        low, high = self.interval(lower, upper, node)
        # beyond a quarter of the integers a dtype holds, corners would not be exact
        most = 0.25 / torch.finfo(lower.dtype).eps
        jumps = (high > low) & (lower.abs() < most) & (upper.abs() < most) & (upper - lower > _NARROW)
        l, u = torch.where(jumps, lower, -1.0), torch.where(jumps, upper, 2.0)
        low, high = torch.where(jumps, low, 0.0), torch.where(jumps, high, 1.0)
        first, after, last, before = self.jumps(low, high, node)
        # a jump at the very end would allow any slope; a sixteenth of the interval is steep enough
        least = (u - l) / 16
        return _Stair(
            jumps,
            l,
            u,
            low,
            high,
            first,
            after,
            last,
            before,
            steepest_lower=(high - before) / torch.maximum(u - last, least),
            steepest_upper=(after - low) / torch.maximum(first - l, least),
        )


def _above(x: Tensor, level: Tensor, slope: Tensor) -> Tensor:
    return up(level - slope * x, level.abs() + (slope * x).abs(), 2)


def _below(x: Tensor, level: Tensor, slope: Tensor) -> Tensor:
    return down(level - slope * x, level.abs() + (slope * x).abs(), 2)


class _Integers(_Staircase):
    """Jumps of height 1, one apart: the first at f(l) + shift, the last at f(u) + shift - 1."""

    shift: ClassVar[float]

    def jumps(self, low: Tensor, high: Tensor, node: Node) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return low + self.shift, low + 1, high + (self.shift - 1), high - 1


class Floor(_Integers):
    """Jumps at integers, which take the upper level."""

    shift: ClassVar[float] = 1.0

    def value(self, x: Tensor, node: Node) -> Tensor:
        return torch.floor(x)


class Ceil(_Integers):
    """Jumps at integers, which take the lower level."""

    shift: ClassVar[float] = 0.0

    def value(self, x: Tensor, node: Node) -> Tensor:
        return torch.ceil(x)


class Round(_Integers):
    """Jumps halfway between integers, which take the even level."""

    shift: ClassVar[float] = 0.5

    def value(self, x: Tensor, node: Node) -> Tensor:
        return torch.round(x)


class _Single(_Staircase):
    """One jump from f(l) to f(u)."""

    @abstractmethod
    def place(self, node: Node, like: Tensor) -> tuple[Tensor, Tensor]:
        """Where the jump is at the earliest and at the latest (a threshold may be stored rounded)."""

    def jumps(self, low: Tensor, high: Tensor, node: Node) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        earliest, latest = self.place(node, low)
        return earliest + torch.zeros_like(low), high, latest + torch.zeros_like(low), low

    def surrogate(self, x: Tensor, node: Node) -> Tensor:
        """As for stairs, but the gradient fades with the distance from the jump, in units of its mean."""
        away = (x - self.place(node, x)[0]).detach()
        width = away.flatten(1).abs().mean(1).clamp(min=1e-12).reshape(-1, *([1] * (x.ndim - 1)))
        return self.value(x, node).detach() + (x - x.detach()) / (width * (1 + (away / width) ** 2))


class Sign(_Single):
    """-1, 0 or 1."""

    def value(self, x: Tensor, node: Node) -> Tensor:
        return torch.where(torch.isnan(x), x, torch.sign(x))

    def place(self, node: Node, like: Tensor) -> tuple[Tensor, Tensor]:
        zero = torch.zeros((), dtype=like.dtype, device=like.device)
        return zero, zero


class _Threshold(_Single):
    """1 above the threshold, 0 below it."""

    def interval(self, lower: Tensor, upper: Tensor, node: Node) -> tuple[Tensor, Tensor]:
        earliest, latest = self.place(node, lower)
        return self.passes(lower, latest), self.passes(upper, earliest)

    @abstractmethod
    def passes(self, x: Tensor, threshold: Tensor) -> Tensor:
        """f(x) for this threshold; NaN for NaN."""

    def place(self, node: Node, like: Tensor) -> tuple[Tensor, Tensor]:
        threshold, error = attribute(node, "threshold", like)
        value = torch.as_tensor(threshold, dtype=like.dtype, device=like.device)
        if isinstance(error, float) and error == 0.0:
            return value, value
        return value - error * 2, value + error * 2


class Greater(_Threshold):
    """1 where x > threshold."""

    def value(self, x: Tensor, node: Node) -> Tensor:
        return (x > attribute(node, "threshold", x)[0]).to(x.dtype)

    def passes(self, x: Tensor, threshold: Tensor) -> Tensor:
        return _propagate(x, x > threshold)


class GreaterEqual(_Threshold):
    """1 where x >= threshold."""

    def value(self, x: Tensor, node: Node) -> Tensor:
        return (x >= attribute(node, "threshold", x)[0]).to(x.dtype)

    def passes(self, x: Tensor, threshold: Tensor) -> Tensor:
        return _propagate(x, x >= threshold)


def _propagate(x: Tensor, passed: Tensor) -> Tensor:
    return torch.where(torch.isnan(x), x, passed.to(x.dtype))
