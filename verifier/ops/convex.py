"""Exp, Log, Sqrt, Reciprocal, Softplus and Pow: curved one way on each side of 0.

On an interval where f is convex the lower line is a tangent (free) and the upper line the chord;
concave is the reverse. Outside the domain of f nothing is known: infinite bounds.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from verifier.graph.ir import Node
from verifier.ops.curve import LIBRARY, Curve
from verifier.ops.hull import Shape, Straight
from verifier.ops.rounding import number, tiny, unit

_CONVEX = Shape((), (1,))
_CONCAVE = Shape((), (-1,))
_CONCAVE_FROM_0 = Shape((), (-1,), vertical=True)
_BY_SIDE = Shape((0.0,), (-1, 1))


class Exp(Curve):
    """exp(x)."""

    free_upper: ClassVar[bool] = False
    least: ClassVar[float] = 0.0
    deployed: ClassVar[tuple[float, float]] = (10.0, 0.0)  # measured: 2.24

    def value(self, x: Tensor, node: Node) -> Tensor:
        return torch.exp(x)

    def curve(self, x: Tensor, node: Node) -> tuple[Tensor, Tensor]:
        value = torch.exp(x)
        return value, value

    def shape(self, node: Node, like: Tensor) -> Shape:
        return _CONVEX

    def touch(self, slope: Tensor, piece: int, node: Node) -> Tensor:
        return torch.log(slope.clamp(min=0.0))


class Log(Curve):
    """The natural logarithm, on x >= 0 with log(0) = -inf."""

    free_lower: ClassVar[bool] = False
    deployed: ClassVar[tuple[float, float]] = (16.0, 0.0)  # measured: 3.69

    def value(self, x: Tensor, node: Node) -> Tensor:
        return torch.log(x)

    def curve(self, x: Tensor, node: Node) -> tuple[Tensor, Tensor]:
        return torch.log(x), 1 / x

    def shape(self, node: Node, like: Tensor) -> Shape:
        return _CONCAVE

    def touch(self, slope: Tensor, piece: int, node: Node) -> Tensor:
        return 1 / slope.clamp(min=0.0)

    def domain(self, lower: Tensor, upper: Tensor, node: Node) -> Tensor:
        return lower >= 0


class Sqrt(Curve):
    """The square root, on x >= 0."""

    free_lower: ClassVar[bool] = False
    least: ClassVar[float] = 0.0
    deployed: ClassVar[tuple[float, float]] = (4.0, 0.0)  # measured: 1

    def value(self, x: Tensor, node: Node) -> Tensor:
        return torch.sqrt(x)

    def never_negative(self, node: Node) -> bool:
        return True

    def curve(self, x: Tensor, node: Node) -> tuple[Tensor, Tensor]:
        value = torch.sqrt(x)
        return value, 0.5 / value

    def shape(self, node: Node, like: Tensor) -> Shape:
        return _CONCAVE_FROM_0

    def touch(self, slope: Tensor, piece: int, node: Node) -> Tensor:
        return (0.5 / slope.clamp(min=0.0)) ** 2

    def domain(self, lower: Tensor, upper: Tensor, node: Node) -> Tensor:
        return lower >= 0


class Reciprocal(Curve):
    """1 / x, on intervals that exclude 0."""

    deployed: ClassVar[tuple[float, float]] = (4.0, 0.0)  # measured: 1

    def value(self, x: Tensor, node: Node) -> Tensor:
        return torch.reciprocal(x)

    def curve(self, x: Tensor, node: Node) -> tuple[Tensor, Tensor]:
        value = torch.reciprocal(x)
        return value, -value * value

    def shape(self, node: Node, like: Tensor) -> Shape:
        return _BY_SIDE

    def touch(self, slope: Tensor, piece: int, node: Node) -> Tensor:
        distance = torch.rsqrt((-slope).clamp(min=0.0))
        return -distance if piece == 0 else distance

    def domain(self, lower: Tensor, upper: Tensor, node: Node) -> Tensor:
        return (lower > 0) | (upper < 0)


class Softplus(Curve):
    """log(1 + exp(x))."""

    free_upper: ClassVar[bool] = False
    least: ClassVar[float] = 0.0
    deployed: ClassVar[tuple[float, float]] = (24.0, 0.0)  # measured: 5.02

    def value(self, x: Tensor, node: Node) -> Tensor:
        return torch.logaddexp(x, torch.zeros_like(x))

    def curve(self, x: Tensor, node: Node) -> tuple[Tensor, Tensor]:
        return x.clamp(min=0.0) + torch.log1p(torch.exp(-x.abs())), torch.sigmoid(x)

    def shape(self, node: Node, like: Tensor) -> Shape:
        return _CONVEX

    def touch(self, slope: Tensor, piece: int, node: Node) -> Tensor:
        slope = slope.clamp(0.0, 1.0)
        return torch.log(slope / (1 - slope))


class Pow(Curve):
    """x ** exponent: every x for integers >= 0, one-signed x for negative integers, else x >= 0 (x > 0)."""

    deployed: ClassVar[tuple[float, float]] = (8.0, 0.0)  # measured: 1.98

    def value(self, x: Tensor, node: Node) -> Tensor:
        return torch.pow(x, number(node, "exponent", x)[0])

    def never_negative(self, node: Node) -> bool:
        return node.attrs["exponent"] % 2 == 0

    def curve(self, x: Tensor, node: Node) -> tuple[Tensor, Tensor]:
        exponent, _ = number(node, "exponent", x)
        return torch.pow(x, exponent), exponent * torch.pow(x, exponent - 1)

    def errors(self, x: Tensor, value: Tensor, slope: Tensor, node: Node) -> tuple[Tensor, Tensor]:
        """Also what rounding the exponent (and exponent - 1) changed: d x**e = x**e * log|x| * de."""
        exponent, changed = number(node, "exponent", x)
        scale: float | Tensor = LIBRARY * 2 * unit(x)
        if exponent != int(exponent):
            changed = changed + 2 * unit(x) * (abs(exponent) + 1)
        if changed:
            scale = scale + 2 * changed * torch.log(x.abs()).clamp(-800.0, 800.0).abs()
        return value.abs() * scale, slope.abs() * scale + abs(exponent) * tiny(x)

    def shape(self, node: Node, like: Tensor) -> Shape:
        exponent, _ = number(node, "exponent", like)
        if exponent in (0.0, 1.0):
            return Shape((), (Straight(exponent, 1.0 - exponent),))
        right = 1 if exponent * (exponent - 1) > 0 else -1
        if exponent == int(exponent) and (exponent < 0 or exponent % 2 == 1):
            left = right if exponent % 2 == 0 else -right
            return Shape((0.0,), (left, right), odd=exponent > 0)
        return Shape((), (right,), vertical=0 < exponent < 1)

    def touch(self, slope: Tensor, piece: int, node: Node) -> Tensor:
        exponent, _ = number(node, "exponent", slope)
        power = slope / exponent  # x ** (exponent - 1)
        if exponent > 0 and exponent % 2 == 0:
            return power.sign() * torch.pow(power.abs(), 1 / (exponent - 1))
        left = piece == 0 and exponent == int(exponent)
        if left and exponent % 2 == 0:
            power = -power
        distance = torch.pow(power.clamp(min=0.0), 1 / (exponent - 1))
        return -distance if left else distance

    def turns(self, node: Node) -> tuple[float, ...]:
        exponent = float(node.attrs["exponent"])
        return (0.0,) if exponent > 0 and exponent % 2 == 0 else ()

    def domain(self, lower: Tensor, upper: Tensor, node: Node) -> Tensor | None:
        exponent, _ = number(node, "exponent", lower)
        if exponent == int(exponent):
            return None if exponent >= 0 else (lower > 0) | (upper < 0)
        return lower >= 0 if exponent > 0 else lower > 0
