"""Transfer: attack a surrogate with everything it offers, then try the results on the victim."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from verifier.attack.base import Attack
from verifier.attack.gradient.pgd import require_budget
from verifier.attack.losses import Loss, named
from verifier.attack.model import Access, Model
from verifier.attack.projections import along, norm
from verifier.attack.rows import Rows
from verifier.attack.steps import ascent, step_length
from verifier.attack.task import Task
from verifier.errors import SpecError


@dataclass(frozen=True)
class DiverseMomentum(Attack):
    """Momentum ascent whose gradients see resized, padded inputs (DI) and are smoothed over
    translations (TI); it does not stop at the first success, because what transfers are points far
    beyond the surrogate's boundary.

    Args:
        steps, step_rel: gradient steps and their length over the budget.
        momentum: decay of the accumulated, l1-normalised gradient (MI).
        diversity: chance of a random resize per step, for image inputs (DI); 0 for none.
        smallest: smallest edge of the resized image, as a share of the original's.
        kernel: edge of the Gaussian kernel that smooths gradients (TI), odd; 1 for none.
    Source: Dong et al. 2018, arXiv:1710.06081 (MI); Xie et al. 2019, arXiv:1803.06978 (DI);
        Dong et al. 2019, arXiv:1904.02884 (TI).
    """

    steps: int = 20
    step_rel: float = 0.1
    momentum: float = 1.0
    diversity: float = 0.7
    smallest: float = 0.85
    kernel: int = 3
    loss: str | Loss = "ce"

    norms: ClassVar[tuple[float, ...]] = (2.0, float("inf"))

    def run(self, task: Task) -> None:
        require_budget(task, self.name)
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise SpecError(f"{self.name} kernel: expected an odd number, got {self.kernel}")
        rows, loss = task.rows(), named(self.loss)
        work, velocity = rows.start.clone(), torch.zeros_like(rows.start)
        for _ in range(self.steps):
            view = self._diversifier(task, work)
            scores, value, grad = rows.gradient(work, loss, decode=view)
            if view is None:
                rows.offer(work, rows.fooled(scores), cost=-value)
            grad = self._smooth(grad) * rows.free
            velocity = self.momentum * velocity + grad / along(norm(grad, 1).clamp_min(1e-30), grad)
            work = rows.project(work + along(self.step_rel * step_length(rows), work) * ascent(rows, work, velocity))
        scores = rows.scores(work)
        value = loss(scores, rows.label, rows.target)
        rows.offer(work, rows.fooled(scores), cost=-value)
        rows.settle(work, value)

    def _diversifier(self, task: Task, work: Tensor) -> Callable[[Tensor, Tensor], Tensor] | None:
        """A differentiable random resize-and-pad of image batches, or None for this step."""
        if work.ndim != 4 or float(task.uniform(1)) >= self.diversity:
            return None
        height, width = work.shape[2:]
        share = self.smallest + (1 - self.smallest) * float(task.uniform(1))
        small = (max(1, round(share * height)), max(1, round(share * width)))
        top, left = int(task.integers(height - small[0] + 1, 1)), int(task.integers(width - small[1] + 1, 1))
        pad = (left, width - small[1] - left, top, height - small[0] - top)
        decode = task.space.decode
        return lambda w, index: F.pad(F.interpolate(decode(w, index), size=small, mode="nearest"), pad)

    def _smooth(self, grad: Tensor) -> Tensor:
        if self.kernel == 1 or grad.ndim != 4:
            return grad
        at = torch.arange(self.kernel, device=grad.device, dtype=grad.dtype) - self.kernel // 2
        bell = torch.exp(-(at**2) / (2 * (self.kernel / 3) ** 2))
        weight = torch.outer(bell, bell) / bell.sum() ** 2
        channels = grad.shape[1]
        return F.conv2d(grad, weight.expand(channels, 1, -1, -1), padding=self.kernel // 2, groups=channels)


@dataclass(frozen=True)
class Transfer(Attack):
    """Run an attack on a surrogate model and ask the victim once per sample about the result.

    Queries count the victim's answers only; the surrogate is the attacker's own.

    Args:
        surrogate: a Model with whatever access `inner` needs (see `distil` for making one).
        inner: the attack on the surrogate.
    """

    surrogate: Model | None = None
    inner: Attack = DiverseMomentum()

    needs: ClassVar[Access] = Access.LABELS

    def run(self, task: Task) -> None:
        if self.surrogate is None:
            raise SpecError("transfer: needs a surrogate model; train one with blackbox.distil.distil")
        if self.surrogate.access < self.inner.needs:
            raise SpecError(f"transfer: {self.inner.name} needs {self.inner.needs.name.lower()} of the surrogate")
        if self.inner.norms and task.space.p not in self.inner.norms:
            raise SpecError(f"transfer: {self.inner.name} does not work in norm {task.space.p:g}")
        with self.surrogate.untouched():
            index = torch.arange(task.size, device=task.device)
            own = task.subtask(index, self.inner.minimise, 0, model=self.surrogate)
            self.inner.run(own)
        found = own.best_cost.isfinite()
        work = torch.where(along(found, own.best), own.best, own.fallback)
        rows: Rows = task.rows()
        work = rows.project(work)
        rows.offer(work, rows.achieved(rows.predictions(work)))
        rows.settle(work, torch.zeros(len(rows), device=work.device))
