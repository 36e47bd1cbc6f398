"""What detectors that search for triggers share: settings of the descent, masked inputs, one step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

#: Lower and upper end of a valid range, each a number or an array that broadcasts to an input.
Ends = tuple[np.ndarray | float, np.ndarray | float]


@dataclass(frozen=True)
class Descent:
    """Settings every such search has.

    Attributes:
        steps: of Adam.
        learning_rate: of Adam on the unconstrained mask and pattern.
        seed: of starts and batches.
    """

    steps: int = 300
    learning_rate: float = 0.1
    seed: int = 0


class Pattern:
    """Masks in [0, 1] and patterns in a valid range, both from unconstrained numbers through a sigmoid."""

    def __init__(self, valid: Ends, shape: tuple[int, ...], device: torch.device):
        lower, upper = (torch.tensor(np.broadcast_to(end, shape).copy(), device=device) for end in valid)
        self.lower, self.span = lower, upper - lower

    def read(self, raw_mask: Tensor, raw_pattern: Tensor) -> tuple[Tensor, Tensor]:
        """(mask, pattern)."""
        return torch.sigmoid(raw_mask), self.lower + self.span * torch.sigmoid(raw_pattern)


def lay_over(x: Tensor, mask: Tensor, pattern: Tensor) -> Tensor:
    """x where the mask is 0, the pattern where it is 1."""
    return x * (1 - mask) + pattern * mask


def step_down(optimizer: torch.optim.Optimizer, free: Sequence[Tensor], total: Tensor) -> None:
    """One step of the optimizer along the gradient of `total` in `free` alone; the model gathers no gradients."""
    for part, gradient in zip(free, torch.autograd.grad(total, list(free)), strict=True):
        part.grad = gradient
    optimizer.step()
