"""Square: random search with squares of shrinking size, scores only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from verifier.attack.base import Attack
from verifier.attack.blackbox.square_patterns import Grid, sparse_proposal, sparse_start
from verifier.attack.gradient.pgd import require_budget
from verifier.attack.losses import Loss, named
from verifier.attack.model import Access
from verifier.attack.rows import Rows
from verifier.attack.task import Task

#: Numbers in the squares drawn at once, so that small ones cost a few operations for many proposals.
AHEAD = 2**16


@dataclass(frozen=True)
class Square(Attack):
    """Random search that changes one square at a time and keeps what raises the loss.

    In linf the start is random vertical stripes and a proposal sets a square to a corner of the
    ball, per channel. In l2 and l1 mass moves from one window to another.

    Args:
        steps: proposals (one query each, the start beside them).
        share: area of the first squares, as a share of the image; halved at fixed fractions of
            the budget of queries.
        image_shape: (C, H, W) of flattened images; other flat inputs are one row of pixels.
        loss: a name in losses.LOSSES or a loss function.
    Source: Andriushchenko et al. 2020, arXiv:1912.00049; l1: Croce & Hein 2021, arXiv:2103.01208.
    """

    steps: int = 5000
    restarts: int = 1
    share: float = 0.8
    image_shape: tuple[int, int, int] | None = None
    loss: str | Loss = "margin"

    needs: ClassVar[Access] = Access.SCORES
    norms: ClassVar[tuple[float, ...]] = (1.0, 2.0, float("inf"))

    def run(self, task: Task) -> None:
        require_budget(task, self.name)
        grid = Grid(task.space.start.shape[1:], self.image_shape)
        for _, rows in task.rounds(self.restarts):
            self._search(rows, grid)

    def _search(self, rows: Rows, grid: Grid) -> None:
        loss, shares = named(self.loss), [self._share_at(i) for i in range(self.steps)]
        trial = self._start(rows, grid)
        best = trial.clone()
        value = torch.full((len(rows),), -torch.inf, device=best.device, dtype=best.dtype)
        ahead: list[tuple[Tensor, Tensor]] = []
        for i in range(self.steps + 1):
            scores = rows.scores(trial)
            new = loss(scores, rows.label, rows.target)
            better = new > value  # never where it is NaN
            value = torch.where(better, new, value)
            moved = better.nonzero()[:, 0]
            best.index_copy_(0, moved, trial.index_select(0, moved))
            hit = rows.fooled(scores)
            if bool(hit.any()):
                rows.offer(trial, hit)
                keep = rows.undecided()
                if not bool(keep.any()):
                    return
                rows, best, value, ahead = rows.narrow(keep), best[keep], value[keep], []
            if i < self.steps:
                trial = self._propose(rows, grid, best, shares[i:], ahead)
        rows.settle(best, value)

    def _start(self, rows: Rows, grid: Grid) -> Tensor:
        if rows.p != float("inf"):
            return rows.project(sparse_start(rows, grid))
        shape = (len(rows), grid.channels, 1, grid.width)
        up = grid.flat(rows.task.signs(*shape).expand(-1, -1, grid.height, -1) > 0)
        return rows.project(torch.where(up, rows.upper, rows.lower))

    def _propose(
        self, rows: Rows, grid: Grid, best: Tensor, shares: list[float], ahead: list[tuple[Tensor, Tensor]]
    ) -> Tensor:
        """The next trial of every row; `ahead` holds what is drawn of later ones, which have `shares` of the image."""
        if rows.p != float("inf"):
            return rows.project(sparse_proposal(rows, grid, best, shares[0]))
        if not ahead:
            alike = next((n for n, share in enumerate(shares) if share != shares[0]), len(shares))
            ahead += _squares(rows, grid, grid.sides(shares[0]), alike)
        at, ends = ahead.pop()
        # only the windows are touched: late in the search they are a few pixels of a large image
        trial = best.flatten(1).scatter(1, at, ends).reshape(best.shape)
        return rows.project(trial) if rows.balls else trial

    def _share_at(self, i: int) -> float:
        """The paper's schedule for 10,000 queries, stretched to this budget."""
        done = i * 10000 // max(1, self.steps)
        halvings = sum(done > mark for mark in (10, 50, 200, 1000, 2000, 4000, 6000, 8000))
        return self.share / 2**halvings


def _squares(rows: Rows, grid: Grid, sides: tuple[int, int], steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Random squares for up to `steps` proposals: the features in each [R, F], and the ends of the box they go to."""
    steps = max(1, min(steps, AHEAD // (len(rows) * grid.channels * sides[0] * sides[1])))
    inside = grid.features(rows.task, steps * len(rows), *sides)
    up = (rows.task.integers(2, *inside.shape[:2], 1) == 1).expand_as(inside)
    at = inside.reshape(steps, len(rows), -1)
    low, high = (end.flatten(1).expand(steps, -1, -1).gather(2, at) for end in (rows.lower, rows.upper))
    return zip(at, torch.where(up.reshape(at.shape), high, low), strict=True)
