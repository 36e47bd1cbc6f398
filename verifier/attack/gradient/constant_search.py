"""The binary search on the trade-off constant that penalty attacks share, one constant a sample."""

from __future__ import annotations

import torch
from torch import Tensor


class ConstantSearch:
    """c for each row: bisected between the largest failure and the smallest success, and multiplied
    by ten while no success is known.

    Args:
        rows: R. initial: first constant. highest: constants stop growing here.
    Source: Carlini & Wagner 2017, arXiv:1608.04644.
    """

    def __init__(self, rows: int, initial: float, like: Tensor, highest: float = 1e10):
        self.constant = torch.full((rows,), initial, device=like.device, dtype=like.dtype)
        self.low = torch.zeros_like(self.constant)
        self.high = torch.full_like(self.constant, torch.inf)
        self.highest = highest

    def update(self, success: Tensor) -> None:
        """Book whether each row [R] succeeded with its constant, and choose the next."""
        self.high = torch.where(success, torch.minimum(self.high, self.constant), self.high)
        self.low = torch.where(success, self.low, torch.maximum(self.low, self.constant))
        middle = (self.low + self.high) / 2
        self.constant = torch.where(self.high.isfinite(), middle, self.constant * 10).clamp_max(self.highest)
