"""EAD: elastic-net attacks, sparse perturbations by iterative shrinkage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import softshrink

from verifier.attack.base import Attack
from verifier.attack.boundary import walk_back
from verifier.attack.gradient.constant_search import ConstantSearch
from verifier.attack.gradient.nearest import Nearest
from verifier.attack.losses import confident, margin
from verifier.attack.projections import along, norm
from verifier.attack.rows import Rows
from verifier.attack.task import Task
from verifier.errors import SpecError


@dataclass(frozen=True)
class EAD(Attack):
    """min c max(-margin, -kappa) + ‖d‖_2^2 + beta ‖d‖_1 over the box, by FISTA, with a binary search
    on c for every sample.

    Each constant goes on from the point where the last one ended. The gradient is taken at the sparse iterate
    itself instead of FISTA's extrapolation of it, so that one evaluation serves the step and the search.

    Args:
        rule: which of the successes is kept: "l1" the smallest l1, "en" the smallest
            ‖d‖_2^2 + beta ‖d‖_1 (the paper's two decision rules).
        steps: FISTA steps in all; search: constants tried in them; initial: first constant.
        rate: step length at the start of a constant, decaying with the square root of its remaining share.
        polish: times the result is then projected onto the boundary linearised there (kappa = 0, rule "l1" only).
        refine: secant queries on the final result (kappa = 0, rule "l1" only).
    Source: Chen et al. 2018, arXiv:1709.04114.
    """

    rule: str = "l1"
    beta: float = 0.1
    steps: int = 540
    search: int = 9
    initial: float = 1.0
    rate: float = 0.01
    kappa: float = 0.0
    polish: int = 3
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
        found = self._search(rows, rows.start)
        if not bool(found.all()):  # no slope leads out of the clean input: from noise, as CW does
            lost = rows.narrow(~found)
            self._search(lost, lost.blend())
        if self.kappa == 0 and self.rule == "l1":
            walk_back(task, self.refine, self.polish)

    def _search(self, rows: Rows, point: Tensor) -> Tensor:
        """Every constant in turn, from `point` [R, *W]; returns which rows [R] were ever successful."""
        constants, nearest = ConstantSearch(len(rows), self.initial, rows.start), Nearest(rows)
        for _ in range(self.search):
            point, success = self._descend(nearest, point, constants.constant)
            constants.update(success)
        nearest.offer(nearest.cost)
        return nearest.found

    def _descend(self, nearest: Nearest, point: Tensor, constant: Tensor) -> tuple[Tensor, Tensor]:
        """The point [R, *W] where FISTA with these constants [R] ends, and which rows succeed in its last tenth [R]."""
        rows, steps = nearest.rows, max(1, self.steps // self.search)
        slack, success = point, torch.zeros_like(constant, dtype=torch.bool)
        for i in range(steps):
            rate = self.rate * (1 - i / steps) ** 0.5
            _, value, grad = rows.gradient(point, margin)
            hit = confident(value, self.kappa)
            success = hit & (i >= 0.9 * steps - 1) | success
            nearest.note(point, hit, self._size(point - rows.start))
            pull = along(rate * constant * ~hit, grad) * grad
            new = rows.clip(rows.start + softshrink((1 - 2 * rate) * (slack - rows.start) + pull, self.beta))
            slack, point = rows.clip(new + i / (i + 3) * (new - point)), new
        return point, success

    def _size(self, delta: Tensor) -> Tensor:
        if self.rule == "l1":
            return norm(delta, 1)
        return norm(delta, 2).square() + self.beta * norm(delta, 1)


@dataclass(frozen=True)
class EADEN(EAD):
    """EAD with the elastic-net decision rule."""

    rule: str = "en"
