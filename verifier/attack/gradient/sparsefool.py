"""SparseFool: few features, by l1 moves onto the boundary seen from a DeepFool point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from verifier.attack.base import Attack
from verifier.attack.gradient.deepfool import nearest_boundary
from verifier.attack.projections import along, onto_hyperplane
from verifier.attack.rows import Rows
from verifier.attack.task import Task


@dataclass(frozen=True)
class SparseFool(Attack):
    """Find a nearby boundary point with DeepFool (l2), then reach the boundary's tangent plane by
    the sparsest move inside the box; repeat until the class changes.

    Args:
        steps: outer steps; inner: DeepFool steps in each.
        stretch: how far beyond the boundary point the plane is put (the paper's
            lambda, 3 there for large images; more means fewer steps and more features).
    Source: Modas et al. 2019, arXiv:1811.02248.
    """

    steps: int = 20
    inner: int = 20
    stretch: float = 1.1
    overshoot: float = 0.02
    candidates: int = 10

    norms: ClassVar[tuple[float, ...]] = (0.0, 1.0)
    minimise: ClassVar[bool] = True

    def run(self, task: Task) -> None:
        rows = task.rows()
        work = rows.start.clone()
        for _ in range(self.steps):
            point, normal = self._boundary_point(rows, work)
            point = work + self.stretch * (point - work)
            gap = (normal * (point - work)).flatten(1).sum(1)
            move = onto_hyperplane(normal, gap, 1.0, rows.lower - work, rows.upper - work)
            work = rows.clip(work + move)
            hit = rows.fooled(rows.scores(work))
            rows.offer(work, hit)
            if bool(hit.any()):
                rows, work = rows.narrow(~hit), work[~hit]
            if not len(rows):
                return

    def _boundary_point(self, rows: Rows, origin: Tensor) -> tuple[Tensor, Tensor]:
        """A point just across the boundary near origin, and the boundary's normal there."""
        work = origin.clone()
        open_rows, place = rows, torch.arange(len(rows), device=origin.device)
        found = origin.clone()
        for _ in range(self.inner):
            part = origin[place]
            gap, normal = nearest_boundary(open_rows, work, self.candidates, p=2.0)
            move = onto_hyperplane(normal, gap, 2.0, open_rows.lower - work, open_rows.upper - work)
            work = open_rows.clip(part + (1 + self.overshoot) * (work + move - part))
            found[place] = work
            hit = open_rows.fooled(open_rows.scores(work))
            if bool(hit.any()):
                open_rows, work, place = open_rows.narrow(~hit), work[~hit], place[~hit]
            if not len(open_rows):
                break
        _, normal = nearest_boundary(rows, found, self.candidates, p=2.0)
        facing = (normal * (found - origin)).flatten(1).sum(1)
        return found, normal * along(torch.where(facing < 0, -1.0, 1.0), normal)
