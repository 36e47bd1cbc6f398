"""Rows across an elementwise node: the plane on each coefficient's side, as one step with its gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from verifier.kernels.fused import LineArrays, relax_step
from verifier.kernels.native import kernels_for
from verifier.ops.base import may_hold

#: Coefficients on the CPU from which the kernel's call costs less than it saves; it is some ten times as fast.
WORTH_A_CALL = 1 << 14


class RelaxStep(torch.autograd.Function):
    """(A, planes) -> A per input and the offset, choosing the lower plane where A >= 0.

    One Function instead of a chain of elementwise operations keeps only A for the gradient; as a kernel it is
    one read and one write of A.

    Args:
        coeffs: [B, S, *shape]; slopes and offsets: [B, 1 or S, *shape].
    """

    @staticmethod
    def forward(ctx, coeffs, lower_slope, lower_offset, upper_slope, upper_offset):  # type: ignore[no-untyped-def]
        planes = (lower_slope, lower_offset, upper_slope, upper_offset)
        ctx.save_for_backward(coeffs, *planes)
        return fused_step(coeffs, *planes) if takes_kernel(coeffs) else plain_step(coeffs, *planes)

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


def takes_kernel(coeffs: Tensor) -> bool:
    """Whether the step is the compiled kernel's: where the build has it, and on the CPU where the rows are long."""
    return (coeffs.is_cuda or coeffs.numel() >= WORTH_A_CALL) and kernels_for(coeffs.device.type)


def plain_step(
    coeffs: Tensor, lower_slope: Tensor, lower_offset: Tensor, upper_slope: Tensor, upper_offset: Tensor
) -> tuple[Tensor, Tensor]:
    """The step in torch's own operations; the offset's rounding is charged with the node (`element_slack`)."""
    positive, negative = coeffs.clamp(min=0), coeffs.clamp(max=0)
    result = positive * lower_slope + negative * upper_slope
    return result, dot(positive, lower_offset) + dot(negative, upper_offset)


def fused_step(
    coeffs: Tensor, lower_slope: Tensor, lower_offset: Tensor, upper_slope: Tensor, upper_offset: Tensor
) -> tuple[Tensor, Tensor]:
    """The step as one kernel, whose offset comes with the rounding of its sum already taken off."""
    rows = coeffs.flatten(2)
    b, _, n = rows.shape
    planes = (lower_slope, lower_offset, upper_slope, upper_offset)
    lines = LineArrays(
        *(p.flatten(2).squeeze(1).expand(b, n) if p.shape[1] == 1 else p.flatten(2).expand(rows.shape) for p in planes)
    )
    result, offset, loss = relax_step(rows, lines, threads=torch.get_num_threads())  # `element_slack` charges z
    return result.reshape(coeffs.shape), offset - loss


def dot(coeffs: Tensor, offset: Tensor) -> Tensor:
    """sum(coeffs * offset) over the node's axes in float64; infinite offsets count only where used."""
    return sum_of_used(coeffs, coeffs * offset)


def sum_of_used(coeffs: Tensor, products: Tensor) -> Tensor:
    """Sum of products over the node's axes in float64, without those of coefficients that are 0.

    Args:
        coeffs, products: [B, S, *shape].
    """
    total = products.flatten(2).sum(-1, dtype=torch.float64)
    if may_hold(~torch.isfinite(total)):
        return torch.where(coeffs == 0, 0.0, products).flatten(2).sum(-1, dtype=torch.float64)
    return total
