"""Bounded attacks on estimated gradients: NES, SPSA, ZO-signSGD, ZO-AdaMM."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from verifier.attack.base import Attack
from verifier.attack.estimators import Antithetic, Estimator, ForwardDifference
from verifier.attack.gradient.pgd import require_budget
from verifier.attack.losses import Loss, named
from verifier.attack.model import Access
from verifier.attack.optimisers import Adam
from verifier.attack.projections import along
from verifier.attack.rows import Rows
from verifier.attack.steps import steepest
from verifier.attack.task import Task
from verifier.errors import SpecError

UPDATES = ("steepest", "adam", "adamm")


@dataclass(frozen=True)
class ZerothOrder(Attack):
    """Projected ascent along estimated gradients, from the clean input.

    Args:
        estimator: where gradients come from, and what they cost.
        steps: estimates; each is followed by one query that checks the new point.
        step_rel: step length over the budget.
        update: "steepest" (PGD's rule for the norm), "adam", or "adamm" (AMSGrad: the second
            moment never falls).
        loss: a name in losses.LOSSES or a loss function.
    Source: see the named settings below and estimators.py.
    """

    estimator: Estimator = field(default=Antithetic())
    steps: int = 100
    step_rel: float = 0.1
    update: str = "steepest"
    loss: str | Loss = "margin"

    needs: ClassVar[Access] = Access.SCORES
    norms: ClassVar[tuple[float, ...]] = (1.0, 2.0, float("inf"))

    def run(self, task: Task) -> None:
        if self.update not in UPDATES:
            raise SpecError(f"{self.name} update: expected one of {', '.join(UPDATES)}, got {self.update!r}")
        require_budget(task, self.name)
        rows = task.rows()
        self._ascend(rows, rows.start.clone())

    def _ascend(self, rows: Rows, work: Tensor) -> None:
        loss = named(self.loss)
        length = self.step_rel * rows.reach
        adam = Adam(work, length, never_falling=self.update == "adamm")
        for _ in range(self.steps):
            grad = self.estimator.estimate(rows, work, loss)
            steep = self.update == "steepest"
            move = along(length, work) * steepest(grad, rows.p) if steep else -adam.step(-grad)
            work = rows.project(work + move)
            hit = rows.fooled(rows.scores(work))
            if bool(hit.any()):
                rows.offer(work, hit)
                keep = rows.undecided()
                if not bool(keep.any()):
                    return
                rows, work, length = rows.narrow(keep), work[keep], length[keep]
                adam.narrow(keep)
        rows.settle(work, torch.zeros(len(rows), device=work.device))


@dataclass(frozen=True)
class NES(ZerothOrder):
    """Antithetic Gaussian directions and sign (or normalised) steps. Source: arXiv:1804.08598."""

    estimator: Estimator = field(default=Antithetic(samples=25))


@dataclass(frozen=True)
class SPSA(ZerothOrder):
    """Antithetic random signs and Adam. Source: Uesato et al. 2018, arXiv:1802.05666."""

    estimator: Estimator = field(default=Antithetic(samples=25, signs=True))
    update: str = "adam"


@dataclass(frozen=True)
class ZOSignSGD(ZerothOrder):
    """Signs of a forward-difference estimate. Source: Liu et al. 2019, ICLR (signSGD via zeroth-order oracle)."""

    estimator: Estimator = field(default=ForwardDifference(samples=50))


@dataclass(frozen=True)
class ZOAdaMM(ZerothOrder):
    """Forward differences and AMSGrad. Source: Chen et al. 2019, arXiv:1910.06513."""

    estimator: Estimator = field(default=ForwardDifference(samples=50))
    update: str = "adamm"
