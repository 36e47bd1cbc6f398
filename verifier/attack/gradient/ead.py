"""EAD: elastic-net attacks, sparse perturbations by iterative shrinkage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from verifier.attack.base import Attack
from verifier.attack.boundary import secant
from verifier.attack.gradient.constant_search import ConstantSearch
from verifier.attack.losses import capped_margin
from verifier.attack.projections import along, norm
from verifier.attack.task import Rows, Task
from verifier.errors import SpecError


@dataclass(frozen=True)
class EAD(Attack):
    """min c max(-margin, -kappa) + ‖d‖_2^2 + beta ‖d‖_1 over the box, by FISTA, with a binary search
    on c for every sample.

    Args:
        rule: which of the successes is kept: "l1" the smallest l1, "en" the smallest
            ‖d‖_2^2 + beta ‖d‖_1 (the paper's two decision rules).
        steps: FISTA steps per constant; search: constants tried; initial: first constant.
        rate: step length at the start, decaying with the square root of the remaining share.
        refine: secant queries on the final result (kappa = 0, rule "l1" only).
    Source: Chen et al. 2018, arXiv:1709.04114.
    """

    rule: str = "l1"
    beta: float = 0.1
    steps: int = 200
    search: int = 9
    initial: float = 0.1
    rate: float = 0.01
    kappa: float = 0.0
    refine: int = 2

    norms: ClassVar[tuple[float, ...]] = (1.0,)
    minimise: ClassVar[bool] = True

    @property
    def name(self) -> str:
        return f"ead_{self.rule}"

    def run(self, task: Task) -> None:
        if self.rule not in ("l1", "en"):
            raise SpecError(f"ead rule: expected 'l1' or 'en', got {self.rule!r}")
        rows = task.rows()
        constants = ConstantSearch(len(rows), self.initial, rows.start)
        for _ in range(self.search):
            constants.update(self._descend(rows, constants.constant))
        found = task.best_cost.isfinite().nonzero()[:, 0]
        if self.refine and self.kappa == 0 and self.rule == "l1" and len(found):
            secant(task.rows(found), task.best[found], self.refine)

    def _descend(self, rows: Rows, constant: Tensor) -> Tensor:
        success = torch.zeros(len(rows), dtype=torch.bool, device=constant.device)
        loss, weight = capped_margin(self.kappa), along(constant, rows.start)
        # only the last tenth of the steps says whether this constant is large enough
        check = max(1, self.steps // 10)
        point, slack = rows.start.clone(), rows.start.clone()
        for i in range(self.steps):
            rate = self.rate * (1 - i / self.steps) ** 0.5
            _, _, grad = rows.gradient(slack, loss)
            new = self._shrink(rows, slack - rate * (2 * (slack - rows.start) - weight * grad))
            slack = rows.clip(new + i / (i + 3) * (new - point))
            point = new
            scores = rows.scores(point)
            hit = rows.fooled(scores) & (loss(scores, rows.label, rows.target) >= self.kappa)
            rows.offer(point, hit, self._size(rows, point))
            success = hit if i % check == 0 else success | hit
        return success

    def _shrink(self, rows: Rows, z: Tensor) -> Tensor:
        """Soft threshold by beta around the clean input, cut to the box."""
        delta = z - rows.start
        return rows.clip(rows.start + delta.sign() * (delta.abs() - self.beta).clamp_min(0))

    def _size(self, rows: Rows, work: Tensor) -> Tensor:
        delta = work - rows.start
        if self.rule == "l1":
            return norm(delta, 1)
        return norm(delta, 2).square() + self.beta * norm(delta, 1)


@dataclass(frozen=True)
class EADEN(EAD):
    """EAD with the elastic-net decision rule."""

    rule: str = "en"
