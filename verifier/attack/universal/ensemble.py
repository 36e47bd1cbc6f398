"""One perturbation per sample that fools several models, or one model under several transformations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from verifier.attack.base import as_batch
from verifier.attack.gradient.pgd import require_budget
from verifier.attack.losses import capped_margin
from verifier.attack.model import Access, Model, wrap
from verifier.attack.projections import along
from verifier.attack.rows import Rows
from verifier.attack.steps import ascent
from verifier.attack.task import Task
from verifier.attack.threat import Threat
from verifier.errors import SpecError


@dataclass(frozen=True)
class EnsembleResult:
    """Per sample and domain (a model, or a model behind a transformation).

    Attributes:
        adversarial: [B, *S]; success: fooled in every domain, bool [B].
        fooled: bool [M, B], re-predicted on exactly `adversarial`.
        weights: final min-max weights, [M, B].
        queries: evaluations of all domains together, int64 [B].
    """

    adversarial: Tensor
    success: Tensor
    fooled: Tensor
    weights: Tensor
    queries: Tensor


@dataclass(frozen=True)
class MinMaxEnsemble:
    """min_d max_w sum_i w_i F_i(x + d) - (gamma / 2) ‖w - 1/M‖^2, F_i = -min(margin_i, kappa).

    Each sample has its own weights over the domains; the perturbation takes projected gradient
    steps on the weighted sum, the weights take ascent steps on the simplex. gamma = inf keeps the
    weights equal (the ensemble average).

    Args:
        steps: steps of both players; step_rel: the perturbation's step over the budget.
        rate: the weights' step; gamma: pull towards equal weights.
        kappa: margin beyond which a domain no longer resists.
    Source: Wang et al. 2021, arXiv:1906.03563 (APGDA).
    """

    steps: int = 60
    step_rel: float = 0.05
    rate: float = 0.2
    gamma: float = 0.3
    kappa: float = 0.5

    def __call__(
        self, models: Sequence[Any], x: Any, y: Any, threat: Threat, *, targets: Any = None, seed: int
    ) -> EnsembleResult:
        """Attack all of `models` (anything `model.wrap` accepts, each with gradients) at once.

        Raises:
            SpecError: no model, a model without gradients, or a threat without a budget.
        """
        domains = [wrap(m) for m in models]
        if not domains or any(m.access < Access.GRADIENT for m in domains):
            raise SpecError("ensemble attack: expected one or more models with gradients")
        with torch.no_grad():
            tasks = [self._task(m, x, y, threat, targets, seed) for m in domains]
            work, weights = self._play(tasks)
            adversarial = threat.finalise(tasks[0].space, work)
            fooled = torch.stack([self._verdict(m, adversarial, t) for m, t in zip(domains, tasks, strict=True)])
        queries = torch.stack([t.queries for t in tasks]).sum(0) + len(domains)
        return EnsembleResult(adversarial, fooled.all(0), fooled, weights, queries)

    def _task(self, model: Model, x: Any, y: Any, threat: Threat, targets: Any, seed: int) -> Task:
        inputs, label, target = as_batch(model, x, y, targets)
        task = Task(model, threat.space(inputs), label, target, minimise=False, seed=seed)
        require_budget(task, "ensemble attack")
        return task

    def _play(self, tasks: list[Task]) -> tuple[Tensor, Tensor]:
        rows: list[Rows] = [t.rows() for t in tasks]
        lead, loss = rows[0], capped_margin(self.kappa)
        work = lead.start.clone()
        count, size = len(rows), len(lead)
        weights = torch.full((size, count), 1.0 / count, device=work.device, dtype=work.dtype)
        best, best_weak = work, torch.full((size,), -torch.inf, device=work.device, dtype=work.dtype)
        for i in range(self.steps + 1):
            values, grads = [], []
            for part in rows:
                with part.task.model.untouched():
                    _, value, grad = part.gradient(work, loss)
                values.append(value)
                grads.append(grad)
            resist = -torch.stack(values, dim=1)
            weak = -resist.amax(1)
            better = weak > best_weak
            best = torch.where(along(better, work), work, best)
            best_weak = torch.where(better, weak, best_weak)
            if i == self.steps:
                break
            if self.gamma != float("inf"):
                weights = _simplex_rows(weights + self.rate * (resist - self.gamma * (weights - 1.0 / count)))
            mixed = torch.stack([along(weights[:, k], work) * grads[k] for k in range(count)]).sum(0)
            step = self.step_rel * (1.1 - i / self.steps)
            work = lead.project(work + along(step * lead.reach, work) * ascent(lead, work, mixed))
        return best, weights.T

    def _verdict(self, model: Model, adversarial: Tensor, task: Task) -> Tensor:
        with model.untouched():
            return task.rows().achieved(model.labels(adversarial))


def _simplex_rows(v: Tensor) -> Tensor:
    """Each row of v [B, M] projected onto the simplex."""
    ordered = v.sort(dim=1, descending=True).values
    ranks = torch.arange(1, v.shape[1] + 1, device=v.device)
    excess = (ordered.cumsum(1) - 1) / ranks
    last = (ordered > excess).sum(1, keepdim=True) - 1
    return (v - excess.gather(1, last)).clamp_min(0)
