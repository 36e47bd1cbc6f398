"""Gelu, Silu and HardSwish: x times a smooth or hard step from 0 to 1.

All dip below 0 left of the origin and are convex in the middle. Gelu and Silu are concave in both
tails, HardSwish is straight there. Inflections and the minimum's place are found once, at import.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from verifier.graph.ir import Node
from verifier.ops.curve import LIBRARY, Curve
from verifier.ops.hull import Shape, Straight
from verifier.ops.rounding import tiny, unit

#: beyond this f is 0 or x to nearly working precision; only tightness depends on it
_TAIL = 24.0
#: entries of the table that inverts f'
_ENTRIES = 4096
_ROOT_HALF, _ROOT_TWO_PI = math.sqrt(0.5), math.sqrt(2 * math.pi)
#: the "tanh" Gelu is x * sigmoid(_OUTER * (x + _INNER * x^3))
_OUTER, _INNER = 2 * math.sqrt(2 / math.pi), 0.044715


def _root(f: Callable[[float], float], low: float, high: float) -> float:
    """A zero of f between low and high, where its signs differ, to the last bit."""
    rising = f(high) > 0
    for _ in range(80):
        middle = 0.5 * (low + high)
        low, high = (low, middle) if (f(middle) > 0) == rising else (middle, high)
    return 0.5 * (low + high)


class _Gated(Curve):
    """x * gate(x) with a smooth odd-symmetric gate: f(x) - x/2 is even."""

    def __init__(self) -> None:
        self._tables: dict[tuple[object, ...], tuple[Tensor, Tensor]] = {}  # a function of the key alone

    @abstractmethod
    def marks(self, node: Node) -> tuple[float, float]:
        """(inflection > 0, place of the minimum < 0)."""

    def shape(self, node: Node, like: Tensor) -> Shape:
        inflection, _ = self.marks(node)
        return Shape((-inflection, inflection), (-1, 1, -1), reach=_TAIL)

    def turns(self, node: Node) -> tuple[float, ...]:
        return (self.marks(node)[1],)

    def touch(self, slope: Tensor, piece: int, node: Node) -> Tensor:
        """f' has no inverse in closed form, but is monotone on each piece: interpolated from a table."""
        x, rises = self._table(piece, node, slope)
        k = torch.searchsorted(rises, slope.contiguous()).clamp(1, _ENTRIES - 1)
        width = rises[k] - rises[k - 1]
        share = (slope - rises[k - 1]) / torch.where(width > 0, width, 1.0)
        return torch.lerp(x[k - 1], x[k], share.clamp(0.0, 1.0))

    def _table(self, piece: int, node: Node, like: Tensor) -> tuple[Tensor, Tensor]:
        """(x, f'(x)) on piece `piece`, f' nondecreasing, in the precision and on the device of `like`."""
        key = (piece, *self.marks(node), like.dtype, like.device)
        if key not in self._tables:
            inflection, _ = self.marks(node)
            low, high = ((-_TAIL, -inflection), (-inflection, inflection), (inflection, _TAIL))[piece]
            x = torch.linspace(low, high, _ENTRIES, dtype=torch.float64)
            rises = self.curve(x, node)[1]
            if piece != 1:
                x, rises = x.flip(0), rises.flip(0)
            rises = torch.cummax(rises, 0).values  # rounding
            self._tables[key] = (x.to(like).contiguous(), rises.to(like).contiguous())
        return self._tables[key]


class Gelu(_Gated):
    """x * Phi(x), Phi the normal distribution ("none"), or its tanh approximation ("tanh")."""

    # measured: 1, 13 by the operator, 1, 40 where it is spelt out with Erf or Tanh
    deployed: ClassVar[tuple[float, float]] = (80.0, 160.0)

    def value(self, x: Tensor, node: Node) -> Tensor:
        return torch.nn.functional.gelu(x, approximate=node.attrs["approximate"])

    def curve(self, x: Tensor, node: Node) -> tuple[Tensor, Tensor]:
        if node.attrs["approximate"] == "tanh":
            return _gelu_tanh(x)
        normal = 0.5 * torch.special.erfc(x * -_ROOT_HALF)
        return _product(x, normal), normal + x * (torch.exp(-0.5 * x * x) / _ROOT_TWO_PI)

    def errors(self, x: Tensor, value: Tensor, slope: Tensor, node: Node) -> tuple[Tensor, Tensor]:
        """Rounding the exponent moves a tail by as many relative errors as the exponent is large."""
        scale = 2 * unit(x)
        if node.attrs["approximate"] == "tanh":
            exponent = (_OUTER * x.abs() * (1 + _INNER * x * x)).clamp(max=1000.0)
            bump = x.abs() * (1 + x * x) * torch.exp(-exponent)
        else:
            exponent = (0.5 * x * x).clamp(max=1000.0)
            bump = x.abs() * torch.exp(-exponent)
        tail = torch.where(x < 0, exponent, 0.0)
        relative = (LIBRARY + 4 * tail) * scale
        # the gate may underflow before x multiplies it
        lost = x.abs() * tiny(x)
        slope_error = (slope.abs() + 2 * bump) * relative + bump * exponent * (4 * scale) + lost
        return value.abs() * relative + lost, slope_error

    def deployed_error(self, lower: Tensor, upper: Tensor, node: Node, unit_roundoff: float) -> Tensor:
        """ONNX Runtime's float64 kernel of the "tanh" form keeps its constants in float32 (6e-9 measured)."""
        least = 2.0**-31 if node.attrs["approximate"] == "tanh" else 0.0
        return super().deployed_error(lower, upper, node, max(unit_roundoff, least))

    def marks(self, node: Node) -> tuple[float, float]:
        return _GELU_TANH if node.attrs["approximate"] == "tanh" else _GELU


