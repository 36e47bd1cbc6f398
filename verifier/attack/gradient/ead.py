"""EAD: elastic-net attacks, sparse perturbations by iterative shrinkage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from verifier.attack.base import Attack
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
        abort: give a sample up for the current constant after steps / 10 steps without 0.01 % gain.
    Source: Chen et al. 2018, arXiv:1709.04114.
    """

    rule: str = "l1"
    beta: float = 1e-2
    steps: int = 200
    search: int = 9
    initial: float = 1e-3
    rate: float = 0.01
    kappa: float = 0.0
    abort: bool = True

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

    def _descend(self, rows: Rows, constant: Tensor) -> Tensor:
        success = torch.zeros(len(rows), dtype=torch.bool, device=constant.device)
        place = torch.arange(len(rows), device=constant.device)
        loss, check = capped_margin(self.kappa), max(1, self.steps // 10)
        point, slack = rows.start.clone(), rows.start.clone()
        before = torch.full_like(constant, torch.inf)
        for i in range(self.steps):
            rate = self.rate * (1 - i / self.steps) ** 0.5
            _, value, grad = rows.gradient(slack, loss)
            descent = 2 * (slack - rows.start) - along(constant, grad) * grad
            new = self._shrink(rows, slack - rate * descent)
            slack = rows.clip(new + i / (i + 3) * (new - point))
            point = new
            scores = rows.scores(point)
            gain = loss(scores, rows.label, rows.target)
            hit = rows.fooled(scores) & (gain >= self.kappa)
            rows.offer(point, hit, self._size(rows, point))
            success[place[hit]] = True
            if self.abort and i % check == check - 1:
                elastic = norm(point - rows.start, 2).square() + self.beta * norm(point - rows.start, 1)
                cost = elastic - constant * gain
                going = ~(cost > 0.9999 * before)
                if not bool(going.any()):
                    break
                before = cost
                if not bool(going.all()):
                    rows, place, constant = rows.narrow(going), place[going], constant[going]
                    point, slack, before = point[going], slack[going], before[going]
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
