"""ZOO and AutoZOOM: the C&W objective on estimated gradients."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from verifier.attack.base import Attack
from verifier.attack.boundary import walk_back
from verifier.attack.estimators import Coordinates, Estimator, ForwardDifference
from verifier.attack.gradient.constant_search import ConstantSearch
from verifier.attack.losses import Loss, capped_margin
from verifier.attack.model import Access
from verifier.attack.optimisers import Adam
from verifier.attack.projections import along
from verifier.attack.rows import Rows
from verifier.attack.task import Task


@dataclass(frozen=True)
class ZOO(Attack):
    """min ‖d‖_2^2 + c max(-margin, -kappa) with Adam, its gradient estimated coordinate by coordinate.

    The distance is known, so only the margin is estimated; the box is kept by clipping.

    Args:
        estimator: used until a row has succeeded.
        refiner: used afterwards, None for the same (AutoZOOM averages more directions then).
        steps: Adam steps per constant; search: constants tried; initial: first constant.
    Source: Chen et al. 2017, arXiv:1708.03999.
    """

    estimator: Estimator = field(default=Coordinates(samples=32))
    refiner: Estimator | None = None
    steps: int = 100
    search: int = 4
    initial: float = 1.0
    rate: float = 0.02
    kappa: float = 0.0
    refine: int = 2

    needs: ClassVar[Access] = Access.SCORES
    norms: ClassVar[tuple[float, ...]] = (2.0,)
    minimise: ClassVar[bool] = True

    def run(self, task: Task) -> None:
        rows = task.rows()
        constants = ConstantSearch(len(rows), self.initial, rows.start)
        for _ in range(self.search):
            constants.update(self._descend(rows, constants.constant))
        if self.kappa == 0:
            walk_back(task, self.refine)

    def _descend(self, rows: Rows, constant: Tensor) -> Tensor:
        loss, check = capped_margin(self.kappa), max(1, self.steps // 10)
        success = torch.zeros(len(rows), dtype=torch.bool, device=constant.device)
        ever = torch.zeros_like(success)
        work, weight = rows.start.clone(), along(constant, rows.start)
        adam = Adam(work, self.rate)
        for i in range(self.steps):
            grad = self._estimate(rows, work, loss, ever)
            move = adam.step(2 * (work - rows.start) - weight * grad, 1 - i / self.steps)
            work = rows.clip(work - move)
            scores = rows.scores(work)
            hit = rows.fooled(scores) & (loss(scores, rows.label, rows.target) >= self.kappa)
            rows.offer(work, hit)
            ever |= hit
            success = hit if i % check == 0 else success | hit
        return success

    def _estimate(self, rows: Rows, work: Tensor, loss: Loss, ever: Tensor) -> Tensor:
        if self.refiner is None or not bool(ever.any()):
            return self.estimator.estimate(rows, work, loss)
        grad = torch.empty_like(work)
        for mask, estimator in ((ever, self.refiner), (~ever, self.estimator)):
            if bool(mask.any()):
                grad[mask] = estimator.estimate(rows.narrow(mask), work[mask], loss)
        return grad


@dataclass(frozen=True)
class AutoZOOM(ZOO):
    """Few random directions, drawn on a coarse grid for images, and more of them once a row succeeds.

    Source: Tu et al. 2019, arXiv:1805.11770.
    """

    estimator: Estimator = field(default=ForwardDifference(samples=4, smooth=0.5))
    refiner: Estimator | None = field(default=ForwardDifference(samples=16, smooth=0.5))
    steps: int = 200
