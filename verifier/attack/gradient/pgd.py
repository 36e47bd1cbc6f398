"""Projected gradient ascent and its named settings: FGSM, BIM, PGD, MI-FGSM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from verifier.attack.base import Attack
from verifier.attack.losses import Loss, named
from verifier.attack.projections import along, norm
from verifier.attack.rows import Rows
from verifier.attack.steps import ascent, step_length
from verifier.attack.task import Task
from verifier.errors import SpecError

#: Budgets that the steps add up to at least, so that the far side of the ball is in reach (Madry et al.).
CROSSING = 2.5


@dataclass(frozen=True)
class PGD(Attack):
    """x <- project(x + step * steepest ascent), from a random start in the ball.

    Stops on a sample as soon as it succeeds; with `stop_early=False` it goes on and returns the
    point of highest loss, which is what adversarial training wants.

    Args:
        steps: gradient steps; one more query checks the last point.
        step_rel: step length over the budget; None for the first of steps that fall to nothing, half the budget or
            more where few of them must still cross the ball (BIM: for 2.5 / steps all along).
        random_start: start from a random point of the ball (always from the second restart on).
        momentum: decay of the accumulated, l1-normalised gradient; 0 for none (Dong et al. 2018).
        loss: a name in losses.LOSSES or a loss function.
        share: share of coordinates moved per step in l1.
    Source: Madry et al. 2018, arXiv:1706.06083; Dong et al. 2018, arXiv:1710.06081 (momentum).
    """

    steps: int = 40
    step_rel: float | None = None
    restarts: int = 1
    random_start: bool = True
    momentum: float = 0.0
    loss: str | Loss = "ce"
    share: float = 0.05
    stop_early: bool = True

    norms: ClassVar[tuple[float, ...]] = (0.0, 1.0, 2.0, float("inf"))
    falling: ClassVar[bool] = True

    def run(self, task: Task) -> None:
        require_budget(task, self.name)
        for variant, rows in task.rounds(self.restarts):
            random = self.random_start or int(variant[0]) > 0
            self.ascend(rows, rows.random_start() if random else rows.start.clone())

    def ascend(self, rows: Rows, work: Tensor, target: Tensor | None = None) -> None:
        """One run from `work` [R, *W]; `target` [R] replaces the classes that the loss aims at."""
        loss = named(self.loss)
        length, shares = step_length(rows), self.shares()
        if self.stop_early and not self.momentum:
            found = rows.ascend(work, loss, target, length, shares)
            if found is not None:
                rows.offer(*found)
                rows.settle(found[0], torch.zeros(len(rows), device=work.device))
                return
        velocity = torch.zeros_like(work)
        for i in range(self.steps + 1):
            last = i == self.steps
            if last and self.stop_early:
                rows.offer(work, rows.fooled(rows.scores(work)))
                rows.settle(work, torch.zeros(len(rows), device=work.device))
                return
            scores, value, grad = rows.gradient(work, loss, target)
            hit = rows.fooled(scores)
            if not self.stop_early:
                rows.offer(work, hit, cost=-value)
                rows.settle(work, value)
            elif bool(hit.any()):
                rows.offer(work, hit)
                keep = rows.undecided()
                if not bool(keep.any()):
                    return
                if not bool(keep.all()):
                    rows, work, grad, velocity = rows.narrow(keep), work[keep], grad[keep], velocity[keep]
                    length = length[keep]
                    target = None if target is None else target[keep]
            if last:
                return
            if self.momentum:
                velocity = self.momentum * velocity + grad / along(norm(grad, 1).clamp_min(1e-30), grad)
                grad = velocity
            work = rows.project(work + along(shares[i] * length, work) * ascent(rows, work, grad, self.share))

    def shares(self) -> list[float]:
        """Length of each step over the budget."""
        count = self.steps
        if self.step_rel is None and self.falling:
            return [max(0.5, 2 * CROSSING / (count + 1)) * (1 - i / count) for i in range(count)]
        return [CROSSING / count if self.step_rel is None else self.step_rel] * count


def require_budget(task: Task, name: str) -> None:
    """SpecError unless every sample's budget is finite (a box alone bounds the linf norm)."""
    if task.space.p != float("inf") and not bool(task.space.eps.isfinite().all()):
        raise SpecError(f"{name}: needs a finite eps in norm {task.space.p:g}; set it, or use a minimum-norm attack")


@dataclass(frozen=True)
class FGSM(PGD):
    """One step of full length from the clean input. Source: Goodfellow et al. 2015, arXiv:1412.6572."""

    steps: int = 1
    step_rel: float | None = 1.0
    random_start: bool = False


@dataclass(frozen=True)
class BIM(PGD):
    """Small steps from the clean input, no random start. Source: Kurakin et al. 2017, arXiv:1607.02533."""

    steps: int = 10
    random_start: bool = False

    falling: ClassVar[bool] = False


@dataclass(frozen=True)
class MIFGSM(PGD):
    """BIM with momentum 1. Source: Dong et al. 2018, arXiv:1710.06081."""

    steps: int = 10
    step_rel: float | None = 0.1
    random_start: bool = False
    momentum: float = 1.0