class Silu(_Gated):
    """x * sigmoid(x)."""

    deployed: ClassVar[tuple[float, float]] = (16.0, 160.0)  # measured as x * Sigmoid(x): 4, 37.6

    def value(self, x: Tensor, node: Node) -> Tensor:
        return torch.nn.functional.silu(x)

    def curve(self, x: Tensor, node: Node) -> tuple[Tensor, Tensor]:
        gate = torch.sigmoid(x)
        return _product(x, gate), gate + x * gate * torch.sigmoid(-x)

    def errors(self, x: Tensor, value: Tensor, slope: Tensor, node: Node) -> tuple[Tensor, Tensor]:
        """The two terms of the slope cancel near the minimum."""
        scale = LIBRARY * 2 * unit(x)
        bump = x.abs() * torch.exp(-x.abs())
        lost = x.abs() * tiny(x)  # the gate may underflow before x multiplies it
        return value.abs() * scale + lost, (slope.abs() + 2 * bump) * scale + lost

    def marks(self, node: Node) -> tuple[float, float]:
        return _SILU


class HardSwish(Curve):
    """x * min(max(x/6 + 1/2, 0), 1): 0 up to -3, a parabola, x from 3 on."""

    deployed: ClassVar[tuple[float, float]] = (16.0, 8.0)  # measured: 1, 1.51

    def value(self, x: Tensor, node: Node) -> Tensor:
        return torch.nn.functional.hardswish(x)

    def curve(self, x: Tensor, node: Node) -> tuple[Tensor, Tensor]:
        gate = (x + 3).clamp(0.0, 6.0) / 6
        parabola = (x + 1.5) / 3
        slope = torch.where(x < -3, 0.0, torch.where(x > 3, 1.0, parabola))
        return torch.where(x >= 3, x, _product(x, gate)), slope

    def errors(self, x: Tensor, value: Tensor, slope: Tensor, node: Node) -> tuple[Tensor, Tensor]:
        """A few roundings, none outside the parabola."""
        curved = (x.abs() < 3).to(x.dtype)
        return value.abs().clamp(max=3.0) * curved * (8 * unit(x)), (slope.abs() + 1) * (8 * unit(x))

    def shape(self, node: Node, like: Tensor) -> Shape:
        return Shape((-3.0, 3.0), (Straight(0.0, 0.0), 1, Straight(1.0, 0.0)))

    def touch(self, slope: Tensor, piece: int, node: Node) -> Tensor:
        return 3 * slope - 1.5

    def turns(self, node: Node) -> tuple[float, ...]:
        return (-1.5,)


def _product(x: Tensor, gate: Tensor) -> Tensor:
    """x * gate, 0 at -inf."""
    return torch.where(gate == 0, torch.zeros_like(gate), x * gate)


def _gelu_tanh(x: Tensor) -> tuple[Tensor, Tensor]:
    inner = _OUTER * x * (1 + _INNER * x * x)
    gate, rest = torch.sigmoid(inner), torch.sigmoid(-inner)
    rate = _OUTER * (1 + 3 * _INNER * x * x)
    return _product(x, gate), gate + _product(_product(x * rate, gate), rest)


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def _gelu_tanh_slopes(x: float) -> tuple[float, float]:
    """First and second derivative of the "tanh" Gelu."""
    gate = _sigmoid(_OUTER * (x + _INNER * x**3))
    bell = gate * (1 - gate)
    rate, bend = _OUTER * (1 + 3 * _INNER * x * x), _OUTER * 6 * _INNER * x
    first = gate + x * rate * bell
    second = 2 * rate * bell + x * bell * (bend + rate * rate * (1 - 2 * gate))
    return first, second


_GELU = (
    math.sqrt(2.0),
    _root(lambda x: 0.5 * math.erfc(-x * _ROOT_HALF) + x * math.exp(-0.5 * x * x) / _ROOT_TWO_PI, -1.4, -0.1),
)
_GELU_TANH = (_root(lambda x: _gelu_tanh_slopes(x)[1], 0.5, 2.5), _root(lambda x: _gelu_tanh_slopes(x)[0], -1.4, -0.1))
_SILU = (
    _root(lambda x: x * math.tanh(0.5 * x) - 2, 1.0, 4.0),
    _root(lambda x: 1 + x * (1 - _sigmoid(x)), -2.3, -0.1),
)
