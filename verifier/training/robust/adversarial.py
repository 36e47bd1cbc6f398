"""Adversarial training and TRADES as batch losses for `train.train`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from verifier.errors import SpecError
from verifier.training.predict import frozen
from verifier.training.train import BatchLoss


@dataclass(frozen=True)
class Inner:
    """The attack that training runs on every batch, in a box around each row.

    Attributes:
        radius: largest change of a value, data's units.
        valid: range of the inputs, each end a number or [*shape].
        steps: signed gradient steps of length 2.5 radius / steps, from a random start.
    """

    radius: float
    valid: tuple[np.ndarray | float, np.ndarray | float] = (0.0, 1.0)
    steps: int = 7

    def __post_init__(self) -> None:
        if not (self.radius > 0 and self.steps >= 1):
            raise SpecError(f"adversarial training: radius and steps must be positive, got {self.radius}, {self.steps}")


def ascend(
    model: nn.Module, x: Tensor, gain: Callable[[Tensor], Tensor], inner: Inner, generator: torch.Generator
) -> Tensor:
    """Inputs in the box of radius `inner.radius` around x [n, *shape], within the valid range, where `gain` is large.

    Args:
        gain: scalar of the logits, to be maximised.
    """
    lower, upper = (torch.as_tensor(end, dtype=x.dtype, device=x.device) for end in inner.valid)
    low, high = torch.maximum(x - inner.radius, lower), torch.minimum(x + inner.radius, upper)
    start = (2 * torch.rand(x.shape, generator=generator) - 1).to(x)
    moved = torch.minimum(torch.maximum(x + inner.radius * start, low), high)
    with frozen(model):
        for _ in range(inner.steps):
            moved = moved.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(gain(model(moved)), moved)
            moved = moved.detach() + 2.5 * inner.radius / inner.steps * gradient.sign()
            moved = torch.minimum(torch.maximum(moved, low), high)
    return moved.detach()


def adversarial(inner: Inner) -> BatchLoss:
    """Cross-entropy at the worst input the inner attack finds. Source: Madry et al. 2018, arXiv:1706.06083."""

    def loss(model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        return functional.cross_entropy(
            model(ascend(model, x, lambda z: functional.cross_entropy(z, y), inner, generator)), y
        )

    return loss


def trades(inner: Inner, beta: float = 6.0) -> BatchLoss:
    """Clean cross-entropy plus beta * KL(f(x) || f(x')), x' maximising that divergence.

    Source: Zhang et al. 2019, arXiv:1901.08573.
    """
    if not beta >= 0:
        raise SpecError(f"TRADES: expected beta >= 0, got {beta}")

    def loss(model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        with torch.no_grad():
            reference = model(x).log_softmax(dim=1)

        def divergence(z: Tensor, clean: Tensor) -> Tensor:
            return functional.kl_div(z.log_softmax(dim=1), clean, log_target=True, reduction="batchmean")

        moved = ascend(model, x, lambda z: divergence(z, reference), inner, generator)
        clean = model(x)
        return functional.cross_entropy(clean, y) + beta * divergence(model(moved), clean.log_softmax(dim=1))

    return loss
