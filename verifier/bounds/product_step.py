"""Rows across a product while its planes are being optimised: one pass, and its gradient by hand.

Of the two planes of `product_planes` a row meets only the one on its side, so the planes need not be
made. What comes out is for climbing only: without the offset's margin it is no claim.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.bounds.relax_step import sum_of_used


@dataclass(frozen=True)
class FreeProduct:
    """x * y on a box under the parameter `share`, which serves the plane below as well as the one above.

    share: [B, S, *shape] in [0, 1]; x, y: their lower and upper bounds, [B or 1, 1, *shape] each.
    """

    share: Tensor
    x: tuple[Tensor, Tensor]
    y: tuple[Tensor, Tensor]

    def step(self, coeffs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Coefficients [B, S, *shape] on x * y -> those on x and y, and the offset float64 [B, S]."""
        return _ProductStep.apply(coeffs, self.share, *self.x, *self.y)


class _ProductStep(torch.autograd.Function):
    """With (v, w) = (yl, yu) below and (yu, yl) above:

    x y >= or <= (w + t (v - w)) x + (xu + t (xl - xu)) y - (xu w + t (xl v - xu w)).
    """

    @staticmethod
    def forward(ctx, coeffs, share, xl, xu, yl, yu):  # type: ignore[no-untyped-def]
        below = coeffs >= 0
        first, change = torch.where(below, yu, yl), torch.where(below, yl - yu, yu - yl)
        slope_x = torch.addcmul(first, share, change)
        slope_y = torch.addcmul(xu, share, xl - xu)
        start, turn = torch.where(below, xu * yu, xu * yl), torch.where(below, xl * yl - xu * yu, xl * yu - xu * yl)
        offset = torch.addcmul(start, share, turn)
        ctx.save_for_backward(coeffs, slope_x, slope_y, offset, change, xl - xu, turn)
        return coeffs * slope_x, coeffs * slope_y, -sum_of_used(coeffs, coeffs * offset)

    @staticmethod
    def backward(ctx, grad_x, grad_y, grad_offset):  # type: ignore[no-untyped-def]
        coeffs, slope_x, slope_y, offset, change, width, turn = ctx.saved_tensors
        g = grad_offset.to(coeffs.dtype).reshape(*grad_offset.shape, *([1] * (coeffs.ndim - 2)))
        grad_coeffs = grad_share = None
        if ctx.needs_input_grad[0]:
            grad_coeffs = (grad_x * slope_x).addcmul_(grad_y, slope_y).addcmul_(g, offset, value=-1.0)
        if ctx.needs_input_grad[1]:
            grad_share = (grad_x * change).addcmul_(grad_y, width).addcmul_(g, turn, value=-1.0).mul_(coeffs)
        return grad_coeffs, grad_share, None, None, None, None
