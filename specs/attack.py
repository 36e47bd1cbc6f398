"""A plain gradient attack, to choose radii: independent of the verifier on purpose."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def succeeds(module: nn.Module, image: Tensor, label: int, target: int | None, radius: float) -> bool:
    """True when projected gradient descent finds a misclassified image (or one scored as `target`).

    Args:
        image: [*shape], values in [0, 1]; radius: per pixel.
    """
    generator = torch.Generator().manual_seed(label)
    lower, upper = (image - radius).clamp(0, 1), (image + radius).clamp(0, 1)
    start = torch.rand((16, *image.shape), generator=generator)
    x = lower + (upper - lower) * torch.cat([start.round(), start, torch.full_like(start[:1], 0.5)])
    for step in range(60):
        x = x.detach().requires_grad_()
        scores = module(x)
        rivals = scores.clone()
        rivals[:, label] = -torch.inf
        rival = rivals.max(dim=1).values if target is None else scores[:, target]
        margin = scores[:, label] - rival
        if bool((margin <= -1e-4).any()):
            return True
        (gradient,) = torch.autograd.grad(margin.sum(), x)
        length = 0.5 * radius * (1 - step / 60) + 0.002
        x = torch.minimum(torch.maximum(x - length * gradient.sign(), lower), upper)
    return False


def smallest_radius(module: nn.Module, image: Tensor, label: int, target: int | None = None) -> float:
    """The radius, to about 0.002, from which the attack succeeds; 0.8 if it never does."""
    low, high = 0.0, 0.8
    while high - low > 0.002:
        middle = (low + high) / 2
        if succeeds(module, image, label, target, middle):
            high = middle
        else:
            low = middle
    return high
