"""First-order update rules with per-row state, for attacks that optimise over a penalty."""

from __future__ import annotations

import torch
from torch import Tensor

from verifier.attack.projections import along


class Adam:
    """Adam (Kingma & Ba 2015) for independent rows: `step` returns the update to subtract.

    Args:
        rate: step size, a number or one per row [R].
        never_falling: use the running maximum of the second moment (AMSGrad, Reddi et al. 2018).
    """

    def __init__(
        self,
        like: Tensor,
        rate: float | Tensor,
        *,
        beta1: float = 0.9,
        beta2: float = 0.999,
        never_falling: bool = False,
    ):
        self.first, self.second = torch.zeros_like(like), torch.zeros_like(like)
        self.rate = along(rate, like) if isinstance(rate, Tensor) else rate
        self.beta1, self.beta2, self.count = beta1, beta2, 0
        self.highest = torch.zeros_like(like) if never_falling else None

    def step(self, grad: Tensor, decay: float = 1.0) -> Tensor:
        """The update for gradients [R, *W] of a loss to minimise; `decay` scales the rate."""
        self.count += 1
        self.first.mul_(self.beta1).add_(grad, alpha=1 - self.beta1)
        self.second.mul_(self.beta2).addcmul_(grad, grad, value=1 - self.beta2)
        scale = decay * self.rate * (1 - self.beta2**self.count) ** 0.5 / (1 - self.beta1**self.count)
        spread = self.second
        if self.highest is not None:
            spread = self.highest = torch.maximum(self.highest, self.second)
        return scale * self.first / (spread.sqrt() + 1e-8)

    def narrow(self, keep: Tensor) -> None:
        """Forget rows outside keep [R]."""
        self.first, self.second = self.first[keep], self.second[keep]
        if self.highest is not None:
            self.highest = self.highest[keep]
        if isinstance(self.rate, Tensor):
            self.rate = self.rate[keep]
