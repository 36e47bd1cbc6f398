"""One perturbation for all samples of a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from verifier.attack.base import Attack
from verifier.attack.gradient.deepfool import nearest_boundary
from verifier.attack.gradient.pgd import require_budget
from verifier.attack.losses import Loss, capped_margin
from verifier.attack.projections import onto_ball, onto_hyperplane
from verifier.attack.rows import Rows
from verifier.attack.steps import steepest
from verifier.attack.task import Task
from verifier.attack.universal.simplex import SimplexAscent
from verifier.errors import SpecError


@dataclass(frozen=True)
class UniversalPGD(Attack):
    """Signed (or normalised) ascent of a mean loss over all samples, in one shared perturbation.

    The margin of each sample is capped, so that samples already fooled stop pulling; with
    `gamma > 0` the samples are weighted by the min-max scheme instead of equally.

    Args:
        steps: gradient steps over the whole batch; step_rel: first step length over the budget.
        kappa: margin beyond which a sample no longer counts.
        gamma: regulariser of the min-max weights (0 for equal weights).
    Source: Shafahi et al. 2020, arXiv:1811.11304; weights: Wang et al. 2021, arXiv:1906.03563.
    """

    steps: int = 100
    step_rel: float = 0.1
    kappa: float = 1.0
    gamma: float = 0.0

    norms: ClassVar[tuple[float, ...]] = (1.0, 2.0, float("inf"))

    def run(self, task: Task) -> None:
        shared = _Shared(task, self.name)
        loss: Loss = capped_margin(self.kappa)
        weights = SimplexAscent(task.size, self.gamma, shared.delta) if self.gamma > 0 else None
        best, best_count = shared.delta, -1
        for i in range(self.steps + 1):
            scores, value, grad = shared.rows.gradient(shared.work(), loss)
            fooled = int(shared.rows.fooled(scores).sum())
            if fooled > best_count:
                best, best_count = shared.delta, fooled
            if i == self.steps or fooled == task.size:
                break
            if weights is not None:
                grad = grad * weights.step(-value).reshape(-1, *([1] * (grad.ndim - 1)))
            step = self.step_rel * (1 - i / self.steps) + 0.01 * self.step_rel
            shared.move(step * shared.eps * steepest(grad.sum(0, keepdim=True), shared.rows.p))
        shared.finish(best)


@dataclass(frozen=True)
class UAP(Attack):
    """Moosavi-Dezfooli's pass over the samples: each one not fooled yet adds its own smallest
    DeepFool step, and the sum is projected back into the ball.

    Args:
        passes: most passes over the samples; goal: share of fooled samples that ends the search.
        inner: DeepFool steps per sample.
    Source: Moosavi-Dezfooli et al. 2017, arXiv:1610.08401.
    """

    passes: int = 5
    goal: float = 0.9
    inner: int = 10
    overshoot: float = 0.1

    norms: ClassVar[tuple[float, ...]] = (2.0, float("inf"))

    def run(self, task: Task) -> None:
        shared = _Shared(task, self.name)
        best, best_share = shared.delta, -1.0
        for _ in range(self.passes):
            for number in task.uniform(task.size).argsort():
                self._visit(shared, shared.rows.narrow_to(number[None]))
            share = float(shared.rows.fooled(shared.rows.scores(shared.work())).double().mean())
            if share > best_share:
                best, best_share = shared.delta, share
            if share >= self.goal:
                break
        shared.finish(best)

    def _visit(self, shared: _Shared, row: Rows) -> None:
        origin = row.clip(row.start + shared.delta)
        work = origin
        for _ in range(self.inner):
            if bool(row.fooled(row.scores(work))):
                break
            gap, normal = nearest_boundary(row, work, 10)
            low, high = row.lower - work, row.upper - work
            work = row.clip(work + (1 + self.overshoot) * onto_hyperplane(normal, gap, row.p, low, high))
        shared.move(work - origin)


class _Shared:
    """The one perturbation [1, *W], kept in the ball, and the rows it is applied to."""

    def __init__(self, task: Task, name: str):
        require_budget(task, name)
        eps = task.space.eps
        if not bool((eps == eps[0]).all()):
            raise SpecError(f"{name}: expected one eps for all samples, got several")
        self.rows = task.rows()
        self.eps = float(eps[0]) if bool(eps[0].isfinite()) else 1.0
        self.delta = torch.zeros_like(self.rows.start[:1])

    def work(self) -> Tensor:
        """Every sample with the perturbation, cut to its box."""
        return self.rows.clip(self.rows.start + self.delta)

    def move(self, step: Tensor) -> None:
        """Add to the perturbation and project it into the ball."""
        moved = self.delta + step
        wide = torch.full_like(moved, torch.inf)
        self.delta = onto_ball(moved, self.rows.p, moved.new_tensor([self.eps]), -wide, wide)

    def finish(self, delta: Tensor) -> None:
        """Offer the final perturbation for every sample."""
        self.delta = delta
        work = self.work()
        self.rows.offer(work, self.rows.fooled(self.rows.scores(work)))
        self.rows.settle(work, torch.zeros(len(self.rows), device=work.device))
