"""Sigmoid, Tanh, Atan, Erf, Softsign: convex left of 0, concave right of it.

Slopes are computed from expressions without cancellation, so that a relative error holds in the
tails as well. The inverse slopes have closed forms.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from verifier.graph.ir import Node
from verifier.ops.curve import LIBRARY, Curve
from verifier.ops.hull import Shape
from verifier.ops.rounding import unit


class _SShaped(Curve):
    """f' is even and falls with |x|; subclasses give |x| for a slope."""

    #: beyond this f is constant to working precision
    tail: ClassVar[float] = float("inf")

    def shape(self, node: Node, like: Tensor) -> Shape:
        return Shape((0.0,), (1, -1), reach=self.tail, odd=True)

    def touch(self, slope: Tensor, piece: int, node: Node) -> Tensor:
        distance = self.distance(slope.clamp(min=0.0))
        return -distance if piece == 0 else distance

    @abstractmethod
    def distance(self, slope: Tensor) -> Tensor:
        """About the x >= 0 with f'(x) = slope; inf for slope 0, at most 0 for slopes that are too large."""


class Sigmoid(_SShaped):
    """1 / (1 + exp(-x))."""

    least: ClassVar[float] = 0.0
    greatest: ClassVar[float] = 1.0
    tail: ClassVar[float] = 40.0
    deployed: ClassVar[tuple[float, float]] = (8.0, 10.0)  # measured: 1, 2.31

    def value(self, x: Tensor, node: Node) -> Tensor:
        return torch.sigmoid(x)

    def curve(self, x: Tensor, node: Node) -> tuple[Tensor, Tensor]:
        value = torch.sigmoid(x)
        return value, value * torch.sigmoid(-x)

    def distance(self, slope: Tensor) -> Tensor:
        small = 2 * slope / (1 + torch.sqrt((1 - 4 * slope).clamp(min=0.0)))  # sigmoid(-distance)
        return torch.log((1 - small) / small)


class Tanh(_SShaped):
    """tanh(x)."""

    least: ClassVar[float] = -1.0
    greatest: ClassVar[float] = 1.0
    tail: ClassVar[float] = 20.0
    deployed: ClassVar[tuple[float, float]] = (32.0, 0.0)  # measured: 7.77

    def value(self, x: Tensor, node: Node) -> Tensor:
        return torch.tanh(x)

    def curve(self, x: Tensor, node: Node) -> tuple[Tensor, Tensor]:
        decay = torch.exp(-2 * x.abs())
        return torch.tanh(x), 4 * decay / (1 + decay) ** 2

    def distance(self, slope: Tensor) -> Tensor:
        return torch.log((1 + torch.sqrt((1 - slope).clamp(min=0.0))) / torch.sqrt(slope))


class Atan(_SShaped):
    """arctan(x)."""

    deployed: ClassVar[tuple[float, float]] = (20.0, 0.0)  # measured: 4.37

    def value(self, x: Tensor, node: Node) -> Tensor:
        return torch.atan(x)

    def curve(self, x: Tensor, node: Node) -> tuple[Tensor, Tensor]:
        return torch.atan(x), 1 / (1 + x * x)

    def distance(self, slope: Tensor) -> Tensor:
        return torch.sqrt((1 / slope - 1).clamp(min=0.0))


class Erf(_SShaped):
    """The error function."""

    least: ClassVar[float] = -1.0
    greatest: ClassVar[float] = 1.0
    tail: ClassVar[float] = 8.0
    deployed: ClassVar[tuple[float, float]] = (8.0, 0.0)  # measured: 1.38

    def value(self, x: Tensor, node: Node) -> Tensor:
        return torch.erf(x)

    def curve(self, x: Tensor, node: Node) -> tuple[Tensor, Tensor]:
        return torch.erf(x), torch.exp(-x * x) * (2 / math.sqrt(math.pi))

    def errors(self, x: Tensor, value: Tensor, slope: Tensor, node: Node) -> tuple[Tensor, Tensor]:
        """The rounding of x*x is an absolute error of the exponent."""
        scale = 2 * unit(x)
        exponent = (x * x).clamp(max=1000.0)  # exp(-1000) is 0 in either precision
        return value.abs() * (LIBRARY * scale), slope * ((LIBRARY + exponent) * scale)

    def distance(self, slope: Tensor) -> Tensor:
        return torch.sqrt((-torch.log(slope * (math.sqrt(math.pi) / 2))).clamp(min=0.0))


class Softsign(_SShaped):
    """x / (1 + |x|)."""

    least: ClassVar[float] = -1.0
    greatest: ClassVar[float] = 1.0
    deployed: ClassVar[tuple[float, float]] = (10.0, 0.0)  # measured: 2.37

    def value(self, x: Tensor, node: Node) -> Tensor:
        return x / (1 + x.abs())

    def curve(self, x: Tensor, node: Node) -> tuple[Tensor, Tensor]:
        scale = 1 + x.abs()
        # x / scale is NaN at infinity
        return torch.where(torch.isinf(x), torch.sign(x), x / scale), (1 / scale) ** 2

    def distance(self, slope: Tensor) -> Tensor:
        return 1 / torch.sqrt(slope) - 1
