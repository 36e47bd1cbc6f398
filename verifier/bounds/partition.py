"""Weights that sum to one: what all of them have in common costs nothing to bound.

The weights p of one softmax satisfy sum_j p_j = 1, which relaxing each of them on its own forgets. So
sum_j a_j p_j = mu + sum_j (a_j - mu) p_j for any mu, and only the differences meet the relaxations.
In the terms of a linear program mu is the multiplier of that equation.
"""

from __future__ import annotations

import torch
from torch import Tensor


def common_part(coeffs: Tensor, width: Tensor) -> Tensor:
    """The mu that minimises sum_j width_j |a_j - mu|, the weighted median along the last axis.

    A relaxation's gap grows with the width of what it bounds, so this is about what it costs least with.

    Args:
        coeffs: [B, S, ..., K]; width: [B or 1, ..., K], at least 0.
    Returns:
        [B, S, ..., 1], one of the coefficients, differentiable in them.
    """
    order = coeffs.detach().argsort(-1)
    weight = width.unsqueeze(1).expand_as(coeffs).gather(-1, order).cumsum(-1)
    first = (weight < 0.5 * weight[..., -1:]).sum(-1, keepdim=True).clamp(max=coeffs.shape[-1] - 1)
    mu = coeffs.gather(-1, order.gather(-1, first))
    return torch.where(torch.isfinite(mu), mu, 0.0)
