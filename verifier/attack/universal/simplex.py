"""The inner player of min-max attacks: weights on the simplex that favour what still resists."""

from __future__ import annotations

import torch
from torch import Tensor


def project_to_simplex(v: Tensor) -> Tensor:
    """Closest point to v [K] in {w >= 0, sum w = 1}, by sorting (Held et al. 1974)."""
    ordered = v.double().sort(descending=True).values
    excess = (ordered.cumsum(0) - 1) / torch.arange(1, len(v) + 1, device=v.device)
    last = int((ordered > excess).sum()) - 1
    return (v.double() - excess[last]).clamp_min(0).to(v)


class SimplexAscent:
    """max_w sum_i w_i F_i - (gamma / 2) ‖w - 1/K‖^2 over the simplex, one gradient step at a time.

    Args:
        count: K; gamma: > 0, pulls towards equal weights; rate: step length.
    Source: Wang et al. 2021, arXiv:1906.03563, eqs. 4-7.
    """

    def __init__(self, count: int, gamma: float, like: Tensor, rate: float = 0.1):
        self.gamma, self.rate = gamma, rate
        self.weights = torch.full((count,), 1.0 / count, device=like.device, dtype=like.dtype)

    def step(self, loss: Tensor) -> Tensor:
        """New weights [K] after seeing the attacker's losses F [K] (larger: resists more)."""
        pull = self.gamma * (self.weights - 1.0 / len(self.weights))
        self.weights = project_to_simplex(self.weights + self.rate * (loss - pull))
        return self.weights
