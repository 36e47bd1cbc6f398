"""What a row keeps of a convex quadratic form in the inputs, until it is known where its tangent serves best.

A pass may find a row at least A @ x + d + t^T S t with S positive semidefinite, t in [-1, 1]^n the inputs in
half-widths from the middle of their box. The tangent of the last term at any t0 keeps that linear:

    t^T S t >= 2 t0^T S t - t0^T S t0.

t0 = 0 gives it away; the minimiser of the whole, found by coordinate descent, loses nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

#: Sweeps over the coordinates in search of the minimiser.
SWEEPS = 3


@dataclass(frozen=True)
class Cube:
    """Boxes as images of [-1, 1]^n: x = middle + radius * t covers them.

    Attributes:
        middle, radius: float64 [B, N_in]; moving: the n inputs of nonzero width in some box.
    """

    middle: Tensor
    radius: Tensor
    moving: Tensor

    @classmethod
    def of(cls, lower: Tensor, upper: Tensor) -> Cube:
        """From boxes [B, N_in]."""
        lower, upper = lower.double(), upper.double()
        middle = lower + 0.5 * (upper - lower)
        radius = torch.maximum(upper - middle, middle - lower) * (1 + 2.0**-50)
        return cls(middle, radius, (lower < upper).any(0).nonzero().squeeze(1))

    @property
    def magnitude(self) -> Tensor:
        """At least |x|, up to rounding."""
        return self.middle.abs() + self.radius


@dataclass(frozen=True)
class Curvature:
    """t^T matrix t of B boxes and S rows, float64 [B, S, n, n].

    Positive semidefinite up to a rounding that whoever made it has charged four times over.
    """

    cube: Cube
    matrix: Tensor

    def plus(self, other: Curvature | None) -> Curvature:
        """The sum; a sum of tangents is charged as they are."""
        return self if other is None else Curvature(self.cube, self.matrix + other.matrix)

    def tangent(self, coeffs: Tensor, own_unit: float) -> tuple[Tensor, Tensor, Tensor]:
        """The tangent where coeffs @ x plus this is smallest on the boxes.

        Args:
            coeffs: [B, S, N_in]; own_unit: its unit round-off.
        Returns:
            coefficients to add, [B, S, N_in] in the same dtype; offset and error, float64 [B, S].
        """
        moving, n = self.cube.moving, self.matrix.shape[-1]
        radius, middle = (v[:, moving].unsqueeze(1) for v in (self.cube.radius, self.cube.middle))
        t = self._minimiser(coeffs[..., moving].double() * radius)
        pulled = (self.matrix @ t.unsqueeze(-1)).squeeze(-1)
        slope = torch.where(radius > 0, 2 * pulled / torch.where(radius > 0, radius, 1.0), 0.0)
        slope = slope.to(coeffs.dtype)
        stored = slope.double()
        value = (pulled * t).sum(-1)
        centre = stored * middle
        missed = (2 * pulled - stored * radius).abs().sum(-1)
        size = self.matrix.abs().sum((-2, -1)) + (stored * radius).abs().sum(-1) + centre.abs().sum(-1)
        added = torch.zeros_like(coeffs)
        added[..., moving] = slope
        reach = (coeffs.double().abs() + added.double().abs()) @ self.cube.magnitude.unsqueeze(-1)
        error = missed + (4 * n + 32) * 2.0**-52 * size + 4 * own_unit * reach.squeeze(-1)
        return added, -value - centre.sum(-1), error

    def _minimiser(self, slope: Tensor) -> Tensor:
        """About argmin over [-1, 1]^n of slope @ t + t^T matrix t."""
        t = torch.zeros_like(slope)
        for _ in range(SWEEPS):
            for j in range(slope.shape[-1]):
                row, own = self.matrix[..., j, :], self.matrix[..., j, j]
                rest = slope[..., j] + 2 * ((row * t).sum(-1) - own * t[..., j])
                t[..., j] = (-rest / (2 * own)).nan_to_num(nan=0.0, posinf=1.0, neginf=-1.0).clamp(-1.0, 1.0)
        return t
