"""Clip and HardSigmoid: flat, a straight slope, flat again.

The hull of such a ramp over an interval has at most three corners; ops/hull.py finds its end
slopes and ops/curve.py the offsets. On an interval inside one piece the line is that piece.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from verifier.graph.ir import Node
from verifier.ops.curve import Curve
from verifier.ops.hull import Shape, Straight
from verifier.ops.rounding import attribute, number, unit


class Clip(Curve):
    """min(max(x, lower), upper); either bound may be infinite, or the two in the wrong order."""

    def value(self, x: Tensor, node: Node) -> Tensor:
        return self.curve(x, node)[0]

    def curve(self, x: Tensor, node: Node) -> tuple[Tensor, Tensor]:
        low, high, _, _ = _levels(node, x)
        return torch.minimum(torch.maximum(x, low), high), ((x > low) & (x < high)).to(x.dtype)

    def errors(self, x: Tensor, value: Tensor, slope: Tensor, node: Node) -> tuple[Tensor, Tensor]:
        """Only what storing the two bounds changed."""
        _, _, error_low, error_high = _levels(node, x)
        error = torch.maximum(*(torch.as_tensor(e, dtype=x.dtype, device=x.device) for e in (error_low, error_high)))
        return torch.zeros_like(value) + error, torch.zeros_like(slope)

    def shape(self, node: Node, like: Tensor) -> Shape:
        low, high, error_low, error_high = _levels(node, like)
        flat_low = Straight(0.0, low, exact=_is_zero(error_low))
        flat_high = Straight(0.0, high, exact=_is_zero(error_high))
        middle = Straight(1.0, 0.0, exact=flat_low.exact and flat_high.exact)
        return Shape((low, high), (flat_low, middle, flat_high))

    def touch(self, slope: Tensor, piece: int, node: Node) -> Tensor:
        raise AssertionError("Clip has no curved piece")

    def deployed_error(self, lower: Tensor, upper: Tensor, node: Node, unit_roundoff: float) -> Tensor:
        """Zero: a comparison does not round."""
        return torch.zeros_like(lower)


def _levels(node: Node, like: Tensor) -> tuple[Tensor, Tensor, float | Tensor, float | Tensor]:
    """Both bounds as tensors, the lower one at most the upper, and the errors of storing them."""
    (low, error_low), (high, error_high) = attribute(node, "lower", like), attribute(node, "upper", like)
    high = torch.as_tensor(high, dtype=like.dtype, device=like.device)
    low = torch.minimum(torch.as_tensor(low, dtype=like.dtype, device=like.device), high)
    return low, high, error_low, error_high


def _is_zero(error: float | Tensor) -> bool:
    return isinstance(error, float) and error == 0.0


class HardSigmoid(Curve):
    """min(max(alpha*x + beta, 0), 1)."""

    least: ClassVar[float] = 0.0
    greatest: ClassVar[float] = 1.0

    def value(self, x: Tensor, node: Node) -> Tensor:
        return self.curve(x, node)[0]

    def curve(self, x: Tensor, node: Node) -> tuple[Tensor, Tensor]:
        alpha, beta = number(node, "alpha", x)[0], number(node, "beta", x)[0]
        level = alpha * x + beta if alpha else torch.zeros_like(x) + beta
        return level.clamp(0.0, 1.0), ((level > 0) & (level < 1)).to(x.dtype) * alpha

    def errors(self, x: Tensor, value: Tensor, slope: Tensor, node: Node) -> tuple[Tensor, Tensor]:
        """Rounding of alpha*x + beta and of the kinks' places; none where the level is surely cut off."""
        alpha, error_alpha = number(node, "alpha", x)
        beta, error_beta = number(node, "beta", x)
        x = x.clamp(-1e30, 1e30)  # cut off long before; keeps inf - inf away
        ramp = alpha * x
        error = (
            (ramp.abs() + (abs(beta) + 1)) * (16 * unit(x))
            + (x.abs() * error_alpha if error_alpha else 0.0)
            + error_beta
        )
        level = ramp + beta
        around = (level + error).clamp(0.0, 1.0) - (level - error).clamp(0.0, 1.0)
        return torch.minimum(error, around * 2), torch.zeros_like(slope)

    def shape(self, node: Node, like: Tensor) -> Shape:
        alpha, beta = float(node.attrs["alpha"]), float(node.attrs["beta"])
        if alpha == 0.0:
            return Shape((), (Straight(0.0, min(max(beta, 0.0), 1.0), exact=False),))
        zero, one = Straight(0.0, 0.0, exact=False), Straight(0.0, 1.0, exact=False)
        middle = Straight(alpha, beta, exact=False)  # the kinks, beta/alpha apart, are stored rounded
        if alpha > 0:
            return Shape((-beta / alpha, (1 - beta) / alpha), (zero, middle, one))
        return Shape(((1 - beta) / alpha, -beta / alpha), (one, middle, zero))

    def allowance(self, node: Node) -> tuple[float, float]:
        """Two roundings of terms up to 1 + |beta| in size where the level is not cut off; measured: 1, 0.25."""
        return 4.0, 4.0 + 8 * abs(float(node.attrs["beta"]))

    def touch(self, slope: Tensor, piece: int, node: Node) -> Tensor:
        raise AssertionError("HardSigmoid has no curved piece")
