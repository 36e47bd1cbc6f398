"""Rows across an elementwise node: the plane on each coefficient's side, as one step with its gradient."""

from __future__ import annotations

import torch
from torch import Tensor


class RelaxStep(torch.autograd.Function):
    """(A, planes) -> A per input and the offset, choosing the lower plane where A >= 0.

    One Function instead of a chain of elementwise operations keeps only A for the gradient.
    """

    @staticmethod
    def forward(ctx, coeffs, lower_slope, lower_offset, upper_slope, upper_offset):  # type: ignore[no-untyped-def]
        positive = coeffs.clamp(min=0)
        negative = coeffs.clamp(max=0)
        ctx.save_for_backward(coeffs, lower_slope, lower_offset, upper_slope, upper_offset)
        result = positive * lower_slope + negative * upper_slope
        offset = dot(positive, lower_offset) + dot(negative, upper_offset)
        return result, offset

    @staticmethod
    def backward(ctx, grad_result, grad_offset):  # type: ignore[no-untyped-def]
        coeffs, lower_slope, lower_offset, upper_slope, upper_offset = ctx.saved_tensors
        at_least = coeffs >= 0
        g = grad_offset.to(coeffs.dtype).reshape(*grad_offset.shape, *([1] * (coeffs.ndim - 2)))
        grad_coeffs = None
        if ctx.needs_input_grad[0]:
            grad_coeffs = grad_result * torch.where(at_least, lower_slope, upper_slope)
            grad_coeffs = grad_coeffs + g * torch.where(at_least, lower_offset, upper_offset)
        positive, negative = coeffs.clamp(min=0), coeffs.clamp(max=0)
        grads = []
        for index, (part, factor) in enumerate(
            ((positive, grad_result), (positive, g), (negative, grad_result), (negative, g)), start=1
        ):
            shape = ctx.saved_tensors[index].shape
            grads.append((part * factor).sum_to_size(shape) if ctx.needs_input_grad[index] else None)
        return grad_coeffs, *grads


def dot(coeffs: Tensor, offset: Tensor) -> Tensor:
    """sum(coeffs * offset) over the node's axes in float64; infinite offsets count only where used."""
    product = coeffs * offset
    flat = product.flatten(2)
    total = flat.sum(-1, dtype=torch.float64)
    if torch.isfinite(total).all():
        return total
    return torch.where(coeffs == 0, 0.0, product).flatten(2).sum(-1, dtype=torch.float64)
