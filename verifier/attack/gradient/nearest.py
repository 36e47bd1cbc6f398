"""The least costly success of every row of a descent, kept without the bookkeeping of one offer a step."""

from __future__ import annotations

import torch
from torch import Tensor

from verifier.attack.projections import along
from verifier.attack.rows import Rows


class Nearest:
    """Successes of rows [R] while a descent runs; `offer` hands them to the task when it is over.

    Attributes:
        work: the least costly success of each row so far [R, *W]; cost: [R], inf where there is none.
    """

    def __init__(self, rows: Rows):
        self.rows, self.work = rows, rows.start
        self.cost = torch.full_like(rows.eps, torch.inf)

    def note(self, work: Tensor, success: Tensor, cost: Tensor) -> None:
        """Keep work [R, *W] where `success` [R] holds and its cost [R] is the least so far."""
        better = success & (cost < self.cost)
        self.cost = torch.where(better, cost, self.cost)
        self.work = torch.where(along(better, work), work, self.work)

    @property
    def found(self) -> Tensor:
        """bool [R]: rows with a success."""
        return self.cost.isfinite()

    def offer(self, cost: Tensor | None = None) -> None:
        """Record what was found, at this cost [R] (as in `Rows.offer`)."""
        self.rows.offer(self.work, self.found, cost)
