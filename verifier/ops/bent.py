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
from verifier.ops.base import Elementwise, Lines
from verifier.ops.rounding import attribute, enclose, tiny, unit


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
        low, high = enclose(alpha * x, x.abs() * error)
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
        crossing, positive = _crosses_zero(lower, upper)
        chord, chord_lower, chord_upper = _chord(lower, upper, alpha, crossing)
        alpha = torch.as_tensor(alpha, dtype=lower.dtype, device=lower.device)
        stable = torch.where(positive, torch.ones_like(alpha), alpha)
        convex = alpha <= 1
        finite = torch.isfinite(lower) & torch.isfinite(upper)
        start_lower, start_upper = self.start(lower, upper, node)
        ray_lower = _between(alpha, start_lower if free_lower is None else free_lower)
        ray_upper = _between(alpha, start_upper if free_upper is None else free_upper)
        zero = torch.zeros_like(chord)
        low, high = self.interval(lower, upper, node)
        below = torch.where(convex, torch.where(finite, ray_lower, zero), chord)
        below_offset = torch.where(convex, torch.where(finite, zero, low), torch.where(finite, chord_lower, low))
        above = torch.where(convex, chord, torch.where(finite, ray_upper, zero))
        above_offset = torch.where(convex, torch.where(finite, chord_upper, high), torch.where(finite, zero, high))
        pad = zero
        if not isinstance(error, float) or error:
            pad = torch.where(
                positive | ~finite, zero, (torch.maximum(lower.abs(), upper.abs()) * error * 2) + tiny(lower)
            )
        return Lines(
            torch.where(crossing, below, stable),
            torch.where(crossing, below_offset, zero) - pad,
            torch.where(crossing, above, stable),
            torch.where(crossing, above_offset, zero) + pad,
        )

    def start(self, lower: Tensor, upper: Tensor, node: Node) -> tuple[Tensor, Tensor]:
        """The ray under (over) the longer side, which is the smaller triangle of error."""
        longer = (upper > -lower).to(lower.dtype)
        return longer, longer

    def split_point(self, lower: Tensor, upper: Tensor, node: Node) -> Tensor:
        crossing, _ = _crosses_zero(lower, upper)
        return torch.where(crossing, 0.0, 0.5 * lower + 0.5 * upper)

    def exact_on(self, lower: Tensor, upper: Tensor, node: Node) -> Tensor:
        return (lower >= 0) | (upper <= 0)

    def deployed_error(self, lower: Tensor, upper: Tensor, node: Node, unit_roundoff: float) -> Tensor:
        """One rounding of alpha * x, and none where x is negative nowhere."""
        alpha, _ = self.alpha(node, lower)
        size = torch.maximum(lower.clamp(max=0).abs(), upper.clamp(max=0).abs())
        return torch.where(size > 0, (alpha * size).abs() * (2 * unit_roundoff) + tiny(lower), 0.0)


def _between(alpha: Tensor, free: Tensor) -> Tensor:
    """alpha + free * (1 - alpha), kept between alpha and 1 whatever the rounding."""
    one = torch.ones_like(alpha)
    ray = alpha + free * (1 - alpha)
    return torch.maximum(torch.minimum(ray, torch.maximum(alpha, one)), torch.minimum(alpha, one))


def _chord(lower: Tensor, upper: Tensor, alpha: float | Tensor, crossing: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Slope of the chord, and the offsets that put a line of that *stored* slope below and above f.

    f - slope*x is (1 - slope)*upper at one end and (alpha - slope)*lower at the other: only
    relative errors, however close the slope is to 1. An infinite end has slope 0.
    """
    width = torch.where(crossing, upper - lower, 1.0)
    slope = torch.where(torch.isinf(width), 0.0, upper / width - alpha * (lower / width))
    at_upper, at_lower = (1 - slope) * upper, (alpha - slope) * lower
    grow = 1 + 8 * unit(lower)
    offset_lower = torch.minimum(at_upper, at_lower).clamp(max=0.0) * grow - tiny(lower)
    offset_upper = torch.maximum(at_upper, at_lower).clamp(min=0.0) * grow + tiny(lower)
    return slope, offset_lower, offset_upper


class Relu(Elementwise):
    """max(x, 0). The hot rule of most networks, so it is written out instead of passing alpha = 0."""

    free_lower: ClassVar[bool] = True
    kink_at_zero: ClassVar[bool] = True

    def value(self, x: Tensor, node: Node) -> Tensor:
        return torch.relu(x)

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
        crossing, positive = _crosses_zero(lower, upper)
        stable = positive.to(lower.dtype)
        width = torch.where(crossing, upper - lower, 1.0)
        finite = ~torch.isinf(width)
        slope = torch.where(crossing, torch.where(finite, upper / width, 0.0), stable)
        # fmax, because 0 * -inf at an infinite lower end is NaN and the other end decides there
        offset = torch.fmax((1 - slope) * upper, -slope * lower) * (1 + 8 * unit(lower)) + tiny(lower)
        zero = torch.zeros_like(offset)
        free = (upper > -lower).to(lower.dtype) if free_lower is None else free_lower
        below = torch.where(crossing, torch.where(finite, free, 0.0), stable)
        return Lines(below, zero, slope, torch.where(crossing, offset, zero))

    def start(self, lower: Tensor, upper: Tensor, node: Node) -> tuple[Tensor, Tensor]:
        """1 if upper > -lower else 0: the smaller triangle of error."""
        longer = (upper > -lower).to(lower.dtype)
        return longer, longer

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

    def deployed_error(self, lower: Tensor, upper: Tensor, node: Node, unit_roundoff: float) -> Tensor:
        return torch.zeros_like(lower)
