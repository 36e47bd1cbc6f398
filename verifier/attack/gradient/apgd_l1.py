"""Auto-PGD in the l1 ball: the sparsity of the steps adapts, and the radius shrinks to the budget."""

from __future__ import annotations

import torch
from torch import Tensor

from verifier.attack.losses import Loss
from verifier.attack.projections import along, keep_largest, norm, onto_ball
from verifier.attack.rows import Rows


def ascend_l1(rows: Rows, loss: Loss, target: Tensor | None, steps: int) -> None:
    """Three stages at 3, 2 and 1 times the budget (30 %, 30 %, 40 % of the steps), each starting
    from the last one's best point projected into its ball.

    Only points inside the budget itself count as successes.
    Source: Croce & Hein 2021, arXiv:2103.01208, section 4.
    """
    work = rows.random_start()
    for factor, share in ((3.0, 0.3), (2.0, 0.3), (1.0, 0.4)):
        stage = _Stage(rows, work, target, factor)
        rows, target, work = stage.run(loss, max(1, round(share * steps)), final=factor == 1.0)
        if not len(rows):
            return


class _Stage:
    """One radius: sparse signed steps whose share of coordinates follows the best point's support."""

    def __init__(self, rows: Rows, work: Tensor, target: Tensor | None, factor: float):
        self.rows, self.target, self.radius = rows, target, rows.eps * factor
        self.work = self._project(work)
        count, features = len(rows), work[0].numel()
        self.features = features
        self.step = self.radius.clone()
        self.share = torch.full((count,), 0.2, device=work.device, dtype=work.dtype)
        self.support = torch.full_like(self.share, float(features))
        self.best, self.best_grad = self.work, torch.zeros_like(work)
        self.best_value = torch.full_like(self.share, -torch.inf)
        self.grad = torch.zeros_like(work)

    def run(self, loss: Loss, steps: int, final: bool) -> tuple[Rows, Tensor | None, Tensor]:
        """Returns the rows still open, their loss targets and best points."""
        period = max(int(0.04 * steps), 1)
        for i in range(steps + 1):
            if not self._evaluate(loss, gradient=i < steps, final=final):
                break
            if i == steps:
                break
            if i and i % period == 0:
                self._adapt()
            self._move()
        if final and len(self.rows):
            self.rows.settle(self.best, self.best_value)
        return self.rows, self.target, self.best

    def _evaluate(self, loss: Loss, gradient: bool, final: bool) -> bool:
        if gradient:
            scores, value, self.grad = self.rows.gradient(self.work, loss, self.target)
        else:
            scores = self.rows.scores(self.work)
            goal = self.rows.target if self.target is None else self.target
            value = loss(scores, self.rows.label, goal)
        value = torch.nan_to_num(value, nan=-torch.inf)
        better = value > self.best_value
        mask = along(better, self.work)
        self.best = torch.where(mask, self.work, self.best)
        self.best_grad = torch.where(mask, self.grad, self.best_grad)
        self.best_value = torch.where(better, value, self.best_value)
        hit = self.rows.fooled(scores)
        if not final:
            hit = hit & (norm(self.work - self.rows.start, 1) <= self.rows.eps)
        if not bool(hit.any()):
            return True
        self.rows.offer(self.work, hit)
        keep = self.rows.undecided()
        if not bool(keep.all()):
            self.rows = self.rows.narrow(keep)
            for name, tensor in vars(self).items():
                if isinstance(tensor, Tensor):
                    setattr(self, name, tensor[keep])
        return len(self.rows) > 0

    def _move(self) -> None:
        count = (self.share * self.features).clamp_min(1.0)
        sparse = keep_largest(self.grad, self.grad.flatten(1).abs(), count).sign()
        sparse = sparse / along(norm(sparse, 1).clamp_min(1.0), sparse)
        self.work = self._project(self.work + along(self.step, sparse) * sparse)

    def _adapt(self) -> None:
        """Where the best point became sparser, restart wide steps there; elsewhere shorten them."""
        support = norm(self.best - self.rows.start, 0)
        sparser = support < 0.95 * self.support
        self.share = (support / self.features / 1.5).clamp_min(1.0 / self.features)
        shorter = (self.step / 1.5).maximum(self.radius / 10)
        self.step = torch.where(sparser, self.radius, shorter)
        mask = along(sparser, self.work)
        self.work = torch.where(mask, self.best, self.work)
        self.grad = torch.where(mask, self.best_grad, self.grad)
        self.support = support

    def _project(self, work: Tensor) -> Tensor:
        start = self.rows.start
        return start + onto_ball(work - start, 1.0, self.radius, self.rows.lower - start, self.rows.upper - start)
