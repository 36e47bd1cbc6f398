"""Elu, Selu and Celu: outer * (exp(x / width) - 1) for x < 0, a straight line for x >= 0.

Elu: outer = alpha, width = 1, slope 1. Selu: outer = gamma*alpha, width = 1, slope gamma.
Celu: outer = width = alpha, slope 1, hence no kink.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.graph.ir import Node
from verifier.ops.curve import LIBRARY, Curve
from verifier.ops.hull import Shape, Straight
from verifier.ops.rounding import number, tiny, unit


@dataclass(frozen=True)
class _Form:
    """outer, width and right slope, and whether the right slope is stored exactly."""

    outer: float
    width: float
    slope: float
    exact: bool = True


class _ExponentialLinear(Curve):
    """The three share everything but their constants."""

    @abstractmethod
    def form(self, node: Node, like: Tensor) -> _Form:
        """The constants; their own rounding is within the errors below."""

    def value(self, x: Tensor, node: Node) -> Tensor:
        return self.curve(x, node)[0]

    def curve(self, x: Tensor, node: Node) -> tuple[Tensor, Tensor]:
        form = self.form(node, x)
        # where(x < 0) keeps a large positive x from overflowing in the branch not taken
        exponent = torch.where(x < 0, x, torch.zeros_like(x)) / form.width
        grown = torch.expm1(exponent)
        left = x < 0 if form.outer else x <= 0
        return (
            torch.where(left, form.outer * grown, form.slope * x),
            torch.where(x <= 0, (form.outer / form.width) * torch.exp(exponent), form.slope),
        )

    def errors(self, x: Tensor, value: Tensor, slope: Tensor, node: Node) -> tuple[Tensor, Tensor]:
        """x / width is rounded, and so may the constants be: a relative error of the exponent."""
        form = self.form(node, x)
        scale = 2 * unit(x)
        exponent = (x.clamp(max=0.0) / form.width).clamp(-1000.0, 1000.0).abs()
        # the argument's error e*|t| changes expm1(t) by at most e*|t|*max(1, exp(t))
        moved = exponent * torch.exp(x.clamp(max=0.0) / form.width) * (4 * scale * abs(form.outer))
        lost = abs(form.outer) * max(1.0, abs(1 / form.width)) * tiny(x)  # underflow before the factor
        return value.abs() * (LIBRARY * scale) + moved + lost, slope.abs() * ((LIBRARY + 4 * exponent) * scale) + lost

    def shape(self, node: Node, like: Tensor) -> Shape:
        form = self.form(node, like)
        right = Straight(form.slope, 0.0, form.exact)
        if form.outer == 0.0:
            return Shape((0.0,), (Straight(0.0, 0.0), right))
        return Shape((0.0,), (1 if form.outer > 0 else -1, right))

    def touch(self, slope: Tensor, piece: int, node: Node) -> Tensor:
        form = self.form(node, slope)
        return form.width * torch.log((slope * (form.width / form.outer)).clamp(min=0.0))

    def allowance(self, node: Node) -> tuple[float, float]:
        """Deployed as exp(x) - 1, whose cancellation costs u * |outer|; measured: 4, |outer|."""
        attrs = node.attrs
        return 16.0, 4 * abs(float(attrs["alpha"]) * float(attrs.get("gamma", 1.0)))

    def turns(self, node: Node) -> tuple[float, ...]:
        return (0.0,)


class Elu(_ExponentialLinear):
    """alpha * (exp(x) - 1) for x < 0, x otherwise."""

    def form(self, node: Node, like: Tensor) -> _Form:
        return _Form(number(node, "alpha", like)[0], 1.0, 1.0)


class Selu(_ExponentialLinear):
    """gamma * alpha * (exp(x) - 1) for x < 0, gamma * x otherwise."""

    def form(self, node: Node, like: Tensor) -> _Form:
        gamma, error = number(node, "gamma", like)
        return _Form(float(node.attrs["gamma"]) * float(node.attrs["alpha"]), 1.0, gamma, error == 0.0)


class Celu(_ExponentialLinear):
    """alpha * (exp(x / alpha) - 1) for x < 0, x otherwise."""

    def form(self, node: Node, like: Tensor) -> _Form:
        alpha = number(node, "alpha", like)[0]
        return _Form(alpha, alpha, 1.0)
