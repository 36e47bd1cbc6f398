"""Exhaustive search over a grid of transformation parameters."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import ClassVar

import torch

from verifier.attack.base import Attack
from verifier.attack.model import Access
from verifier.attack.task import Task
from verifier.errors import SpecError


@dataclass(frozen=True)
class GridSearch(Attack):
    """Every combination of `points` values per parameter, nearest to the identity first.

    Gradients mislead on rotations and shifts, where the loss is full of local maxima; a grid does not.

    Args:
        points: values per parameter; the number of queries is points ** parameters.
        limit: refuse grids with more points than this.
    Source: Engstrom et al. 2019, arXiv:1712.02779.
    """

    points: int = 11
    limit: int = 100_000

    needs: ClassVar[Access] = Access.LABELS
    norms: ClassVar[tuple[float, ...]] = (float("inf"),)

    def run(self, task: Task) -> None:
        space = task.space
        dimensions = space.start[0].numel()
        if dimensions > 12 or self.points**dimensions > self.limit:
            raise SpecError(
                f"grid search: {self.points} points in {dimensions} dimensions are too many (limit {self.limit}); "
                "lower `points` or search fewer parameters"
            )
        share = torch.linspace(0, 1, self.points, device=task.device, dtype=task.dtype)
        grid = torch.tensor(
            list(itertools.product(share.tolist(), repeat=dimensions)), device=task.device, dtype=task.dtype
        )
        low, high = space.ball_lower[0].flatten(), space.ball_upper[0].flatten()
        away = (low + grid * (high - low) - space.start[0].flatten()).norm(dim=1)
        for point in grid[away.argsort(stable=True)]:
            rows = task.rows(task.open_index())
            if not len(rows):
                return
            work = rows.lower + point.reshape(rows.lower[:1].shape) * (rows.upper - rows.lower)
            rows.offer(work, rows.achieved(rows.predictions(work)))
