"""One-pixel (few-pixel) attack by differential evolution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from verifier.attack.base import Attack
from verifier.attack.blackbox.square_patterns import Grid
from verifier.attack.gradient.pgd import require_budget
from verifier.attack.losses import margin
from verifier.attack.model import Access
from verifier.attack.rows import Rows
from verifier.attack.task import Task
from verifier.errors import SpecError


@dataclass(frozen=True)
class OnePixel(Attack):
    """Differential evolution over (position, value) of a few pixels; the l0 budget says how many.

    A pixel is all channels at one place, so a budget of eps features allows eps // C pixels.

    Args:
        steps: generations; population: candidates per sample (a query each per generation).
        mutation: weight of the difference vectors.
        image_shape: (C, H, W) of flattened images.
    Source: Su et al. 2019, arXiv:1710.08864.
    """

    steps: int = 75
    population: int = 100
    mutation: float = 0.5
    image_shape: tuple[int, int, int] | None = None

    needs: ClassVar[Access] = Access.SCORES
    norms: ClassVar[tuple[float, ...]] = (0.0,)

    def run(self, task: Task) -> None:
        require_budget(task, self.name)
        grid = Grid(task.space.start.shape[1:], self.image_shape)
        pixels = int(task.space.eps.min()) // grid.channels
        if pixels < 1:
            raise SpecError(f"one-pixel: expected an l0 budget of at least {grid.channels} (one pixel), got less")
        if not bool((task.space.lower.isfinite() & task.space.upper.isfinite()).all()):
            raise SpecError("one-pixel: needs a finite valid range")
        self._evolve(task.rows(), grid, pixels)

    def _evolve(self, rows: Rows, grid: Grid, pixels: int) -> None:
        task, genes = rows.task, 2 + grid.channels
        pool = task.uniform(len(rows), self.population, pixels, genes)
        rows, pool, value = self._judge(rows, grid, pool, None, None)
        for _ in range(self.steps):
            if not len(rows):
                return
            picks = task.uniform(len(rows), self.population, self.population).topk(3, dim=2).indices
            a, b, c = (self._take(pool, picks[:, :, i]) for i in range(3))
            child = a + self.mutation * (b - c)
            # genes that leave the unit box are drawn anew: clipping would pile them up at the faces
            child = torch.where((child >= 0) & (child <= 1), child, task.uniform(*child.shape))
            rows, pool, value = self._judge(rows, grid, child, pool, value)
        best = value.argmax(1)
        points = self._paint(rows, grid, pool)
        rows.settle(points[torch.arange(len(rows)), best], value.amax(1))

    def _take(self, pool: Tensor, index: Tensor) -> Tensor:
        return torch.gather(pool, 1, index[:, :, None, None].expand(-1, -1, *pool.shape[2:]))

    def _judge(
        self, rows: Rows, grid: Grid, child: Tensor, parent: Tensor | None, value: Tensor | None
    ) -> tuple[Rows, Tensor, Tensor]:
        """Each child replaces its parent where it is better; samples with a success leave."""
        points = self._paint(rows, grid, child)
        new = rows.values(points, margin)
        if parent is not None and value is not None:
            better = new > value
            child = torch.where(better[:, :, None, None], child, parent)
            new = torch.maximum(new, value)
            points = self._paint(rows, grid, child)
        top, best = new.max(1)
        candidate = points[torch.arange(len(rows), device=best.device), best]
        rows.offer(candidate, top > 0)
        keep = rows.undecided()
        return rows.narrow(keep), child[keep], new[keep]

    def _paint(self, rows: Rows, grid: Grid, pool: Tensor) -> Tensor:
        """Genes [R, P, pixels, 2 + C] as points [R, P, *W]."""
        count, population, pixels, _ = pool.shape
        low = grid.image(rows.lower).flatten(2)
        high = grid.image(rows.upper).flatten(2)
        image = grid.image(rows.start).flatten(2)[:, None].expand(-1, population, -1, -1).clone()
        down = (pool[..., 0] * grid.height).long().clamp_max(grid.height - 1)
        across = (pool[..., 1] * grid.width).long().clamp_max(grid.width - 1)
        place = (down * grid.width + across)[:, :, None, :].expand(-1, -1, grid.channels, -1)
        share = pool[..., 2:].movedim(-1, 2)
        spread = (count, population, grid.channels, pixels)
        ends = [e[:, None].expand(-1, population, -1, -1).gather(3, place).reshape(spread) for e in (low, high)]
        image = image.scatter(3, place, ends[0] + share * (ends[1] - ends[0]))
        return image.reshape(count, population, *rows.start.shape[1:])
