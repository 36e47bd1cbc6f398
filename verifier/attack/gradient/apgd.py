"""Auto-PGD: projected ascent with momentum whose step halves itself, and its targeted form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from verifier.attack.base import Attack
from verifier.attack.gradient.apgd_l1 import ascend_l1
from verifier.attack.gradient.pgd import require_budget
from verifier.attack.losses import Loss, dlr, named
from verifier.attack.projections import along
from verifier.attack.rows import Rows
from verifier.attack.steps import steepest, step_length
from verifier.attack.task import Task


@dataclass(frozen=True)
class APGD(Attack):
    """Auto-PGD, free of a step size to choose.

    Starts with steps of twice the budget; at checkpoints that come faster and faster, a row whose
    loss rose in too few of its steps, or whose best loss and step stayed the same, halves its step
    and goes back to its best point. In l1 the sparsity of the step adapts instead.

    Args:
        steps: gradient steps.
        loss: a name in losses.LOSSES or a loss function.
        rho: share of steps that must have raised the loss between checkpoints.
    Source: Croce & Hein 2020, arXiv:2003.01690; l1: Croce & Hein 2021, arXiv:2103.01208.
    """

    steps: int = 100
    restarts: int = 1
    loss: str | Loss = "ce"
    rho: float = 0.75

    norms: ClassVar[tuple[float, ...]] = (1.0, 2.0, float("inf"))

    def run(self, task: Task) -> None:
        require_budget(task, self.name)
        for _, rows in task.rounds(self.restarts):
            ascend(rows, named(self.loss), None, self.steps, self.rho)


@dataclass(frozen=True)
class APGDT(Attack):
    """Auto-PGD once per rival class, most likely first, on the targeted DLR loss.

    A sample is done when any misclassification appears. With K classes there are K - 1 rivals, so
    two- and three-class victims get one and two targets, not nine.

    Args:
        targets: most rivals to try.
    """

    steps: int = 100
    restarts: int = 1
    targets: int = 9
    rho: float = 0.75

    norms: ClassVar[tuple[float, ...]] = (1.0, 2.0, float("inf"))

    def run(self, task: Task) -> None:
        require_budget(task, self.name)
        if task.target is not None:
            for _, rows in task.rounds(self.restarts):
                ascend(rows, dlr, None, self.steps, self.rho)
            return
        order = rivals(task.rows())
        count = min(self.targets, order.shape[1])
        for variant, rows in task.rounds(count * self.restarts):
            ascend(rows, dlr, order[rows.index, variant // self.restarts], self.steps, self.rho)


def rivals(rows: Rows) -> Tensor:
    """Classes other than the label by falling clean score, int64 [R, K - 1]; one query a row."""
    scores = torch.nan_to_num(rows.scores(rows.start), nan=-torch.inf)
    order = scores.scatter(1, rows.label[:, None], torch.inf).argsort(dim=1, descending=True, stable=True)
    return order[:, 1:]


def ascend(rows: Rows, loss: Loss, target: Tensor | None, steps: int, rho: float) -> None:
    """One run of Auto-PGD on rows, from random starts.

    Args:
        target: classes [R] for the loss only; success is the task's own goal.
    """
    if rows.p == 1.0:
        ascend_l1(rows, loss, target, steps)
        return
    state = _State(rows, rows.random_start(), target)
    if not state.evaluate(loss, gradient=True):
        return
    state.accept()
    period, taken = max(int(0.22 * steps), 1), 0
    for i in range(steps):
        state.move(1.0 if i == 0 else 0.75)
        if not state.evaluate(loss, gradient=i < steps - 1):
            return
        state.accept()
        taken += 1
        if taken == period:
            state.checkpoint(period, rho)
            taken, period = 0, max(period - max(int(0.03 * steps), 1), max(int(0.06 * steps), 1))
    state.rows.settle(state.best, state.best_value)


class _State:
    """Everything Auto-PGD remembers per row; `_keep` narrows all of it together."""

    def __init__(self, rows: Rows, work: Tensor, target: Tensor | None):
        count = len(rows)
        self.rows, self.work, self.target = rows, work, target
        self.previous, self.best, self.grad, self.best_grad = work, work, torch.zeros_like(work), torch.zeros_like(work)
        low = torch.full((count,), -torch.inf, device=work.device, dtype=work.dtype)
        self.value, self.last_value, self.best_value, self.checked_value = low, low, low, low
        self.step = 2.0 * step_length(rows)
        self.halved = torch.ones(count, dtype=torch.bool, device=work.device)
        self.rises = torch.zeros(count, dtype=torch.int64, device=work.device)

    def evaluate(self, loss: Loss, gradient: bool) -> bool:
        """Loss (and gradient) at work; drops rows of samples that are done. False when none is left."""
        if gradient:
            scores, value, self.grad = self.rows.gradient(self.work, loss, self.target)
        else:
            scores = self.rows.scores(self.work)
            goal = self.rows.target if self.target is None else self.target
            value = loss(scores, self.rows.label, goal)
        self.value = torch.nan_to_num(value, nan=-torch.inf)
        hit = self.rows.fooled(scores)
        if not bool(hit.any()):
            return True
        self.rows.offer(self.work, hit)
        return self._keep(self.rows.undecided())

    def accept(self) -> None:
        """Book the new point: count rises, remember the best."""
        self.rises = self.rises + (self.value > self.last_value)
        better = self.value > self.best_value
        mask = along(better, self.work)
        self.best = torch.where(mask, self.work, self.best)
        self.best_grad = torch.where(mask, self.grad, self.best_grad)
        self.best_value = torch.maximum(self.best_value, self.value)
        self.last_value = self.value

    def move(self, weight: float) -> None:
        """x <- P(x + weight (P(x + step g) - x) + (1 - weight)(x - previous))."""
        ahead = self.work.addcmul(steepest(self.grad, self.rows.p), along(self.step, self.work))
        ahead = self.rows.project(ahead)
        if weight < 1:
            ahead = self.work.lerp(ahead, weight).add_(self.work - self.previous, alpha=1 - weight)
            ahead = self.rows.project(ahead)
        self.previous, self.work = self.work, ahead

    def checkpoint(self, period: int, rho: float) -> None:
        """Halve the step and return to the best point where progress is poor."""
        stuck = ~self.halved & (self.best_value <= self.checked_value)
        halve = (self.rises < rho * period) | stuck
        mask = along(halve, self.work)
        self.step = torch.where(halve, self.step / 2, self.step)
        self.work = torch.where(mask, self.best, self.work)
        self.grad = torch.where(mask, self.best_grad, self.grad)
        self.last_value = torch.where(halve, self.best_value, self.last_value)
        self.halved, self.checked_value = halve, self.best_value
        self.rises = torch.zeros_like(self.rises)

    def _keep(self, keep: Tensor) -> bool:
        if bool(keep.all()):
            return True
        self.rows = self.rows.narrow(keep)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value[keep])
        return len(self.rows) > 0
